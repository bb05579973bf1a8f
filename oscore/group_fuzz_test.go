package oscore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// state is everything of a group that a message could change.
func (g *Group) state() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := ""
	for _, c := range []*groupContext{g.now, g.next, g.old} {
		if c == nil {
			continue
		}
		out += fmt.Sprintf("%x purged %v", c.gid, c.purged)
		for e := c.recency.Front(); e != nil; e = e.Next() {
			r := e.Value.(*groupRecipient)
			out += fmt.Sprintf(" %x %x %+v %x", r.id, r.cred, r.state.window.State(), r.state.echo)
		}
		if c.sender != nil {
			out += fmt.Sprintf(" own %d", c.sender.seq.Used())
		}
	}
	return out
}

// FuzzGroupUnprotect reads arbitrary bytes as requests and as responses: nothing
// panics, what is refused changes nothing, and nothing is ever accepted that the
// peer did not send.
func FuzzGroupUnprotect(f *testing.F) {
	s := newSite(f, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	genuine := map[string]bool{}
	var exchanges []*GroupExchange
	for i, mode := range []Mode{GroupMode, PairwiseMode} {
		req, x := ask(f, client, mode, "b", get("/x"))
		exchanges = append(exchanges, x)
		first := must(req.MarshalBinary())
		_, sx, err := server.UnprotectRequest(nil, req)
		if err != nil {
			f.Fatal(err)
		}
		second := must(must(sx.ProtectIn(f.Context(), nil, Mode(1-i), content("x"))).MarshalBinary())
		for _, b := range [][]byte{first, second} {
			f.Add(b)
			genuine[string(protectedPart(must(coap.DecodeMessage(b))))] = true
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := coap.DecodeMessage(b)
		if err != nil {
			return
		}
		before := server.state()
		if _, x, err := server.UnprotectRequest(nil, m); err == nil || x != nil {
			t.Fatalf("accepted as a request: %x", b) // the genuine ones are replays
		}
		if after := server.state(); after != before {
			t.Fatalf("state changed\n%s\n%s", before, after)
		}
		before = client.state()
		for _, x := range exchanges {
			if _, _, err := x.Unprotect(nil, m); err == nil && !genuine[string(protectedPart(m))] {
				t.Fatalf("accepted as a response: %x", b)
			} else if err != nil && client.state() != before {
				t.Fatalf("state changed by %x", b)
			}
			before = client.state()
		}
	})
}

// protectedPart is what protection covers: the OSCORE option and the payload.
func protectedPart(m *coap.Message) []byte {
	value, _ := m.Options.Get(coap.OSCOREOption)
	return append(append([]byte{}, value...), m.Payload...)
}

// arbitrary is a random message.
func arbitrary(r *rand.Rand, code coap.Code) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, Code: code, ID: uint16(r.Uint32()), Token: make([]byte, r.IntN(9))}
	ids := []coap.OptionID{coap.UriPath, coap.UriQuery, coap.Accept, coap.ContentFormatOption, coap.ETag, coap.MaxAge, 2049, 65000}
	for range r.IntN(8) {
		value := make([]byte, r.IntN(3))
		for i := range value {
			value[i] = byte(r.Uint32())
		}
		m.Options.Add(ids[r.IntN(len(ids))], value)
	}
	m.Payload = make([]byte, r.IntN(2000))
	for i := range m.Payload {
		m.Payload[i] = byte(r.Uint32())
	}
	return m
}

// sameInner says whether two messages say the same.
func sameInner(a, b *coap.Message) bool {
	if a.Code != b.Code || !bytes.Equal(a.Payload, b.Payload) || !bytes.Equal(a.Token, b.Token) || len(a.Options) != len(b.Options) {
		return false
	}
	for i := range a.Options {
		if a.Options[i].ID != b.Options[i].ID || !bytes.Equal(a.Options[i].Value, b.Options[i].Value) {
			return false
		}
	}
	return true
}

// FuzzGroupIdentity: what is protected is read as it was, in every combination of
// modes, for arbitrary messages.
func FuzzGroupIdentity(f *testing.F) {
	s := newSite(f, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	for i := range 8 {
		f.Add(uint64(i))
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		methods := []coap.Code{coap.GET, coap.POST, coap.PUT, coap.DELETE, coap.FETCH, coap.PATCH, coap.IPATCH}
		req := arbitrary(r, methods[r.IntN(len(methods))])
		p, x := ask(t, client, Mode(seed&1), "b", req)
		got, sx, err := server.UnprotectRequest(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		if !sameInner(got, req) {
			t.Fatalf("request\n%+v\n%+v", got, req)
		}
		for i := range 1 + int(1-seed&1) {
			resp := arbitrary(r, coap.Code(2+2*r.IntN(2))<<5|coap.Code(r.IntN(5)))
			back := wire(t, must(sx.ProtectIn(t.Context(), nil, Mode(r.IntN(2)), resp)))
			got, who, err := x.Unprotect(nil, back)
			if err != nil {
				t.Fatal(err)
			}
			if !sameInner(got, resp) || string(who.KID) != "b" || who.Numbered != (i > 0) {
				t.Fatalf("response\n%+v\n%+v", got, resp)
			}
		}
	})
}

// FuzzGroupVerify: arbitrary bytes never verify and never panic.
func FuzzGroupVerify(f *testing.F) {
	s := newSite(f, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	v := s.verifier(s.creds)
	req, _ := ask(f, client, GroupMode, "", get("/x"))
	seen := must(v.VerifyRequest(req))
	resp := serve(f, server, req, GroupMode, "x")
	genuine := map[string]bool{string(protectedPart(req)): true, string(protectedPart(resp)): true}
	f.Add(must(req.MarshalBinary()))
	f.Add(must(resp.MarshalBinary()))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := coap.DecodeMessage(b)
		if err != nil || genuine[string(protectedPart(m))] {
			return
		}
		if _, err := v.VerifyRequest(m); err == nil {
			t.Fatalf("verifies as a request: %x", b)
		}
		if err := v.VerifyResponse(seen, m, []byte("b")); err == nil {
			t.Fatalf("verifies as a response: %x", b)
		}
	})
}

// TestGroupEveryBit: a message of which any bit of the option or payload differs is
// refused, and so is every prefix of its payload.
func TestGroupEveryBit(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	for _, mode := range []Mode{GroupMode, PairwiseMode} {
		req, _ := ask(t, client, mode, "b", get("/x"))
		before := server.state()
		refused := func(what string, m *coap.Message) {
			t.Helper()
			if _, x, err := server.UnprotectRequest(nil, m); err == nil || x != nil {
				t.Errorf("%v: %s is accepted", mode, what)
			}
			if after := server.state(); after != before {
				t.Fatalf("%v: %s changed the state", mode, what)
			}
		}
		for i := range req.Payload {
			m := req.Clone()
			m.Payload[i] ^= 1 << (i % 8)
			refused(fmt.Sprintf("payload byte %d", i), m)
			m = req.Clone()
			m.Payload = m.Payload[:i]
			refused(fmt.Sprintf("prefix of %d", i), m)
		}
		value, _ := req.Options.Get(coap.OSCOREOption)
		for i := range 8 * len(value) {
			m := req.Clone()
			v := bytes.Clone(value)
			v[i/8] ^= 1 << (i % 8)
			m.Options.Set(coap.OSCOREOption, v)
			refused(fmt.Sprintf("option bit %d", i), m)
		}
		if _, _, err := server.UnprotectRequest(nil, req); err != nil {
			t.Error(err)
		}
	}
}
