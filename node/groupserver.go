package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// Limits of a [GroupServer].
const (
	maxServing    = 32   // requests at work at once; more are dropped, as by a full socket
	maxRemembered = 1024 // messages whose repetition is noticed
	// remembered is EXCHANGE_LIFETIME with the default parameters of RFC 7252, Section
	// 4.8.2.
	remembered = 247 * time.Second
	// ackDelay is how long an answer to a confirmable message may take before the
	// message is acknowledged by itself (RFC 7252, Section 5.2.2: PROCESSING_DELAY).
	ackDelay = time.Second
)

// Incoming is a request of a group member that was verified, and that its replay
// window holds already.
type Incoming struct {
	Request   *coap.Message
	Exchange  *oscore.GroupRequest
	From      netip.AddrPort
	Multicast bool
	Protected *coap.Message // as it came; nothing may be changed
	// Settled is called when there is nothing more to do about the request: its client
	// has the response, or is not to be reached. nil: nobody is.
	Settled func()
	// Acknowledge tells the client that the response comes by itself, when it is
	// known that it takes long; otherwise that is told after a second.
	Acknowledge func()
}

// Served is what a [GroupServer] tells of one request.
type Served struct {
	From      netip.AddrPort
	Multicast bool
	KID, Gid  []byte // of the client, when the request was read
	Mode      oscore.Mode
	Request   *coap.Message // nil when it could not be read
	Code      coap.Code     // of the response; Empty: none
	Err       error         // why the request was not read or not answered
}

// GroupServerConfig says where a [GroupServer] listens. Traffic is required, and
// Handle or Answer.
type GroupServerConfig struct {
	Traffic *Traffic
	// Handle answers one request of a group member; nil answers nothing. It may be
	// called from several goroutines.
	Handle func(req *coap.Message, x *oscore.GroupRequest) *coap.Message
	// Answer is a Handle that may take its time, until ctx ends. It goes before Handle.
	Answer func(ctx context.Context, in *Incoming) *coap.Message
	// Listen is the unicast address, host:port. Empty: 127.0.0.1 with any port.
	Listen string
	// Multicast is the multicast address of the group, of the kind of Listen; the zero
	// value is none.
	Multicast netip.AddrPort
	// Interface is the one for multicast; empty: the loopback interface, with IPv6 any for
	// addresses of interface-local scope.
	Interface string
	// Leisure is the longest that an answer to multicast waits, at random, so that not
	// all servers answer at once (RFC 7252, Section 8.2).
	Leisure time.Duration
	// Mode is that of every response; nil: each is in the mode of its request.
	Mode *oscore.Mode
	// OnServed hears of every request, from any goroutine; nil: nobody does.
	OnServed func(Served)
}

// GroupServer answers requests that are protected with Group OSCORE, by unicast and IP
// multicast.
type GroupServer struct {
	cfg      GroupServerConfig
	unicast  *net.UDPConn
	multi    *net.UDPConn // nil: none
	mid      uint16       // guarded by mu
	mu       sync.Mutex
	seen     map[messageKey]*seenMessage // guarded by mu
	waiting  map[messageKey]chan bool    // guarded by mu: own confirmable responses
	order    []messageKey                // guarded by mu: the oldest first
	slots    chan struct{}
	handlers sync.WaitGroup
}

// messageKey names a message of a peer (RFC 7252, Section 4.2).
type messageKey struct {
	from netip.AddrPort
	mid  uint16
}

type seenMessage struct {
	at     time.Time
	answer []byte // nil: none yet, or none at all
}

// ListenGroup opens the sockets of a server.
func ListenGroup(ctx context.Context, cfg GroupServerConfig) (*GroupServer, error) {
	if cfg.Traffic == nil || cfg.Handle == nil && cfg.Answer == nil {
		return nil, errors.New("node: a group server needs traffic and a handler")
	}
	if cfg.Answer == nil {
		cfg.Answer = func(_ context.Context, in *Incoming) *coap.Message { return cfg.Handle(in.Request, in.Exchange) }
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.OnServed == nil {
		cfg.OnServed = func(Served) {}
	}
	s := &GroupServer{
		cfg: cfg, mid: uint16(rand.Uint32()), seen: map[messageKey]*seenMessage{}, waiting: map[messageKey]chan bool{}, slots: make(chan struct{}, maxServing),
	}
	var err error
	if s.unicast, err = listenUnicast(ctx, cfg.Listen, cfg.Interface); err != nil {
		return nil, err
	}
	if cfg.Multicast.IsValid() {
		if s.multi, err = listenGroup(cfg.Multicast, cfg.Interface); err != nil {
			return nil, errors.Join(err, s.unicast.Close())
		}
	}
	return s, nil
}

// Addr is the unicast address.
func (s *GroupServer) Addr() netip.AddrPort {
	return fromAddr(s.unicast.LocalAddr().(*net.UDPAddr).AddrPort())
}

// Run serves until ctx ends, lets handlers answer what they have, and closes the
// sockets.
func (s *GroupServer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := []*net.UDPConn{s.unicast}
	if s.multi != nil {
		conns = append(conns, s.multi)
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	failed := make([]error, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			defer cancel()
			failed[i] = s.read(ctx, c, c == s.multi)
		})
	}
	wg.Wait()
	s.handlers.Wait()
	return errors.Join(failed...)
}

