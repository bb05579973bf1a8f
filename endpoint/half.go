package endpoint

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// Handshakes of our own, by package dtls12: all with raw public keys or
// certificates, and those with pre-shared keys when Config.OwnPSK says so. pion does the others. What is
// known of a client before it has shown that it receives at its address is
// nothing.

// halves are the handshakes of our own; guarded by Endpoint.mu.
type halves struct {
	cookies *dtls12.Cookies // nil: there are no such handshakes
	byAddr  map[netip.AddrPort]*half
	byCID   map[uint64]*half
	hellos  map[netip.AddrPort]*gathering
}

// Bounds of what waits for a handshake that is working.
const (
	halfRoom  = 64 // records: the longest message that package dtls12 takes, in fragments of 75 bytes, and the rest of its flight
	halfBytes = 16 << 10
)

// half is a peer until its session is taken over. It works in a job of the crew
// while there is something to do, and has no goroutine else.
//
//	working ── Finished verified, admitted ──▶ done ── first application record ──▶ session
//	   │                                         └───── or a minute of silence ──────▶
//	   └─ alert, time-out, given up ──▶ gone
type half struct {
	e      *Endpoint
	addr   netip.AddrPort
	local  netip.Addr // of this machine
	random [32]byte   // of the ClientHello
	began  time.Time
	cid    uint64
	kind   string // of key, for metrics

	cfg   dtls12.Config
	hello *dtls12.ClientHello // nil once the machine has it

	// The machine is the job's while running is true, else whoever has
	// Endpoint.mu may use it. So are the fields above.
	m *dtls12.Handshake

	// Guarded by Endpoint.mu.
	running bool
	expired bool // the machine is to look at its clock
	planned bool // the wheel has it
	gone    bool
	in      [][]byte
	size    int
	done    bool
	since   time.Time // it is done
	session *session  // as it will be, with keys
	reader  *record.Cipher
}

// offer is what the gateway has to show; the functions only say what it could
// be asked. false: its keys are not there yet.
func (e *Endpoint) offer() (c dtls12.Config, ready bool) {
	if e.cfg.RawKey != nil {
		if c.Key = e.cfg.RawKey(); c.Key == nil {
			return c, false
		}
		c.Peer = func([]byte) error { return dtls12.ErrUnknown }
	}
	if e.cfg.Certificate != nil {
		c.Certificate = e.cfg.Certificate()
	}
	if c.Certificate != nil {
		c.PeerChain = func([]*x509.Certificate) error { return dtls12.ErrUnknown }
	}
	if e.cfg.OwnPSK {
		c.PSK = noPSK
	}
	return c, true
}

// shake is told of each record of epoch 0, and says whether it was for a
// handshake of our own.
func (e *Endpoint) shake(r *record.Record, raw []byte, from netip.AddrPort) bool {
	if e.own.cookies == nil {
		return false
	}
	h := e.own.byAddr[from]
	hello := dtls12.ReadClientHello(r)
	if hello == nil && e.cfg.OwnPSK {
		var taken bool
		if hello, taken = e.gather(r, from, h); taken && hello == nil {
			return true
		}
	}
	if hello == nil || h != nil && hello.Random == h.random {
		if h != nil {
			h.receive(raw)
		} else if e.cfg.OwnPSK {
			e.metrics.dropped.WithLabelValues("stray").Inc()
		}
		return h != nil || e.cfg.OwnPSK
	}
	offer, ready := e.offer()
	if !ready && hello.OffersKeys() {
		return true // it will come again
	}
	// When all handshakes are our own, so is telling a client that there is no suite in
	// common.
	if !e.cfg.OwnPSK && offer.Choose(hello) == 0 {
		if h == nil {
			return false
		}
		return !h.yield()
	}
	ok, answer := e.own.cookies.Verify(e.out.buffer(), hello, from, time.Now())
	if !ok {
		e.metrics.cookies.Inc()
		e.out.push(from, e.came, answer)
		return true
	}
	// The client is at this address and begins anew: what was there is over.
	if h != nil {
		h.end("given-up")
	}
	if old := e.handshakes[from]; old != nil {
		if old.done {
			old.takeOver()
		} else {
			old.drop("given-up")
		}
	}
	e.beginOwn(hello, from)
	return true
}

func noPSK([]byte) ([]byte, error) { return nil, dtls12.ErrUnknown }

