package host

import (
	"net"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/plugin"
)

// listenOwn binds the sockets of the gateway's own endpoints.
func (s *Sockets) listenOwn(cfg *config.Config, gg *plugin.Gateway, addrs *Addrs) error {
	for _, l := range []struct {
		key, addr string
		make      func(endpoint.Socket) *endpoint.Endpoint
		at        *string
	}{
		{"listen.coaps", cfg.Listen.CoAPS, gg.CoAPS, &addrs.CoAPS},
		{"listen.coap", cfg.Listen.CoAP, gg.CoAP, &addrs.CoAP},
	} {
		if l.addr == "" {
			continue
		}
		ua, err := net.ResolveUDPAddr("udp", l.addr)
		if err != nil {
			return busy(l.key, l.addr, err)
		}
		conn, err := net.ListenUDP("udp", ua)
		if err != nil {
			return busy(l.key, l.addr, err)
		}
		s.own = append(s.own, l.make(endpoint.UDP(conn)))
		*l.at = conn.LocalAddr().String()
	}
	return nil
}
