package dtls12

import (
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// fragment is a piece of a handshake message (RFC 6347, Section 4.2.2).
type fragment struct {
	kind   uint8
	length int // of the whole message
	seq    uint16
	offset int
	body   []byte
}

// nextFragment reads the first fragment of a record.
func nextFragment(b []byte) (f fragment, rest []byte, ok bool) {
	r := reader{b: b}
	f = fragment{kind: uint8(r.uint(1)), length: r.uint(3), seq: uint16(r.uint(2)), offset: r.uint(3)}
	size := r.uint(3)
	f.body = r.take(size)
	return f, r.b, !r.bad && f.offset+size <= f.length
}

// wrap makes a whole message of a body.
func wrap(kind uint8, seq uint16, body []byte) []byte {
	b := make([]byte, 0, headerSize+len(body))
	b = append(b, kind)
	b = appendUint(b, 3, len(body))
	b = appendUint(b, 2, int(seq))
	b = appendUint(b, 3, 0)
	return appendVector(b, 3, body)
}

// assembly is a message that comes in pieces.
type assembly struct {
	kind   uint8
	epoch  uint16
	body   []byte
	pieces [][2]int // from, to; sorted, apart from each other
}

// add puts a piece in; false: it does not belong to the others.
func (a *assembly) add(f *fragment) bool {
	if a.kind != f.kind || len(a.body) != f.length {
		return false
	}
	from, to := f.offset, f.offset+len(f.body)
	merged := make([][2]int, 0, len(a.pieces)+1)
	at := 0
	for _, p := range a.pieces {
		switch {
		case p[1] < from:
			merged = append(merged, p)
			at = len(merged)
		case p[0] > to:
			merged = append(merged, p)
		default:
			from, to = min(from, p[0]), max(to, p[1])
		}
	}
	if len(merged) >= maxPieces {
		return false
	}
	copy(a.body[f.offset:], f.body)
	a.pieces = append(merged[:at:at], append([][2]int{{from, to}}, merged[at:]...)...)
	return true
}

func (a *assembly) whole() bool {
	return len(a.pieces) == 1 && a.pieces[0] == [2]int{0, len(a.body)}
}

// receiver is the half of a handshake that hears.
type receiver struct {
	reader  *record.Cipher // nil: no keys yet
	cid     []byte         // by which the peer names us, once it is negotiated
	next    uint16         // message_seq of the next message
	ahead   map[uint16]*assembly
	held    int // bytes in ahead
	early   [][]byte
	lastMsg uint16 // the last message of the flight of the peer that was answered
	repeats int
	again   time.Time
}

func (r *receiver) forget() { r.ahead, r.held, r.early = nil, 0, nil }

// Receive takes a datagram, or a record of one, and answers what it completes.
// What cannot be read is as good as lost.
func (h *Handshake) Receive(b []byte, now time.Time) {
	for len(b) > 0 && h.phase != failed {
		r, rest, err := record.Next(b, len(h.cid))
		if err != nil {
			return
		}
		h.record(&r, b[:len(b)-len(rest)], now)
		b = rest
	}
}

func (h *Handshake) record(r *record.Record, raw []byte, now time.Time) {
	switch {
	case r.Epoch == 0 && r.Type == record.Handshake:
		h.fragments(r.Fragment, 0, now)
	case r.Epoch == 0 && r.Type == record.Alert:
		h.alerted(r.Fragment)
	case r.Epoch != 1 || r.Type == record.ChangeCipherSpec:
		// What ChangeCipherSpec says the epoch of the next record says as well,
		// and that cannot be lost.
	case h.reader == nil:
		if len(h.early) < maxEarly && len(raw) <= maxEarlySize {
			h.early = append(h.early, append([]byte(nil), raw...))
		}
	case (r.Type == record.ConnectionID) != (len(h.cid) > 0):
		// RFC 9146, Section 3: with a connection ID all records have it.
	default:
		kind, content, err := h.reader.Open(nil, r)
		switch {
		case err != nil:
		case kind == record.Handshake:
			h.fragments(content, 1, now)
		case kind == record.Alert:
			h.alerted(content)
		}
	}
}

// alerted reads an alert of the peer. In clear anybody could have sent it; but
// who sees the handshake can hinder it anyway, and who does not must guess port
// and moment.
func (h *Handshake) alerted(b []byte) {
	if h.phase == done || len(b) != 2 || b[0] != levelFatal && Alert(b[1]) != CloseNotify {
		return
	}
	h.phase, h.err, h.deadline = failed, &AlertError{Alert: Alert(b[1]), Remote: true}, time.Time{}
}

// fragments takes the pieces of messages in a record.
func (h *Handshake) fragments(b []byte, epoch uint16, now time.Time) {
	for len(b) > 0 {
		f, rest, ok := nextFragment(b)
		if !ok {
			return
		}
		h.fragment(&f, epoch, now)
		b = rest
	}
	h.proceed(now)
}

func (h *Handshake) fragment(f *fragment, epoch uint16, now time.Time) {
	if h.client && h.phase == awaitHello {
		switch {
		case f.kind == typeHelloVerifyRequest && f.offset == 0 && len(f.body) == f.length:
			// The server keeps no count of them.
			h.verifyRequest(f.body, now)
			return
		case f.kind == typeServerHello:
			h.next = f.seq
		}
	}
	ahead := f.seq - h.next
	switch {
	case f.seq < h.next:
		h.repeated(f, now)
		return
	case ahead >= maxAhead || f.length > maxMessage || h.phase >= done:
		return
	}
	a := h.ahead[f.seq]
	if a != nil && a.epoch < epoch {
		// What is authentic takes the place of what anybody could have sent.
		h.held -= len(a.body)
		a = nil
	}
	if a == nil {
		if h.held+f.length > maxAssembly {
			return
		}
		if h.ahead == nil {
			h.ahead = map[uint16]*assembly{}
		}
		a = &assembly{kind: f.kind, epoch: epoch, body: make([]byte, f.length)}
		h.ahead[f.seq] = a
		h.held += f.length
	}
	if a.epoch == epoch {
		a.add(f)
	}
}

// repeated: the peer sends the end of its last flight again: ours was lost (RFC
// 6347, Section 4.2.4).
func (h *Handshake) repeated(f *fragment, now time.Time) {
	if f.seq != h.lastMsg || h.repeats >= maxRepeats || now.Before(h.again) {
		return
	}
	h.repeats++
	h.again = now.Add(repeatEvery)
	h.transmit()
}

// proceed handles the messages that are whole, in their order.
func (h *Handshake) proceed(now time.Time) {
	for h.phase < done {
		a := h.ahead[h.next]
		if a == nil || !a.whole() {
			return
		}
		delete(h.ahead, h.next)
		h.held -= len(a.body)
		seq := h.next
		h.next++
		// RFC 6347, Section 4.1: what protects a message is part of what it means.
		if (a.kind == typeFinished) != (a.epoch == 1) {
			h.fail(UnexpectedMessage, "message %d in epoch %d", a.kind, a.epoch)
			return
		}
		handle := h.fromClient
		if h.client {
			handle = h.fromServer
		}
		handle(a.kind, seq, a.body, now)
		if h.reader != nil && len(h.early) > 0 && h.phase == awaitFinished {
			early := h.early
			h.early = nil
			for _, b := range early {
				h.Receive(b, now)
			}
		}
	}
}