// beginOwn makes a handshake of a ClientHello with a cookie.
func (e *Endpoint) beginOwn(hello *dtls12.ClientHello, from netip.AddrPort) {
	now := time.Now()
	if g := e.own.hellos[from]; g != nil {
		e.endGathering(g, "given-up")
	}
	if !e.roomToBegin(from, now) {
		return
	}
	h := &half{e: e, addr: from, local: e.came, random: hello.Random, began: now, hello: hello}
	h.cid = e.freeCID()
	h.cfg, _ = e.offer()
	h.kind = h.cfg.Kind(hello)
	h.cfg.CID = binary.BigEndian.AppendUint64(nil, h.cid)
	if h.cfg.Peer != nil {
		h.cfg.Peer = h.known
	}
	if h.cfg.PeerChain != nil {
		h.cfg.PeerChain = h.certified
	}
	if h.cfg.PSK != nil {
		h.cfg.PSK = h.psk
	}
	e.own.byAddr[from], e.own.byCID[h.cid] = h, h
	e.metrics.halfOpen.Inc()
	h.start()
}

func (h *half) psk(identity []byte) ([]byte, error) {
	key, err := h.e.cfg.Keys.PSK(h.e.ctx, identity)
	return key, judged(err)
}

func (h *half) known(spki []byte) error {
	keys, ok := h.e.cfg.Keys.(RawKeys)
	if !ok {
		return dtls12.ErrUnknown
	}
	return judged(keys.Known(h.e.ctx, spki))
}

func (h *half) certified(chain []*x509.Certificate) error {
	keys, ok := h.e.cfg.Keys.(Certificates)
	if !ok {
		return dtls12.ErrUnknown
	}
	return judged(keys.Certified(h.e.ctx, chain))
}

// judged tells package dtls12 whom nobody knows.
func judged(err error) error {
	if errors.Is(err, ErrUnknown) {
		err = fmt.Errorf("%w: %w", dtls12.ErrUnknown, err)
	}
	return err
}

// receive takes a record that is not application data.
func (h *half) receive(raw []byte) {
	switch {
	case h.done:
		h.m.Receive(raw, time.Now()) // our last flight may have been lost
		h.flush()
		return
	case len(h.in) >= halfRoom || h.size+len(raw) > halfBytes:
		h.e.metrics.dropped.WithLabelValues("handshake").Inc()
		return
	}
	h.in, h.size = append(h.in, bytes.Clone(raw)), h.size+len(raw)
	h.start()
}

// record is told of each protected record of the peer.
func (h *half) record(r *record.Record, raw []byte, size int) {
	if h.done && h.application(r, size) {
		return
	}
	h.receive(raw)
}

// application takes the session over when the record holds application data, or
// the peer's goodbye.
func (h *half) application(r *record.Record, size int) bool {
	if r.Epoch != epoch || (r.Type == record.ConnectionID) != (h.session.cid != 0) {
		return false
	}
	kind, _, err := h.reader.Open(nil, r)
	if err != nil || kind == record.Handshake {
		return false
	}
	if s := h.takeOver(); s != nil {
		s.record(r, h.addr, size, time.Now())
	}
	h.e.metrics.handovers.Inc()
	return true
}

// start has the job run.
func (h *half) start() {
	if !h.running {
		h.running = true
		h.e.crew.do(h.work)
	}
}