// read takes datagrams from one socket until it is closed.
func (s *GroupServer) read(ctx context.Context, c *net.UDPConn, multicast bool) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("node: %w", err)
		}
		m, err := coap.DecodeMessage(buf[:n])
		if err == nil && m.Code == coap.Empty && (m.Type == coap.Acknowledgement || m.Type == coap.Reset) {
			s.arrived(messageKey{fromAddr(from), m.ID}, m.Type == coap.Acknowledgement)
			continue
		}
		if err != nil || !m.Code.IsRequest() || m.Type != coap.Confirmable && m.Type != coap.NonConfirmable ||
			multicast && m.Type == coap.Confirmable { // RFC 7252, Section 8.1
			continue
		}
		m, from = m.Clone(), fromAddr(from)
		if again, answer := s.known(messageKey{from, m.ID}); again {
			if answer != nil {
				_, _ = s.unicast.WriteToUDPAddrPort(answer, from)
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			continue
		}
		s.handlers.Go(func() {
			defer func() { <-s.slots }()
			s.serve(ctx, m, from, multicast)
		})
	}
}

// known says whether a message was seen before, and what was answered to it. One that
// was not is remembered.
func (s *GroupServer) known(k messageKey) (bool, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.order) > 0 && (len(s.order) >= maxRemembered || now.Sub(s.seen[s.order[0]].at) > remembered) {
		delete(s.seen, s.order[0])
		s.order = s.order[1:]
	}
	if e := s.seen[k]; e != nil {
		return true, e.answer
	}
	s.seen[k] = &seenMessage{at: now}
	s.order = append(s.order, k)
	return false, nil
}

// arrived notes the fate of an own confirmable response.
func (s *GroupServer) arrived(k messageKey, acknowledged bool) {
	s.mu.Lock()
	w := s.waiting[k]
	delete(s.waiting, k)
	s.mu.Unlock()
	if w != nil {
		w <- acknowledged // has room for one
	}
}

// newID is the next message ID.
func (s *GroupServer) newID() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mid++
	return s.mid
}

// answered keeps what is sent to a client again when its message comes again.
func (s *GroupServer) answered(k messageKey, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.seen[k]; e != nil {
		e.answer = b
	}
}

// serve reads one request and answers it: piggybacked where that is quick (RFC 7252,
// Section 5.2.1), else after an empty acknowledgement (Section 5.2.2).
func (s *GroupServer) serve(ctx context.Context, m *coap.Message, from netip.AddrPort, multicast bool) {
	ev, key := Served{From: from, Multicast: multicast}, messageKey{from, m.ID}
	defer func() { s.cfg.OnServed(ev) }()
	var acked, over bool // guarded by mu
	var mu sync.Mutex
	acknowledge := func() {
		mu.Lock()
		defer mu.Unlock()
		if acked || over || m.Type != coap.Confirmable {
			return
		}
		acked = true
		b, _ := (&coap.Message{Type: coap.Acknowledgement, ID: m.ID}).MarshalBinary()
		s.answered(key, b)
		_, _ = s.unicast.WriteToUDPAddrPort(b, from)
	}
	late := time.AfterFunc(ackDelay, acknowledge)
	in := &Incoming{From: from, Multicast: multicast, Protected: m, Acknowledge: acknowledge}
	defer func() {
		if in.Settled != nil {
			in.Settled()
		}
	}()
	resp := s.answer(ctx, in, &ev)
	late.Stop()
	mu.Lock()
	over = true
	separate := acked
	mu.Unlock()
	if resp == nil {
		return
	}
	// Section 5.2.3: a message that is not confirmable answers one that is not.
	resp.Token, resp.Type, resp.ID = m.Token, coap.NonConfirmable, s.newID()
	switch {
	case separate:
		resp.Type = coap.Confirmable
	case m.Type == coap.Confirmable:
		resp.Type, resp.ID = coap.Acknowledgement, m.ID
	}
	b, err := resp.MarshalBinary()
	if err != nil {
		ev.Err = err
		return
	}
	if multicast && s.cfg.Leisure > 0 {
		wait := time.NewTimer(rand.N(s.cfg.Leisure))
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
	}
	if separate {
		ev.Err = s.insist(ctx, messageKey{from, resp.ID}, b)
		return
	}
	s.answered(key, b)
	if _, err := s.unicast.WriteToUDPAddrPort(b, from); err != nil {
		ev.Err = err
	}
}

