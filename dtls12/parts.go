package dtls12

import (
	"slices"

	"github.com/seed4911071e/groupgate/record"
)

// A ClientHello may come in several fragments (RFC 6347, Section 4.2.3), of which
// the first must have all that a cookie needs: version, random, session ID and the
// cookie itself. So whoever has not returned a cookie is answered by the first
// fragment alone, and nothing is kept of the others. Clients with a path of so few
// bytes that these do not fit are not heard.

// Part is a fragment of a ClientHello. It refers to the record.
type Part struct {
	fragment
	record uint64
}

// ReadParts reads a record of epoch 0 as fragments of ClientHellos; nil when it
// holds anything else, or one that is longer than is taken.
func ReadParts(r *record.Record) (parts []Part) {
	if r.Type != record.Handshake || r.Epoch != 0 {
		return nil
	}
	for b := r.Fragment; len(b) > 0; {
		f, rest, ok := nextFragment(b)
		if !ok || f.kind != typeClientHello || len(f.body) == 0 || f.length > maxHello || len(parts) == maxPieces {
			return nil
		}
		parts, b = append(parts, Part{f, r.Seq}), rest
	}
	return parts
}

// Front is the ClientHello as far as [Cookies.Verify] needs it; nil: that is not
// in this fragment.
func (p *Part) Front() *ClientHello {
	if p.offset != 0 {
		return nil
	}
	r := reader{b: p.body}
	h := readFront(&r)
	if r.bad {
		return nil
	}
	h.seq, h.record = p.seq, p.record
	return h
}

// Gathering is a ClientHello of which fragments have come: of at most 4096 bytes, in
// at most 32 pieces that are apart from each other.
type Gathering struct {
	Random [32]byte
	seq    uint16
	record uint64 // the highest sequence number of a record of it
	whole  assembly
}

// Gather begins with a ClientHello whose [Part.Front] had its cookie; p itself is
// still to be added.
func Gather(p *Part, front *ClientHello) *Gathering {
	return &Gathering{Random: front.Random, seq: p.seq, whole: assembly{kind: typeClientHello, body: make([]byte, p.length)}}
}

// Add takes a fragment in; false: it is of another ClientHello. Fragments come in
// any order, overlap and repeat.
func (g *Gathering) Add(p *Part) bool {
	if p.seq != g.seq || !g.whole.add(&p.fragment) {
		return false
	}
	g.record = max(g.record, p.record)
	return true
}

// Hello is the ClientHello once it is whole; nil with ok: it is malformed. Its
// cookie is to be verified again, for what it covers may have come twice.
func (g *Gathering) Hello() (h *ClientHello, ok bool) {
	if !g.whole.whole() {
		return nil, false
	}
	h, err := decodeClientHello(g.whole.body)
	if err != nil {
		return nil, true
	}
	// RFC 6347, Section 4.2.6: as if it had come in one piece.
	h.seq, h.record, h.message = g.seq, g.record, wrap(typeClientHello, g.seq, g.whole.body)
	return h, true
}

// Of says that a fragment with this front is one of those that are gathered.
func (g *Gathering) Of(p *Part, front *ClientHello) bool {
	return p.seq == g.seq && p.length == len(g.whole.body) && slices.Equal(front.Random[:], g.Random[:])
}