// work is the job: until nothing is left to do.
func (h *half) work() {
	e := h.e
	for {
		e.mu.Lock()
		in, expired := h.in, h.expired
		h.in, h.size, h.expired = nil, 0, false
		if h.gone || len(in) == 0 && !expired && h.hello == nil {
			h.running = false
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		now := time.Now()
		if h.hello != nil {
			h.m, h.hello = dtls12.Accept(&h.cfg, h.hello, now), nil
		}
		for len(in) > 0 && !h.m.Done() && h.m.Err() == nil {
			h.m.Receive(in[0], now)
			in = in[1:]
		}
		if expired {
			h.m.Expire(now)
		}
		h.flush()
		switch {
		case h.m.Err() != nil:
			h.failed()
		case h.m.Done():
			h.finish(in)
			return
		default:
			e.mu.Lock()
			h.plan()
			e.mu.Unlock()
		}
	}
}

// flush sends what the machine has to say.
func (h *half) flush() {
	for _, d := range h.m.Output() {
		h.e.out.push(h.addr, h.local, append(h.e.out.buffer(), d...))
	}
}

// failed tells why a handshake came to nothing.
func (h *half) failed() {
	e := h.e
	e.log.DebugContext(e.ctx, "handshake failed", "peer", h.addr, "err", h.m.Err())
	e.mu.Lock()
	defer e.mu.Unlock()
	reason := "failed"
	if errors.Is(h.m.Err(), dtls12.ErrUnknown) {
		reason = "unknown"
	}
	h.drop(reason)
}

// finish learns who the peer is: its Finished was verified. rest came after that.
func (h *half) finish(rest [][]byte) {
	e := h.e
	x := h.m.Result()
	proof := Proof{Identity: x.Identity, PublicKey: x.PeerKey, Exporter: x.Export}
	via := coap.DTLSPSK
	switch {
	case x.PeerChain != nil:
		via = coap.DTLSCert
		for _, c := range x.PeerChain {
			proof.Certificates = append(proof.Certificates, c.Raw)
		}
	case x.PeerKey != nil:
		via = coap.DTLSRPK
	}
	subject, denied := e.cfg.Keys.Admit(e.ctx, proof)
	standing := e.standingOf(subject, via, h.addr, denied)

	e.mu.Lock()
	defer e.mu.Unlock()
	rest = append(rest, h.in...)
	h.in, h.size, h.running = nil, 0, false
	if h.gone {
		return
	}
	s := e.newSession(via, h.addr)
	s.cameTo(h.local)
	s.suite, s.read, s.write = x.Suite, x.Read, x.Write
	s.standing = standing
	s.setSubject(subject)
	s.setPeerCID(x.PeerCID)
	if x.CID != nil {
		s.cid = h.cid
	}
	if denied != nil {
		e.log.WarnContext(e.ctx, "association not admitted yet", "peer", h.addr, "err", denied)
		s.rare().pending = &proof
	}
	h.session, h.reader, h.done, h.since = s, mustCipher(s.suite, &s.read), true, time.Now()
	e.metrics.handshakes.WithLabelValues(h.kind, "done").Inc()
	h.plan()
	e.came = h.local
	for _, b := range rest {
		if r, _, err := record.Next(b, cidSize); err == nil {
			e.record(&r, b, h.addr, len(b), time.Now())
		}
	}
}

// plan has the wheel tell when the machine is to look at its clock, or how long
// it all may take.
func (h *half) plan() {
	if h.planned || h.gone {
		return
	}
	h.planned = true
	end := h.began.Add(handshakeTimeout)
	if h.done {
		end = h.since.Add(takeOverAfter)
	} else if d := h.m.Deadline(); !d.IsZero() && d.Before(end) {
		end = d
	}
	h.e.wheel.add(h, max(time.Until(end), 0))
}

// due is called by the wheel.
func (h *half) due(*Endpoint) {
	h.planned = false
	now := time.Now()
	switch {
	case h.gone:
	case h.done && now.Sub(h.since) >= takeOverAfter:
		h.takeOver() // although the peer said nothing
	case h.done:
		h.plan()
	case now.Sub(h.began) >= handshakeTimeout:
		h.drop("timeout")
	default:
		h.expired = true
		h.start()
	}
}

// yield makes room for a handshake of another kind, and says whether it did: when
// this one is finished, or had its time.
func (h *half) yield() bool {
	if !h.done && time.Since(h.began) < handshakeGrace {
		return false
	}
	h.end("given-up")
	return true
}

// end ends a handshake: a finished one becomes a session.
func (h *half) end(reason string) {
	if h.done {
		h.takeOver()
	} else {
		h.drop(reason)
	}
}

// takeOver makes the session of a finished handshake known; nil: there is no room
// for it.
func (h *half) takeOver() *session {
	s := h.session
	s.countFrom(h.m.Number())
	h.forget()
	h.session, h.reader, h.m = nil, nil, nil
	if !h.e.register(s) {
		return nil
	}
	h.e.soon(task{f: s.opened})
	return s
}

// drop gives a handshake up.
func (h *half) drop(reason string) {
	if h.gone {
		return
	}
	h.e.metrics.handshakes.WithLabelValues(h.kind, reason).Inc()
	h.forget()
}

// forget removes the handshake from the tables.
func (h *half) forget() {
	if h.gone {
		return
	}
	h.gone = true
	o := &h.e.own
	if o.byAddr[h.addr] == h {
		delete(o.byAddr, h.addr)
	}
	delete(o.byCID, h.cid)
	h.in, h.size = nil, 0
	h.e.metrics.halfOpen.Dec()
}

// oldest is the handshake to be given up for another: the oldest that is not
// finished and had its time; nil: none.
func (o *halves) oldest(now time.Time) (victim *half) {
	for _, h := range o.byAddr {
		if now.Sub(h.began) >= handshakeGrace && (victim == nil || h.began.Before(victim.began)) {
			victim = h
		}
	}
	return victim
}
