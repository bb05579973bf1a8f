package host

import (
	"context"
	"runtime"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/plugin"
)

// listenOwn binds the sockets of the gateway's own endpoints.
func (s *Sockets) listenOwn(ctx context.Context, cfg *config.Config, gg *plugin.Gateway, addrs *Addrs) error {
	n := cfg.Endpoint.Shards
	if n == 0 {
		n = min(runtime.GOMAXPROCS(0), endpoint.MaxShards)
	}
	for _, l := range []struct {
		key, addr string
		make      func(...endpoint.Socket) *endpoint.Shards
		at        *string
	}{
		{"listen.coaps", cfg.Listen.CoAPS, gg.CoAPS, &addrs.CoAPS},
		{"listen.coap", cfg.Listen.CoAP, gg.CoAP, &addrs.CoAP},
	} {
		if l.addr == "" {
			continue
		}
		socks, err := endpoint.UDPShards(ctx, l.addr, n)
		if err != nil {
			return busy(l.key, l.addr, err)
		}
		*l.at = socks[0].LocalAddr().String()
		s.own = append(s.own, l.make(socks...))
	}
	return nil
}
