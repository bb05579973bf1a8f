package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
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
	if f.rule.Next.Host == "" {
		if err := p.permit(f.rule, f.target, group); err != nil {
			return nil, err
		}
	}
	raw, ok := f.req.Options.Get(MulticastTimeout)
	seconds, valid := f.req.Options.Uint(MulticastTimeout)
	if !ok || !valid || len(raw) > 4 {
		// Section 5.2.1, step 3: the client did not show that it takes many responses.
		r := &coap.Response{Code: coap.BadRequest, Payload: []byte("a group answers with many responses: Multicast-Timeout says how long they are wanted")}
		r.Options.Add(MulticastTimeout, nil)
		return nil, coap.Respond(r, nil)
	}
	if len(f.req.Payload) > f.rule.BlockSize {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "a group takes one block")
	}
	register, present := f.req.Observe()
	wanted := min(time.Duration(seconds)*time.Second, p.cfg.GroupTimeout)
	if f.rule.Next.Host != "" && wanted > 0 && wanted <= legTime {
		return nil, tooShort(uint32(legTime/time.Second) + 1)
	}
	end := time.Now().Add(wanted)
	g, err := p.askGroup(ctx, f, group, present && register, wanted)
	if err != nil {
		return nil, err
	}
	if wanted == 0 {
		g.finish()
		return nil, coap.ErrSilent // step 6: nobody waits
	}
	g.end = end
	first, err := g.next(ctx)
	if err != nil {
		g.finish()
		if errors.Is(err, errSilent) {
			return nil, coap.ErrSilent
		}
		return nil, err
	}
	out := *first
	out.Lasting = g.observe
	out.More = func(ctx context.Context, send func(*coap.Response) error) error {
		g.begun.Store(true)
		defer g.finish()
		for n := 1; n < maxMembers || g.observe; n++ {
			r, err := g.next(ctx)
			if errors.Is(err, errSilent) {
				return nil
			}
			if err != nil && g.hop != nil && g.lasting && ctx.Err() == nil {
				return send(coap.ErrorResponse(err)) // ends the observation (RFC 7641, Section 4.2)
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
	time.AfterFunc(wanted+time.Second, func() {
		if !g.observe || !g.begun.Load() { // nobody called More
			g.finish()
		}
	})
	return &out, nil
}

// earlyStop says whether a request asks for the end of an earlier one to a group
// (draft-ietf-core-groupcomm-proxy, Section 5.1.3).
func earlyStop(o coap.Options) bool {
	v, ok := o.Get(MulticastTimeout)
	// Beside an OSCORE option anybody may have added it: what counts is inside.
	return ok && len(v) == 0 && !Proxied(o) && !o.Has(coap.OSCOREOption) && !slices.ContainsFunc(o, func(x coap.Option) bool {
		return x.ID == coap.UriHost || x.ID == coap.UriPort || x.ID == coap.UriPath || x.ID == coap.UriQuery
	})
}

// stopEarly ends what is relayed with the token of an Early Stop Request (Section
// 4.2.3). The client has given the token up, so it gets no response.
func (p *Proxy) stopEarly(ctx context.Context, req *coap.Request) error {
	if req.Code != coap.GET {
		return coap.Errorf(coap.BadRequest, "an Early Stop Request is a GET")
	}
	if x, ok := coap.ExchangeOf(ctx); ok {
		p.mu.Lock()
		g := p.asked[askedKey{req.Peer.Link, string(x.Token)}]
		p.mu.Unlock()
		if g != nil {
			g.finish()
		}
	}
	return coap.ErrSilent
}

// askedKey is a request to a group as the client knows it.
type askedKey struct {
	link  coap.LinkID
	token string
}

// asked is a request to a group, and the socket on which its members answer.
type asked struct {
	p       *Proxy
	f       *forwarded
	group   netip.Addr
	conn    *net.UDPConn
	token   string
	seen    map[seenKey]bool
	buf     []byte
	end     time.Time // of the time in which responses are wanted
	observe bool
	hop     *hop                       // nil: the group itself is asked
	lasting bool                       // the next proxy has taken the observation
	members map[netip.AddrPort]*member // that took the registration
	again   time.Time                  // when the registration is to be made anew; zero: never

	key    askedKey
	begun  atomic.Bool // responses after the first are waited for
	finish func()      // ends it, once
	unhook func() bool // undoes the end with the proxy; guarded by Proxy.mu
}

type seenKey struct {
	from netip.AddrPort
	id   uint16
}

// member is a server that has the client's observation.
type member struct {
	number uint32 // of its newest notification
	heard  time.Time
	late   time.Time // when a notification is overdue
	missed int       // times that it did not answer a registration made anew
}

// askGroup sends the request and books what it takes: the place of a request that
// waits, or that of an observation.
func (p *Proxy) askGroup(ctx context.Context, f *forwarded, group netip.Addr, observe bool, wanted time.Duration) (*asked, error) {
	done, err := p.wait()
	if err != nil {
		return nil, err
	}
	own := *f
	own.req = f.req.Clone()                       // it outlives the request
	own.opts = without(f.opts.Clone(), groupETag) // Section 7.3: it is for proxies, and this one validates nothing
	g := &asked{p: p, f: &own, group: group, observe: observe, members: map[netip.AddrPort]*member{}, seen: map[seenKey]bool{}, buf: make([]byte, maxMessage+1)}
	if x, ok := coap.ExchangeOf(ctx); ok {
		g.key = askedKey{f.req.Peer.Link, string(x.Token)}
	} else {
		g.key = askedKey{token: string(token())} // over no link: nobody can name it
	}
	p.mu.Lock()
	old, full := p.asked[g.key], len(p.asked) >= maxWaiting || observe && p.groupsObserved >= maxGroupsObserved
	p.mu.Unlock()
	if old != nil {
		old.finish() // RFC 7252, Section 5.3.1: the token is that of another request now
	}
	if full {
		done()
		p.metrics.refused.WithLabelValues("busy").Inc()
		return nil, errBusy
	}
	if f.rule.Next.Host != "" {
		err = g.openHop(ctx, wanted)
	} else {
		err = g.open()
	}
	if err != nil {
		done()
		return nil, err
	}
	free := sync.OnceFunc(done)
	g.finish = sync.OnceFunc(func() {
		if g.hop != nil {
			g.hop.end(p)
		} else {
			if observe {
				// RFC 7641, Section 3.6: the observation is over. Who does not hear it
				// learns it from its next confirmable notification.
				_ = g.send(1)
			}
			_ = g.conn.Close()
		}
		free()
		p.mu.Lock()
		defer p.mu.Unlock()
		g.unhook()
		if p.asked[g.key] == g {
			delete(p.asked, g.key)
		}
		if observe {
			p.groupsObserved--
			p.metrics.relays.WithLabelValues("group").Dec()
		}
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	g.unhook = context.AfterFunc(p.ctx, g.finish)
	p.asked[g.key] = g
	if observe {
		p.groupsObserved++
		p.metrics.relays.WithLabelValues("group").Inc()
		time.AfterFunc(wanted, free) // it waits for nothing any more
	}
	return g, nil
}

// open makes the socket and sends the request.
func (g *asked) open() error {
	network := "udp4"
	if g.group.Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errShake, err)
	}
	g.conn, g.token = conn, string(token())
	if err = prepare(conn, g.group, g.f.rule.Interface); err == nil {
		err = g.send(0)
	}
	if err != nil {
		_ = conn.Close()
		g.p.deps.Log.Warn("a request to a group cannot be sent: is the interface of the rule right?", "target", g.f.target.String(), "err", err)
		return fmt.Errorf("%w: %w", errShake, err)
	}
	return nil
}

// send sends the request once: it is not confirmable (RFC 7252, Section 8.1).
// observe is the value of the option where the client observes.
func (g *asked) send(observe uint32) error {
	opts := g.f.opts
	if g.observe {
		opts.SetUint(coap.ObserveOption, observe)
	}
	m := &coap.Message{Type: coap.NonConfirmable, Code: g.f.req.Code, ID: binary.BigEndian.Uint16(token()), Token: []byte(g.token), Options: opts, Payload: g.f.req.Payload}
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = g.conn.WriteToUDPAddrPort(b, netip.AddrPortFrom(g.group, g.f.target.Port))
	return err
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

// next waits for the next response; errSilent: the time is over, and nobody is
// observed.
func (g *asked) next(ctx context.Context) (*coap.Response, error) {
	if g.hop != nil {
		return g.nextOfHop(ctx)
	}
	unhook := context.AfterFunc(ctx, func() { _ = g.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unhook()
	for {
		now := time.Now()
		if !g.again.IsZero() && !now.Before(g.again) {
			g.registerAgain(now)
		}
		over := !now.Before(g.end)
		if over && len(g.members) == 0 {
			return nil, errSilent
		}
		until := g.end
		if over || !g.again.IsZero() && g.again.Before(until) {
			until = g.again
		}
		_ = g.conn.SetReadDeadline(until)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n, from, err := g.conn.ReadFromUDPAddrPort(g.buf)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return nil, errSilent
		case err != nil:
			continue // the time, or ICMP
		}
		if r := g.response(ctx, g.buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())); r != nil {
			return r, nil
		}
	}
}

// response reads what came; nil: it is nothing to be relayed.
func (g *asked) response(ctx context.Context, b []byte, from netip.AddrPort) *coap.Response {
	m, err := decode(b)
	if err != nil || !m.Code.IsResponse() || string(m.Token) != g.token {
		return nil
	}
	if m.Type == coap.Confirmable {
		_, _ = g.conn.WriteToUDPAddrPort([]byte{1<<6 | byte(coap.Acknowledgement)<<4, 0, byte(m.ID >> 8), byte(m.ID)}, from)
	}
	if k := (seenKey{from, m.ID}); g.seen[k] {
		return nil // a copy of a message; two responses of one member are both relayed
	} else if len(g.seen) >= 4*maxMembers {
		clear(g.seen)
	} else {
		g.seen[k] = true
	}
	number, observed := m.Options.Uint(coap.ObserveOption)
	observed = observed && g.observe && m.Code.IsSuccess()
	if time.Now().After(g.end) && !observed && g.members[from] == nil {
		return nil // late, and no notification
	}
	if observed && !g.notified(from, m) {
		return nil
	}
	if !observed {
		delete(g.members, from)
	}
	r, err := g.whole(ctx, m.Clone(), from)
	if err != nil {
		return nil
	}
	if r, err = g.p.fromUpstream(r); err != nil {
		return nil
	}
	if observed {
		r.Options.SetUint(coap.ObserveOption, number)
	}
	r.Options.Set(replyFrom, g.p.replyFrom(ctx, g.f, from)) // an upstream's own would be a lie
	r.Options.Remove(groupETag)                             // and so would this
	g.p.metrics.responses.Inc()
	return r
}

// notified keeps up with a member that took the registration; false: the message is
// older than one that was relayed (RFC 7641, Section 3.4).
func (g *asked) notified(from netip.AddrPort, m *coap.Message) bool {
	now := time.Now()
	x := g.members[from]
	if x == nil {
		if len(g.members) >= maxMembers {
			return true
		}
		x = &member{}
		g.members[from] = x
	} else if _, ok := newer(m, x.number, x.heard); !ok {
		return false
	}
	x.number, _ = m.Options.Uint(coap.ObserveOption)
	x.heard, x.missed = now, 0
	x.late = now.Add(min(maxAgeOf(&coap.Response{Options: m.Options}), maxSilence) + lateMin + rand.N(lateMax-lateMin))
	if g.again.IsZero() || x.late.Before(g.again) {
		g.again = x.late
	}
	return true
}

// registerAgain asks the group anew when a member's notification is overdue (RFC
// 7641, Section 3.3.1): it may have started again. Who does not answer several
// times is gone.
func (g *asked) registerAgain(now time.Time) {
	g.again = time.Time{}
	overdue := false
	for at, x := range g.members {
		if !now.Before(x.late) {
			overdue = true
			if x.missed++; x.missed > maxRetransmit {
				delete(g.members, at)
				continue
			}
			x.late = now.Add(defaultMaxAge + rand.N(lateMax))
		}
		if g.again.IsZero() || x.late.Before(g.again) {
			g.again = x.late
		}
	}
	if overdue && len(g.members) > 0 {
		_ = g.send(0) // like all datagrams, it may be lost
	}
}

// whole gathers a response in blocks: the others are asked for at the member
// itself (RFC 7959, Section 2.8), for which the rule speaks as for the group.
func (g *asked) whole(ctx context.Context, m *coap.Message, from netip.AddrPort) (*coap.Response, error) {
	if b, err := m.Options.Block(coap.Block2); err == nil && (b == nil || b.Num == 0 && !b.More) {
		return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
	}
	if g.p.isOwn(from.Addr()) && !g.f.rule.named(from.Addr(), true) {
		return nil, errPlace
	}
	conn, err := dialUDP(from)
	if err != nil {
		return nil, err
	}
	d := newDatagrams(g.p, conn)
	defer d.close()
	ctx, cancel := context.WithTimeout(ctx, g.f.rule.Timeout)
	defer cancel()
	return serve.Gather(ctx, d, &coap.Request{Code: g.f.req.Code, Options: g.f.opts, Payload: g.f.req.Payload}, m, maxBody)
}

// cri is the CRI of a server, scheme and authority (draft-ietf-core-href): [-1,
// [address, port]] with the port left out when it is the default.
func cri(a netip.AddrPort) []byte {
	if a.Port() == 5683 {
		ip := a.Addr().AsSlice()
		return append([]byte{0x82, 0x20, 0x81, 0x40 | byte(len(ip))}, ip...)
	}
	return appendAuthority([]byte{0x82, 0x20}, a)
}
