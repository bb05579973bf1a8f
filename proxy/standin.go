package proxy

import (
	"context"
	"net/netip"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// standsIn says whether a request without a proxy option is for a member of a group that
// clients reach by the gateway alone: its Uri-Host is the address of one, as Reply-From
// said, and a rule of allow leads there.
//
// draft-ietf-core-groupcomm-proxy-07, Section 6.1, first case, and Appendix A.1.
func (p *Proxy) standsIn(o coap.Options) bool {
	host, ok := o.Get(coap.UriHost)
	if p.cfg.StandIn.Host == "" || !ok || Proxied(o) {
		return false
	}
	a, err := netip.ParseAddr(string(host))
	if err != nil || a.Zone() != "" || a.IsMulticast() || p.isOwn(a.Unmap()) && !a.IsLoopback() {
		return false // or it is a spelling of our own
	}
	port := uint32(DefaultPort(CoAP))
	if o.Has(coap.UriPort) {
		if port, ok = o.Uint(coap.UriPort); !ok || port == 0 || port > 0xffff {
			return false
		}
	}
	return slices.ContainsFunc(p.rules, func(r *Rule) bool { return r.leadsTo(memberTarget(netip.AddrPortFrom(a.Unmap(), uint16(port)))) })
}

// leadsTo says whether a rule of allow is about a server, whatever of it is asked.
func (r *Rule) leadsTo(t Target) bool { return r.forward() && r.covers(t, r.Path) }

func memberTarget(at netip.AddrPort) Target { return Target{CoAP, at.Addr().String(), at.Port()} }

// replyFrom is what Reply-From says of a member: its own address, or how the client that
// asked by a path or a host reaches it through the gateway, where a rule lets it.
func (p *Proxy) replyFrom(ctx context.Context, f *forwarded, from netip.AddrPort) []byte {
	to := memberTarget(from)
	if in := p.cfg.StandIn; in.Host != "" && f.kind != "forward" && slices.ContainsFunc(p.rules, func(r *Rule) bool { return r.leadsTo(to) && p.admits(ctx, r, f.req.Peer) }) {
		if a, ok := in.addr(); ok {
			scheme := byte(0x20) // -1: coap
			if in.secure() {
				scheme = 0x21
			}
			b := appendAuthority([]byte{0x82, scheme}, netip.AddrPortFrom(a, in.Port))
			return appendAuthority(append(b, 0x82, 0xf6), from)
		}
	}
	return cri(from)
}

// appendAuthority adds [address, port] of a CRI.
func appendAuthority(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().AsSlice()
	b = append(b, 0x82, 0x40|byte(len(ip)))
	b = append(b, ip...)
	switch port := a.Port(); {
	case port < 24:
		return append(b, byte(port))
	case port < 256:
		return append(b, 24, byte(port))
	default:
		return append(b, 25, byte(port>>8), byte(port))
	}
}
