package endpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
)

// handshake is a peer until its session is taken over. All fields but the
// first six are guarded by Endpoint.mu.
//
//	under way ── Finished verified ──▶ done ── first application record ──▶ session
//	    │                               └───── or a minute of silence ──────▶
//	    └─ alert, time-out, given up ──▶ gone
//
// While it is done and not yet taken over pion repeats our last flight whenever
// the peer repeats its own: only an application record shows that the peer got
// it.
type handshake struct {
	e     *Endpoint
	addr  netip.AddrPort
	local netip.Addr // of this machine
	began time.Time
	pipe  *datagram.Pipe

	stranger atomic.Bool // the identity is unknown: an alert says so

	random   [32]byte // of the ClientHello
	conn     *dtls.Conn
	stop     context.CancelFunc
	verified bool // the peer returned a cookie
	cid      uint64
	gone     bool

	early [][]byte // protected records that came before it was done

	done    bool
	session *session // as it will be, with keys
	reader  *record.Cipher
}

// begin makes a handshake and starts it.
func (e *Endpoint) begin(first hello, from netip.AddrPort, now time.Time) *handshake {
	h := &handshake{e: e, addr: from, local: e.came, began: now, random: first.random}
	h.pipe = datagram.NewPipe(e.sock.LocalAddr(), net.UDPAddrFromAddrPort(from), h.reply)
	ctx, cancel := context.WithTimeout(e.ctx, handshakeTimeout)
	h.stop = cancel
	e.handshakes[from] = h
	e.metrics.halfOpen.Inc()
	e.wheel.add(unverified{h}, cookieTimeout)
	e.crew.do(func() { h.run(ctx) })
	return h
}

// unverified looks whether the peer returned its cookie.
type unverified struct{ h *handshake }

func (u unverified) due(*Endpoint) {
	if !u.h.verified && !u.h.done {
		u.h.drop("timeout")
	}
}

// options are those of every handshake: pre-shared keys with 8-byte tags first,
// then their kin (RFC 9202, Section 3.3; RFC 7252, Section 9.1.3.1), cookies
// before state, extended master secret, connection IDs for peers behind NAT.
func (h *handshake) options() []dtls.ServerOption {
	e := h.e
	opts := []dtls.ServerOption{
		dtls.WithPSK(func(identity []byte) ([]byte, error) {
			key, err := e.cfg.Keys.PSK(e.ctx, identity)
			if errors.Is(err, ErrUnknown) {
				h.stranger.Store(true)
			}
			return key, err
		}),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithConnectionIDGenerator(h.newCID),
		dtls.WithLoggerFactory(datagram.Quiet{}),
	}
	return append(opts, e.cfg.Options...)
}

// newCID gives the peer a connection ID by which nobody else is known.
func (h *handshake) newCID() []byte {
	e := h.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.cid != 0 {
		delete(e.halfByCID, h.cid) // pion begins anew
	}
	h.cid = e.freeCID()
	if !h.gone {
		e.halfByCID[h.cid] = h
	}
	return binary.BigEndian.AppendUint64(nil, h.cid)
}

// run is the handshake's goroutine: until it is done.
func (h *handshake) run(ctx context.Context) {
	e := h.e
	defer h.stop()
	conn, err := dtls.ServerWithOptions(h.pipe, h.pipe.Peer(), h.options()...)
	if err != nil {
		e.log.ErrorContext(ctx, "handshakes are not possible", "err", err)
		h.fail("failed")
		return
	}
	err = conn.HandshakeContext(ctx)
	if err == nil {
		err = h.finish(ctx, conn)
	}
	if err != nil {
		reason := "failed"
		if errors.Is(err, context.DeadlineExceeded) {
			reason = "timeout"
		}
		e.log.DebugContext(ctx, "handshake failed", "peer", h.addr, "err", err)
		h.fail(reason)
		_ = conn.Close() // it failed already
		_ = h.pipe.Close()
	}
}

