package config

import (
	"fmt"
	"net"
	"net/netip"
)

// socket is an address at which the gateway listens.
type socket struct {
	key, network, addr string
	v4                 bool   // without a host all addresses of IPv4, not those of IPv6 too
	share              string // sockets with the same one are no concern of each other
}

// sockets are all of them, first those that others have to make room for.
func (c *Config) sockets() []socket {
	l := c.Listen
	all := []socket{
		{key: "listen.coaps", network: "udp", addr: l.CoAPS}, {key: "listen.coap", network: "udp", addr: l.CoAP},
		{key: "listen.http", network: "tcp", addr: l.HTTP}, {key: "listen.mqtt", network: "tcp", addr: l.MQTT},
		{key: "listen.mqtts", network: "tcp", addr: l.MQTTS},
	}
	for i, g := range c.Groups {
		if g.Upstream.Relay {
			all = append(all, socket{key: fmt.Sprintf("groups[%d].upstream.relay_listen", i), network: "udp", addr: g.Upstream.RelayListen, share: "relay"})
		}
	}
	for i, d := range c.Delegates {
		all = append(all, socket{key: fmt.Sprintf("delegates[%d].auth.listen", i), network: "udp", addr: d.Auth.Listen, share: "legacy nodes"})
		for j, g := range d.Groups {
			if len(g.Resources) > 0 { // else nobody asks the node
				all = append(all, socket{key: fmt.Sprintf("delegates[%d].groups[%d].listen", i, j), network: "udp", addr: g.Listen, v4: true})
			}
		}
	}
	return all
}

// validateSockets: one address has one owner, and an address without a host is
// every address of the machine.
func (c *Config) validateSockets(f *faults) {
	taken := map[string][]socket{} // by network and port
	for _, s := range c.sockets() {
		host, port, err := net.SplitHostPort(s.addr)
		if err != nil || port == "0" || !validAddr(s.addr) {
			continue
		}
		at := s.network + " " + port
		for _, t := range taken[at] {
			other, _, _ := net.SplitHostPort(t.addr)
			switch {
			case s.share != "" && s.share == t.share:
			case s.addr == t.addr:
				f.add(s.key, "the same address as %s", t.key)
			case covers(host, s.v4, other) || covers(other, t.v4, host):
				f.add(s.key, "cannot be %s beside %s of %s: one of them is every address of the machine", s.addr, t.addr, t.key)
			}
		}
		taken[at] = append(taken[at], s)
	}
}

// covers says whether the first host is every address, among them the second.
func covers(all string, v4 bool, host string) bool {
	a, err := netip.ParseAddr(all)
	if all != "" && (err != nil || !a.IsUnspecified()) {
		return false
	}
	if all == "" && !v4 || a.Is6() {
		return true
	}
	h, err := netip.ParseAddr(host)
	return err != nil || h.Is4() || h.IsUnspecified() // a name may be of either family
}
