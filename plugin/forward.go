package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/proxy"
)

// newProxy makes the room that forwards; nil when nothing is to be forwarded.
func (g *Gateway) newProxy(as *ace.Server) (*proxy.Proxy, error) {
	c := &g.cfg.Proxy
	if !c.Active() {
		return nil, nil
	}
	rules, err := proxyRules(c)
	if err != nil {
		return nil, err
	}
	var standIn proxy.Target
	if c.StandIn != "" {
		if standIn, _, err = proxy.ParseTarget(strings.TrimSuffix(c.StandIn, "/")); err != nil {
			return nil, fmt.Errorf("proxy.stand_in: %w", err)
		}
	}
	log := g.log.With("part", "proxy")
	for _, line := range c.Summary() {
		log.Info("proxy rule", "rule", line)
	}
	holds := func(ctx context.Context, p coap.Peer) error {
		_, err := as.Grant(ctx, p)
		return err
	}
	return proxy.New(proxy.Config{
		Rules: rules, Name: c.Name, CacheBytes: c.CacheMB << 20, UDPRate: c.UDPRPS, GroupTimeout: c.GroupTimeout, StandIn: standIn,
	}, proxy.Deps{
		Hub: g.server, Observers: g.server.Observers, Local: g,
		May: func(ctx context.Context, p coap.Peer) error {
			if g.mayProxy(p) {
				return nil
			}
			return holds(ctx, p)
		},
		Token: holds, Listeners: sync.OnceValue(g.sockets),
		Log: log, Registerer: g.registry,
	}), nil
}

// mayProxy says whether a peer has a configured key with `may: [proxy]`.
func (g *Gateway) mayProxy(p coap.Peer) bool {
	return p.Subject.Kind == coap.SubjectPSK && slices.ContainsFunc(g.cfg.PSK, func(k config.PSK) bool {
		return k.Identity == p.Subject.ID && slices.Contains(k.May, "proxy")
	})
}

// takes says whether a request is for another server.
func (g *Gateway) takes(o coap.Options) bool {
	if r := g.rooms.Load(); r != nil && r.proxy != nil {
		return r.proxy.Takes(o)
	}
	return proxy.Proxied(o)
}

// screen refuses bodies in blocks that are not to be forwarded.
func (g *Gateway) screen(req *coap.Request) error {
	if r := g.rooms.Load(); r != nil && r.proxy != nil {
		return r.proxy.Screen(req)
	}
	return nil
}

// forwards is takes for the requests of a host, whose own those are that our rules
// do not lead elsewhere. While the gateway starts it is those with a proxy option.
func (g *Gateway) forwards(o message.Options, path []string) bool {
	if !g.cfg.Proxy.Active() {
		return false
	}
	if o.HasOption(message.ProxyURI) || o.HasOption(message.ProxyScheme) {
		return true
	}
	r := g.rooms.Load()
	if r == nil || r.proxy == nil {
		return false
	}
	var have coap.Options
	have.SetPath(path...)
	for _, x := range o {
		switch id := coap.OptionID(x.ID); id {
		case coap.UriHost, coap.UriPort, coap.UriQuery, proxy.MulticastTimeout:
			have.Add(id, x.Value)
		}
	}
	return r.proxy.Takes(have)
}

// sockets are the addresses that the gateway listens on: no proxied request may
// reach them by another way than the front door.
func (g *Gateway) sockets() []proxy.Listener {
	l := g.cfg.Listen
	configured := map[string]string{"coap": l.CoAP, "coaps": l.CoAPS, "http": l.HTTP, "mqtt": l.MQTT, "mqtts": l.MQTTS}
	var out []proxy.Listener
	for name, addr := range configured {
		if real := g.listeners[name]; real != "" {
			addr = real
		}
		at, err := listenAddr(addr)
		if err != nil {
			continue
		}
		x := proxy.Listener{Addr: at, TCP: name != "coap" && name != "coaps"}
		if !x.TCP {
			x.Scheme = name
		}
		out = append(out, x)
	}
	return out
}

var errNoAddr = errors.New("plugin: no address")

// listenAddr reads "host:port"; without a host it is every address.
func listenAddr(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, errNoAddr
	}
	a := netip.IPv4Unspecified()
	if host == "localhost" {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	} else if host != "" {
		if a, err = netip.ParseAddr(host); err != nil {
			a = netip.IPv4Unspecified() // a name: nobody knows which
		}
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// proxyRules translates the proxy section.
func proxyRules(c *config.Proxy) ([]proxy.Rule, error) {
	var out []proxy.Rule
	for i := range c.Allow {
		t := &c.Allow[i]
		r, err := viaRule(&t.ProxyVia)
		if err != nil {
			return nil, fmt.Errorf("proxy.allow[%d]: %w", i, err)
		}
		scheme, host, port, path, err := config.SplitTarget(t.Target)
		if err != nil {
			return nil, fmt.Errorf("proxy.allow[%d].target: %w", i, err)
		}
		r.Scheme, r.Host, r.Path, r.Port = scheme, host, path, proxy.DefaultPort(scheme)
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			r.Port = uint16(n)
		}
		out = append(out, r)
	}
	for i := range c.Hosts {
		h := &c.Hosts[i]
		r, err := upstreamRule(&h.ProxyVia, h.Upstream)
		if err != nil {
			return nil, fmt.Errorf("proxy.hosts[%d]: %w", i, err)
		}
		r.Name = h.Name
		out = append(out, r)
	}
	for i := range c.Reverse {
		v := &c.Reverse[i]
		r, err := upstreamRule(&v.ProxyVia, v.Upstream)
		if err != nil {
			return nil, fmt.Errorf("proxy.reverse[%d]: %w", i, err)
		}
		r.Prefix, r.List = coap.PathOf(strings.TrimSuffix(v.Path, "/")), v.List
		out = append(out, r)
	}
	return out, nil
}

func upstreamRule(v *config.ProxyVia, uri string) (proxy.Rule, error) {
	r, err := viaRule(v)
	if err != nil {
		return r, err
	}
	r.Upstream, r.Path, err = proxy.ParseTarget(strings.TrimSuffix(uri, "/"))
	return r, err
}

var methods = map[string]coap.Code{
	"GET": coap.GET, "POST": coap.POST, "PUT": coap.PUT, "DELETE": coap.DELETE, "FETCH": coap.FETCH, "PATCH": coap.PATCH, "iPATCH": coap.IPATCH,
}

func viaRule(v *config.ProxyVia) (proxy.Rule, error) {
	networks, err := v.Networks()
	r := proxy.Rule{
		Peers: v.Peers, Public: v.Public, OpenToUDP: v.OpenToUDP, Addresses: networks,
		Timeout: v.Timeout, Parallel: v.Parallel, BlockSize: v.BlockSize, Interface: v.Interface,
	}
	for _, m := range v.Methods {
		r.Methods = append(r.Methods, methods[m])
	}
	if v.Next != "" && err == nil {
		r.Next, _, err = proxy.ParseTarget(strings.TrimSuffix(v.Next, "/"))
	}
	switch {
	case v.Identity != "":
		r.Credential = &proxy.Credential{Identity: []byte(v.Identity), Key: v.Key.Bytes}
	case v.CAFile != "":
		r.Credential = &proxy.Credential{Roots: v.CAPEM.Bytes()}
		if v.CertFile != "" {
			r.Credential.Cert = func() (cert, key []byte) { return v.CertPEM.Bytes(), v.CertKeyPEM.Bytes() }
		}
	}
	return r, err
}
