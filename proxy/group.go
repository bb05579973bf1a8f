package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// groupHops is how far requests to groups go: through the routers of a site.
const groupHops = 8

// forwardGroup sends a request to a group and relays what its members answer
// (draft-ietf-core-groupcomm-proxy-07, Section 5).
func (p *Proxy) forwardGroup(ctx context.Context, f *forwarded, group netip.Addr) (*coap.Response, error) {
	if f.target.Scheme != CoAP {
		return nil, coap.Errorf(coap.ProxyingNotSupported, "a group is reached with coap only")
	}
	if err := p.permit(f.rule, f.target, group); err != nil {
		return nil, err
	}
	raw, ok := f.req.Options.Get(multicastTimeout)
	seconds, valid := f.req.Options.Uint(multicastTimeout)
	if !ok || !valid || len(raw) > 4 {
		// Section 5.2, step 3: the client did not show that it takes many responses.
		r := &coap.Response{Code: coap.BadRequest, Payload: []byte("a group answers with many responses: Multicast-Timeout says how long they are wanted")}
		r.Options.Add(multicastTimeout, nil)
		return nil, coap.Respond(r, nil)
	}
	if len(f.req.Payload) > f.rule.BlockSize {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "a group takes one block")
	}
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	wanted := min(time.Duration(seconds)*time.Second, p.cfg.GroupTimeout)
	g, err := p.ask1(f, group)
	if err != nil {
		done()
		return nil, err
	}
	if wanted == 0 {
		done()
		g.close()
		return nil, coap.ErrSilent // step 6: nobody waits
	}
	end := time.Now().Add(wanted)
	var once sync.Once
	finish := func() { once.Do(func() { g.close(); done() }) }
	first, err := g.next(ctx, end)
	if err != nil {
		finish()
		if errors.Is(err, errSilent) {
			return nil, coap.ErrSilent
		}
		return nil, err
	}
	out := *first
	out.More = func(ctx context.Context, send func(*coap.Response) error) error {
		defer finish()
		for range maxMembers {
			r, err := g.next(ctx, end)
			if errors.Is(err, errSilent) {
				return nil
			}
			if err == nil {
				err = send(r)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	context.AfterFunc(p.ctx, finish)
	time.AfterFunc(wanted+time.Second, finish) // when nobody calls More
	return &out, nil
}

// asked is a request to a group, and the socket on which its members answer.
type asked struct {
	p     *Proxy
	f     *forwarded
	conn  *net.UDPConn
	token string
	id    uint16
	seen  map[seenKey]bool
	buf   []byte
}

type seenKey struct {
	from netip.AddrPort
	id   uint16
}

// ask1 sends the request once: it is not confirmable (RFC 7252, Section 8.1).
func (p *Proxy) ask1(f *forwarded, group netip.Addr) (*asked, error) {
	network := "udp4"
	if group.Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errShake, err)
	}
	err = prepare(conn, group, f.rule.Interface)
	tok := token()
	g := &asked{p: p, f: f, conn: conn, token: string(tok), id: binary.BigEndian.Uint16(token()), seen: map[seenKey]bool{}, buf: make([]byte, maxMessage)}
	m := &coap.Message{Type: coap.NonConfirmable, Code: f.req.Code, ID: g.id, Token: tok, Options: f.opts, Payload: f.req.Payload}
	var b []byte
	if err == nil {
		b, err = m.MarshalBinary()
	}
	if err == nil {
		_, err = conn.WriteToUDPAddrPort(b, netip.AddrPortFrom(group, f.target.Port))
	}
	if err != nil {
		g.close()
		p.deps.Log.Warn("a request to a group cannot be sent: is proxy.allow[].interface right?", "target", f.target.String(), "err", err)
		return nil, fmt.Errorf("%w: %w", errShake, err)
	}
	return g, nil
}

// prepare says by which interface and how far what is sent to a group goes.
func prepare(conn *net.UDPConn, group netip.Addr, name string) error {
	var via *net.Interface
	if name != "" {
		var err error
		if via, err = net.InterfaceByName(name); err != nil {
			return err
		}
	}
	if group.Is6() {
		c := ipv6.NewPacketConn(conn)
		if via != nil {
			if err := c.SetMulticastInterface(via); err != nil {
				return err
			}
		}
		return c.SetMulticastHopLimit(groupHops)
	}
	c := ipv4.NewPacketConn(conn)
	if via != nil {
		if err := c.SetMulticastInterface(via); err != nil {
			return err
		}
	}
	return c.SetMulticastTTL(groupHops)
}

func (g *asked) close() { _ = g.conn.Close() }

// next waits for the next response; errSilent: the time is over.
func (g *asked) next(ctx context.Context, end time.Time) (*coap.Response, error) {
	unhook := context.AfterFunc(ctx, func() { _ = g.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unhook()
	_ = g.conn.SetReadDeadline(end)
	for {
		n, from, err := g.conn.ReadFromUDPAddrPort(g.buf)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && !time.Now().Before(end), errors.Is(err, net.ErrClosed):
			return nil, errSilent
		case err != nil:
			continue // ICMP
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		m, err := coap.DecodeMessage(g.buf[:n])
		if err != nil || !m.Code.IsResponse() || string(m.Token) != g.token {
			continue
		}
		if m.Type == coap.Confirmable {
			_, _ = g.conn.WriteToUDPAddrPort([]byte{1<<6 | byte(coap.Acknowledgement)<<4, 0, byte(m.ID >> 8), byte(m.ID)}, from)
		}
		if k := (seenKey{from, m.ID}); g.seen[k] {
			continue // a copy of a message; two responses of one member are both relayed
		} else if len(g.seen) < 4*maxMembers {
			g.seen[k] = true
		}
		r, err := g.whole(ctx, m.Clone(), from, end)
		if err != nil {
			continue
		}
		if r, err = g.p.fromUpstream(r); err != nil {
			continue
		}
		r.Options.Add(replyFrom, cri(from))
		g.p.metrics.responses.Inc()
		return r, nil
	}
}

// whole gathers a response in blocks: the others are asked for at the member
// itself (RFC 7959, Section 2.8), for which the rule speaks as for the group.
func (g *asked) whole(ctx context.Context, m *coap.Message, from netip.AddrPort, end time.Time) (*coap.Response, error) {
	if b, err := m.Options.Block(coap.Block2); err == nil && (b == nil || !b.More) {
		return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
	}
	if g.p.isOwn(from.Addr()) && !g.f.rule.named(from.Addr()) {
		return nil, errPlace
	}
	conn, err := dialUDP(from)
	if err != nil {
		return nil, err
	}
	d := newDatagrams(g.p, conn)
	defer d.close()
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return serve.Gather(ctx, d, &coap.Request{Code: g.f.req.Code, Options: g.f.opts, Payload: g.f.req.Payload}, m, maxBody)
}

// cri is the CRI of a server, scheme and authority (draft-ietf-core-href): [-1,
// [address, port]] with the port left out when it is the default.
func cri(a netip.AddrPort) []byte {
	ip := a.Addr().AsSlice()
	b := []byte{0x82, 0x20, 0x82}
	if a.Port() == 5683 {
		b[2] = 0x81
	}
	b = append(b, 0x40|byte(len(ip)))
	b = append(b, ip...)
	switch port := a.Port(); {
	case port == 5683:
	case port < 24:
		b = append(b, byte(port))
	case port < 256:
		b = append(b, 24, byte(port))
	default:
		b = append(b, 25, byte(port>>8), byte(port))
	}
	return b
}