// insist sends a confirmable response until the client has it (RFC 7252, Section 4.2).
func (s *GroupServer) insist(ctx context.Context, k messageKey, b []byte) error {
	w := make(chan bool, 1)
	s.mu.Lock()
	s.waiting[k] = w
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, k)
		s.mu.Unlock()
	}()
	timeout := ackTimeout + rand.N(ackTimeout/2)
	for range maxRetransmit + 1 {
		if _, err := s.unicast.WriteToUDPAddrPort(b, k.from); err != nil {
			return err
		}
		again := time.NewTimer(timeout)
		select {
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		case ok := <-w:
			again.Stop()
			if !ok {
				return coap.ErrReset
			}
			return nil
		case <-again.C:
		}
		timeout *= 2
	}
	return coap.ErrTimeout
}

// answer makes the protected response, the challenge, or the error that may be told.
func (s *GroupServer) answer(ctx context.Context, in *Incoming, ev *Served) *coap.Message {
	t := s.cfg.Traffic
	inner, x, err := t.ReadRequest(ctx, in.Protected)
	if x != nil {
		ev.KID, ev.Gid, ev.Mode = x.Sender(), x.Gid(), x.Mode()
	}
	if err != nil {
		ev.Err = err
		if errors.Is(err, oscore.ErrNotFresh) {
			resp, err := x.Challenge(ctx, nil)
			if err != nil {
				ev.Err = err
				return nil
			}
			ev.Code = coap.Unauthorized
			return resp
		}
		r := t.Group().ErrorResponse(err, in.Multicast)
		if r == nil {
			return nil
		}
		ev.Code = r.Code
		return &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload}
	}
	ev.Request = inner
	in.Request, in.Exchange = inner, x
	plain := s.cfg.Answer(ctx, in)
	if plain == nil {
		return nil
	}
	resp, err := s.protect(ctx, x, plain)
	if err != nil {
		ev.Err = err
		return nil
	}
	ev.Code = plain.Code
	return resp
}

func (s *GroupServer) protect(ctx context.Context, x *oscore.GroupRequest, plain *coap.Message) (*coap.Message, error) {
	mode := x.Mode()
	if s.cfg.Mode != nil {
		mode = *s.cfg.Mode
	}
	return x.ProtectIn(ctx, nil, mode, plain)
}

// Resume answers a request that an earlier server at this address took, acknowledged,
// and did not live to answer; it is called while Run runs, and returns when the client
// has the response or is not to be reached.
func (s *GroupServer) Resume(ctx context.Context, m *coap.Message, from netip.AddrPort, plain *coap.Message) error {
	key := messageKey{from, m.ID}
	if again, _ := s.known(key); !again && m.Type == coap.Confirmable {
		b, _ := (&coap.Message{Type: coap.Acknowledgement, ID: m.ID}).MarshalBinary()
		s.answered(key, b)
	}
	x, err := s.cfg.Traffic.Reopen(ctx, m)
	if err != nil {
		return err
	}
	resp, err := s.protect(ctx, x, plain)
	if err != nil {
		return err
	}
	resp.Token, resp.Type, resp.ID = m.Token, m.Type, s.newID()
	b, err := resp.MarshalBinary()
	if err != nil {
		return err
	}
	if m.Type == coap.Confirmable {
		return s.insist(ctx, messageKey{from, resp.ID}, b)
	}
	_, err = s.unicast.WriteToUDPAddrPort(b, from)
	return err
}

// newToken is a token of eight random bytes: nobody but who saw the request can
// answer it.
func newToken() []byte {
	return binary.BigEndian.AppendUint64(nil, rand.Uint64())
}
