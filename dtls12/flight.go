package dtls12

import (
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// part is what a flight is made of: one message or a ChangeCipherSpec.
type part struct {
	kind  uint8 // of the record
	epoch uint16
	body  []byte // of a message: the whole of it
}

// sender is the half of a handshake that speaks.
type sender struct {
	writer   *record.Cipher // nil: no keys yet
	peerCID  []byte         // by which the peer wants to be named
	message  uint16         // message_seq of the next message
	numbers  [2]uint64      // of the next record of each epoch
	flight   []part         // the last: for the case that it is lost
	wait     time.Duration
	deadline time.Time // zero: nothing is waited for
	out      [][]byte
}

// Output returns the datagrams that are to be sent, and forgets them.
func (h *Handshake) Output() [][]byte {
	out := h.out
	h.out = nil
	return out
}

// Deadline is when Expire is to be called; zero: never.
func (h *Handshake) Deadline() time.Time { return h.deadline }

// Number is the sequence number of the next record of ours, which the session
// goes on with. Nothing may be asked of the handshake after that.
func (h *Handshake) Number() uint64 { return h.numbers[1] }

// Expire sends the last flight again when its time has come (RFC 6347, Section
// 4.2.4.1). When to give up is the owner's to say.
func (h *Handshake) Expire(now time.Time) {
	if h.deadline.IsZero() || now.Before(h.deadline) {
		return
	}
	h.wait = min(2*h.wait, maxTimeout)
	h.deadline = now.Add(h.wait)
	h.transmit()
}

// begin starts a new flight: what the peer answers ends the one before.
func (h *Handshake) begin() { h.flight = nil }

// add appends a message to the flight and the transcript.
func (h *Handshake) add(kind uint8, body []byte) {
	m := wrap(kind, h.message, body)
	h.message++
	h.transcript = append(h.transcript, m...)
	epoch := uint16(0)
	if kind == typeFinished {
		h.flight = append(h.flight, part{kind: record.ChangeCipherSpec, body: []byte{1}})
		epoch = 1
	}
	h.flight = append(h.flight, part{record.Handshake, epoch, m})
}

// send sends the flight; wait says that an answer is expected.
func (h *Handshake) send(now time.Time, wait bool) {
	h.repeats, h.again = 0, now.Add(repeatEvery)
	h.wait, h.deadline = firstTimeout, time.Time{}
	if wait {
		h.deadline = now.Add(h.wait)
	}
	h.transmit()
}

// transmit makes datagrams of the flight, in records with new numbers.
func (h *Handshake) transmit() {
	var d []byte
	for _, p := range h.flight {
		if p.kind != record.Handshake {
			d = h.pack(d, p)
			continue
		}
		const room = mtu - 100 // header, connection ID of usual length and tag
		body, length := p.body[headerSize:], len(p.body)-headerSize
		for offset := 0; ; {
			n := min(length-offset, room)
			f := append([]byte(nil), p.body[:6]...) // type, length and message_seq
			f = appendUint(f, 3, offset)
			f = appendVector(f, 3, body[offset:offset+n])
			d = h.pack(d, part{p.kind, p.epoch, f})
			if offset += n; offset >= length {
				break
			}
		}
	}
	h.push(d)
}

// pack appends a record to a datagram, or to a new one when it is full.
func (h *Handshake) pack(d []byte, p part) []byte {
	var b []byte
	seq := h.numbers[p.epoch]
	if seq > record.MaxSeq {
		return d
	}
	h.numbers[p.epoch]++
	if p.epoch == 0 {
		b = record.AppendPlain(nil, p.kind, seq, p.body)
	} else {
		b = h.writer.Seal(nil, p.kind, p.epoch, seq, h.peerCID, p.body)
	}
	if len(d) > 0 && len(d)+len(b) > mtu {
		h.push(d)
		d = nil
	}
	return append(d, b...)
}

func (h *Handshake) push(d []byte) {
	if len(d) > 0 {
		h.out = append(h.out, d)
	}
}