// finish learns who the peer is and has its keys ready: the Finished of the
// client was verified.
func (h *handshake) finish(ctx context.Context, conn *dtls.Conn) error {
	e := h.e
	st, ok := conn.ConnectionState()
	if !ok {
		return errState
	}
	x, err := export(&st)
	if err != nil {
		return err
	}
	suite, read, write, err := x.Keys()
	if err != nil {
		return err
	}
	proof := Proof{Identity: bytes.Clone(st.IdentityHint), Certificates: st.PeerCertificates, Exporter: x.Exporter}
	via := coap.DTLSPSK
	if len(proof.Certificates) > 0 {
		via, proof.Identity = coap.DTLSCert, nil
	}
	subject, denied := e.cfg.Keys.Admit(ctx, proof)
	standing := e.standingOf(subject, via, h.addr, denied)

	e.mu.Lock()
	defer e.mu.Unlock()
	if h.gone {
		return coap.ErrGone
	}
	s := e.newSession(via, h.addr)
	s.cameTo(h.local)
	s.suite, s.read, s.write = suite, read, write
	s.standing = standing
	s.setSubject(subject)
	s.setPeerCID(x.RemoteConnectionID)
	if len(x.LocalConnectionID) == cidSize {
		s.cid = binary.BigEndian.Uint64(x.LocalConnectionID)
	}
	if denied != nil {
		e.log.WarnContext(ctx, "association not admitted yet", "peer", h.addr, "err", denied)
		s.rare().pending = &proof
	}
	h.session, h.conn, h.done = s, conn, true
	h.reader = mustCipher(suite, &s.read)
	e.metrics.handshakes.WithLabelValues(kindPSK, "done").Inc()
	e.wheel.add(h, takeOverAfter)
	early := h.early
	e.came = h.local
	h.early = nil
	for _, b := range early {
		r, _, err := record.Next(b, cidSize)
		switch {
		case err != nil:
		case h.gone:
			s.record(&r, h.addr, len(b), time.Now())
		default:
			h.application(&r, len(b))
		}
	}
	return nil
}

// due takes the session over although the peer said nothing.
func (h *handshake) due(*Endpoint) {
	if !h.gone {
		h.takeOver()
	}
}

// record is told of each record of the peer.
func (h *handshake) record(r *record.Record, raw []byte, size int) {
	if r.Epoch != 0 {
		if h.done && h.application(r, size) {
			return
		}
		if !h.done && len(h.early) < maxEarly {
			// Perhaps application data that overtook the end of the handshake.
			h.early = append(h.early, bytes.Clone(raw))
		}
	}
	h.pipe.Deliver(raw)
}

// application takes the session over when the record holds application data,
// or the peer's goodbye.
func (h *handshake) application(r *record.Record, size int) bool {
	e := h.e
	if r.Epoch != epoch || (r.Type == record.ConnectionID) != (h.session.cid != 0) {
		return false
	}
	kind, _, err := h.reader.Open(nil, r)
	if err != nil || kind == record.Handshake {
		return false
	}
	s := h.takeOver()
	if s == nil {
		return true
	}
	s.record(r, h.addr, size, time.Now())
	e.metrics.handovers.Inc()
	return true
}

// takeOver makes the session of a finished handshake known and lets pion go.
// pion must not be heard from the moment on at which its counter is read: a
// close_notify would use a number that the session uses again.
func (h *handshake) takeOver() *session {
	e := h.e
	h.pipe.Mute()
	st, ok := h.conn.ConnectionState()
	var x *record.State
	if ok {
		x, _ = export(&st)
	}
	h.forget()
	conn, p, s := h.conn, h.pipe, h.session
	// The wheel keeps h for a while, but is not to keep what pion holds.
	h.conn, h.session, h.reader = nil, nil, nil
	e.crew.do(func() {
		_ = conn.Close() // nobody hears it
		_ = p.Close()
	})
	if x == nil {
		e.metrics.handshakes.WithLabelValues(kindPSK, "failed").Inc()
		return nil
	}
	s.countFrom(x.SequenceNumber)
	if !e.register(s) {
		return nil
	}
	e.soon(task{f: s.opened})
	return s
}

// fail ends a handshake that came to nothing.
func (h *handshake) fail(reason string) {
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	h.drop(reason)
}

// drop gives a handshake up.
func (h *handshake) drop(reason string) {
	if h.gone {
		return
	}
	h.e.metrics.handshakes.WithLabelValues(kindPSK, reason).Inc()
	h.forget()
	h.stop()
}

// forget removes the handshake from the tables.
func (h *handshake) forget() {
	if h.gone {
		return
	}
	h.gone = true
	e := h.e
	if e.handshakes[h.addr] == h {
		delete(e.handshakes, h.addr)
	}
	if h.cid != 0 {
		delete(e.halfByCID, h.cid)
	}
	h.early = nil
	e.metrics.halfOpen.Dec()
}

// endHandshakes gives up all of them.
func (e *Endpoint) endHandshakes() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.handshakes {
		if h.done {
			h.takeOver() // to be told goodbye
		} else {
			h.drop("given-up")
		}
	}
	for _, h := range e.own.byAddr {
		h.end("given-up")
	}
	for e.leastGathered() {
	}
}
