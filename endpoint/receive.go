package endpoint

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// datagram is told of each datagram that comes, with Endpoint.mu held.
func (e *Endpoint) datagram(d Datagram, now time.Time) {
	if len(d.B) > maxDatagram {
		e.metrics.dropped.WithLabelValues("size").Inc()
		return
	}
	if e.closed {
		return
	}
	e.came = d.Local
	if e.cfg.Keys == nil {
		e.plainDatagram(d, now)
		return
	}
	for b := d.B; len(b) > 0; {
		r, rest, err := record.Next(b, cidSize)
		if err != nil {
			// RFC 6347, Section 4.1.2.7: what is no record is discarded.
			e.metrics.dropped.WithLabelValues("format").Inc()
			return
		}
		e.record(&r, b[:len(b)-len(rest)], d.Addr, len(d.B), now)
		b = rest
	}
}

// record finds out whose record it is. raw is the whole of it.
func (e *Endpoint) record(r *record.Record, raw []byte, from netip.AddrPort, size int, now time.Time) {
	switch {
	case r.Type == record.ConnectionID:
		id := binary.BigEndian.Uint64(r.CID)
		if s := e.byCID.Get(id); s != nil {
			s.record(r, from, size, now)
		} else if h := e.halfByCID[id]; h != nil {
			// Before the handshake is over there is no moving.
			if h.addr == from {
				h.record(r, raw, size)
			}
		} else if h := e.own.byCID[id]; h != nil {
			if h.addr == from {
				h.record(r, raw, size)
			}
		} else {
			e.metrics.dropped.WithLabelValues("unknown").Inc()
		}
	case r.Epoch == 0:
		e.clear(r, raw, from)
	default:
		// A live session may have a handshake beside it: its keys tell.
		s, h := e.byAddr.Get(from), e.handshakes[from]
		if s != nil && s.cid == 0 && s.record(r, from, size, now) {
			return
		}
		if own := e.own.byAddr[from]; own != nil {
			own.record(r, raw, size)
		} else if h != nil {
			h.record(r, raw, size)
		} else if s == nil {
			e.metrics.dropped.WithLabelValues("unknown").Inc()
		}
	}
}

// clear is a record without protection: it belongs to a handshake or begins
// one. Live sessions do not care for it (RFC 6347, Section 4.2.8).
func (e *Endpoint) clear(r *record.Record, raw []byte, from netip.AddrPort) {
	if e.shake(r, raw, from) {
		return
	}
	h := e.handshakes[from]
	hello, isHello := readHello(r)
	switch {
	case h == nil && isHello:
		h = e.admit(hello, from)
		isHello = false // a cookie of its own it cannot have yet
	case h != nil && isHello && hello.whole && hello.random != h.random:
		h = e.another(h, hello, from)
	}
	if h == nil {
		e.metrics.dropped.WithLabelValues("stray").Inc()
		return
	}
	if isHello && hello.cookie {
		h.verified = true
	}
	h.record(r, raw, len(raw))
}

// record reads a record of the session. It returns false when it does not
// open, and then nothing has changed.
func (s *session) record(r *record.Record, from netip.AddrPort, size int, now time.Time) bool {
	e := s.e
	if s.gone {
		return true
	}
	if r.Epoch != epoch || !s.window.Fresh(r.Seq) {
		if r.Epoch == epoch {
			e.metrics.dropped.WithLabelValues("replay").Inc()
		}
		return false
	}
	kind, content, err := s.reader().Open(e.plain[:0], r)
	if err != nil {
		e.metrics.dropped.WithLabelValues("forged").Inc()
		return false
	}
	e.plain = content[:0:cap(content)]
	newest := s.window.Accept(r.Seq)
	s.heard = e.stamp(now)
	s.wake()
	s.touched()
	was := s.local
	if newest {
		s.cameTo(e.came)
	}
	switch {
	case from == s.addr():
		if p := s.probing(); p != nil {
			p.budget += proofFactor * size
		}
	case newest && r.Type == record.ConnectionID:
		s.moved(from, size, was)
	}
	switch kind {
	case record.ApplicationData:
		s.message(content, from, now)
	case record.Alert:
		s.alerted(content)
	case record.Handshake:
		if len(content) > 0 && content[0] == handshakeClientHello {
			// RFC 5246, Section 7.2.2: no renegotiation.
			s.alert(alertWarning, alertNoRenegotiation)
		}
	}
	return true
}

// alerted reads an authentic alert (RFC 5246, Section 7.2).
func (s *session) alerted(b []byte) {
	if len(b) != 2 {
		return
	}
	switch {
	case b[1] == alertCloseNotify:
		// RFC 5246, Section 7.2.1: it is answered with the same.
		s.e.end(s, true)
	case b[0] == alertFatal:
		s.e.end(s, false)
	}
}

// plainDatagram is a message over UDP.
func (e *Endpoint) plainDatagram(d Datagram, now time.Time) {
	s := e.byAddr.Get(d.Addr)
	if s == nil {
		m, err := coap.DecodeMessage(d.B)
		if err != nil || !m.Code.IsRequest() {
			// No state for what asks nothing: a ping or a malformed message is
			// rejected without.
			if b, ok := rejection(d.B, m, err); ok {
				e.out.push(d.Addr, d.Local, append(e.out.buffer(), b[:]...))
			}
			return
		}
		s = e.newSession(coap.Plain, d.Addr)
		if !e.register(s) {
			return
		}
	}
	s.heard = e.stamp(now)
	s.cameTo(d.Local)
	s.message(d.B, d.Addr, now)
}

// rejection is the Reset for a confirmable message that is malformed or empty
// (RFC 7252, Sections 4.2 and 4.3), or a response that nobody waits for.
func rejection(b []byte, m *coap.Message, err error) (rst [4]byte, ok bool) {
	if err == nil && m.Type != coap.Confirmable || len(b) < 4 || b[0]>>4 != 1<<2 {
		return rst, false
	}
	return [4]byte{1<<6 | byte(coap.Reset)<<4, 0, b[2], b[3]}, true
}
