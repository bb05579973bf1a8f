package secure

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

func keptRecords(t testing.TB) [][]byte {
	t.Helper()
	ex, err := oscore.Exchange{}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	plain := Carrier{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:5683")}
	var out [][]byte
	at := Carrier{Addr: netip.MustParseAddrPort("192.0.2.1:1"), Home: netip.MustParseAddr("2001:db8::1")}
	for _, m := range []interface{ append([]byte) []byte }{
		&boundRecord{link: "oscore-1", kid: "\x01", epoch: 3, over: plain, token: "t", exchange: ex},
		&boundRecord{link: "oscore-1", kid: "\x01", epoch: 3, over: Carrier{Link: "0011"}, exchange: ex},
		&carriedRecord{"oscore-1", Carrier{Addr: netip.MustParseAddrPort("192.0.2.1:1")}},
		&releasedRecord{"oscore-1", "t"}, goneRecord("oscore-2"),
		&boundRecord{link: "oscore-3", kid: "\x02", epoch: 3, over: at, token: "t", exchange: ex},
		&carriedRecord{"oscore-3", Carrier{Addr: at.Addr, Home: netip.MustParseAddr("192.0.2.9")}},
	} {
		out = append(out, m.append(nil))
	}
	return out
}

func TestKeptRecords(t *testing.T) {
	for _, b := range keptRecords(t) {
		v, err := decodeKept(b)
		if err != nil {
			t.Fatalf("%q: %v", b[0], err)
		}
		if again := v.(interface{ append([]byte) []byte }).append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x", b, again)
		}
		for n := range b {
			if _, err := decodeKept(b[:n]); err == nil {
				t.Errorf("%q: a prefix of %d bytes is read", b[0], n)
			}
		}
	}
}

// TestRecovery: what is read in order says what holds at the end.
func TestRecovery(t *testing.T) {
	k := keptRecords(t)
	for _, c := range []struct {
		name  string
		recs  [][]byte
		bound int
		over  string
	}{
		{"bound", k[:1], 1, "[fe80::1%eth0]:5683"},
		{"twice", [][]byte{k[0], k[0]}, 1, "[fe80::1%eth0]:5683"},
		{"two tokens", k[:2], 2, ""},
		{"elsewhere", k[:3], 2, "192.0.2.1:1"},
		{"one released", k[:4], 1, "192.0.2.1:1"},
		{"both", append(k[:4:4], (&releasedRecord{link: "oscore-1"}).append(nil)), 0, ""},
		{"another is gone", k, 1, "192.0.2.1:1"},
		{"gone", append(k[:3:3], goneRecord("oscore-1").append(nil)), 0, ""},
		{"nobody", k[2:], 0, ""},
		{"taken anew", append(k[:2:2], (&boundRecord{link: "oscore-1", kid: "\x01", epoch: 4, over: Carrier{Link: "x"}, exchange: k[1][len(k[1])-6:]}).append(nil)), 1, ""},
	} {
		var r Recovery
		for _, b := range c.recs {
			if err := r.Apply(b); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		n, over := 0, ""
		if got := r.of["oscore-1"]; got != nil {
			if n = len(got.bound); got.over.Addr.IsValid() {
				over = got.over.Addr.String()
			}
		}
		if n != c.bound || over != c.over {
			t.Errorf("%s: %d requests over %q, want %d over %q", c.name, n, over, c.bound, c.over)
		}
	}
}

func FuzzKept(f *testing.F) {
	for _, b := range keptRecords(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeKept(b)
		if err != nil {
			return
		}
		m := v.(interface{ append([]byte) []byte })
		if again := m.append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x", b, again)
		}
		var r Recovery
		if err := r.Apply(b); err != nil {
			t.Error(err)
		}
	})
}

// row has one context under every kid.
type row struct{ Stored }

func (r *row) Many(_ context.Context, kids [][]byte) (map[string]*Stored, error) {
	out := make(map[string]*Stored, len(kids))
	for _, kid := range kids {
		c := r.Stored
		c.ID2, c.Link = kid, coap.LinkID("oscore-"+string(kid))
		out[string(kid)] = &c
	}
	return out, nil
}

func (*row) Context(context.Context, []byte) (*Stored, error) { return nil, ErrNone }
func (*row) Take(context.Context, *Stored, bool) error        { return ErrNone }
func (*row) Reserve(context.Context, *Stored, uint64) error   { return ErrTaken }

// BenchmarkRestore brings contexts back that something is observed over, without
// reading them.
func BenchmarkRestore(b *testing.B) {
	const n = 10_000
	ex, err := oscore.Exchange{}.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	s := &row{Stored{Epoch: 3, Setup: oscore.Setup{
		Material: oscore.Material{ID: []byte{1}, MasterSecret: cose.NewSecret(make([]byte, 16))},
		Nonce1:   []byte("nonce one"), Nonce2: []byte("nonce two"), ID1: []byte{0xc0},
	}}}
	over := Carrier{Addr: netip.MustParseAddrPort("192.0.2.1:5683")}
	for b.Loop() {
		var r Recovery
		for i := range n {
			kid := fmt.Sprintf("%05d", i)
			m := &boundRecord{link: "oscore-" + kid, kid: kid, epoch: 3, over: over, token: "t", exchange: ex}
			if err := r.Apply(m.append(nil)); err != nil {
				b.Fatal(err)
			}
		}
		links, err := New(Config{Contexts: s}).Restore(b.Context(), &r, func(Carrier) coap.Link { return nil })
		if err != nil || len(links) != n {
			b.Fatal(len(links), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/context")
}
