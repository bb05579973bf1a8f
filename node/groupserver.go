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
)

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

// GroupServerConfig says where a [GroupServer] listens. Traffic and Handle are required.
type GroupServerConfig struct {
	Traffic *Traffic
	// Handle answers one request of a group member; nil answers nothing. It may be
	// called from several goroutines.
	Handle func(req *coap.Message, x *oscore.GroupRequest) *coap.Message
	// Listen is the unicast address, host:port. Empty: 127.0.0.1 with any port.
	Listen string
	// Multicast is the IPv4 multicast address of the group; the zero value is none.
	Multicast netip.AddrPort
	// Interface is the one for multicast; empty: the loopback interface.
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
	if cfg.Traffic == nil || cfg.Handle == nil {
		return nil, errors.New("node: a group server needs traffic and a handler")
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.OnServed == nil {
		cfg.OnServed = func(Served) {}
	}
	s := &GroupServer{
		cfg: cfg, mid: uint16(rand.Uint32()), seen: map[messageKey]*seenMessage{}, slots: make(chan struct{}, maxServing),
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

// Run serves until ctx ends, and closes the sockets.
func (s *GroupServer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := []*net.UDPConn{s.unicast}
	if s.multi != nil {
		conns = append(conns, s.multi)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.Close()
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

// serve reads one request and answers it.
func (s *GroupServer) serve(ctx context.Context, m *coap.Message, from netip.AddrPort, multicast bool) {
	ev := Served{From: from, Multicast: multicast}
	resp := s.answer(ctx, m, multicast, &ev)
	if resp == nil {
		s.cfg.OnServed(ev)
		return
	}
	resp.Token = m.Token
	// RFC 7252, Section 5.2.1: a piggybacked response; Section 5.2.3: none to a NON.
	s.mu.Lock()
	resp.Type, resp.ID = coap.NonConfirmable, s.mid
	s.mid++
	s.mu.Unlock()
	if m.Type == coap.Confirmable {
		resp.Type, resp.ID = coap.Acknowledgement, m.ID
	}
	b, err := resp.MarshalBinary()
	if err != nil {
		ev.Err = err
		s.cfg.OnServed(ev)
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
	s.mu.Lock()
	if e := s.seen[messageKey{from, m.ID}]; e != nil {
		e.answer = b
	}
	s.mu.Unlock()
	if _, err := s.unicast.WriteToUDPAddrPort(b, from); err != nil {
		ev.Err = err
	}
	s.cfg.OnServed(ev)
}

// answer makes the protected response, the challenge, or the error that may be told.
func (s *GroupServer) answer(ctx context.Context, m *coap.Message, multicast bool, ev *Served) *coap.Message {
	t := s.cfg.Traffic
	inner, x, err := t.ReadRequest(ctx, m)
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
		r := t.Group().ErrorResponse(err, multicast)
		if r == nil {
			return nil
		}
		ev.Code = r.Code
		return &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload}
	}
	ev.Request = inner
	plain := s.cfg.Handle(inner, x)
	if plain == nil {
		return nil
	}
	mode := x.Mode()
	if s.cfg.Mode != nil {
		mode = *s.cfg.Mode
	}
	resp, err := x.ProtectIn(ctx, nil, mode, plain)
	if err != nil {
		ev.Err = err
		return nil
	}
	ev.Code = plain.Code
	return resp
}

// newToken is a token of eight random bytes: nobody but who saw the request can
// answer it.
func newToken() []byte {
	return binary.BigEndian.AppendUint64(nil, rand.Uint64())
}
