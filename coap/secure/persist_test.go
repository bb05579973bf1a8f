package secure

import (
	"bytes"
	"net/netip"
	"testing"

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
	for _, m := range []interface{ append([]byte) []byte }{
		&boundRecord{link: "oscore-1", kid: "\x01", epoch: 3, over: plain, token: "t", exchange: ex},
		&boundRecord{link: "oscore-1", kid: "\x01", epoch: 3, over: Carrier{Link: "0011"}, exchange: ex},
		&carriedRecord{"oscore-1", Carrier{Addr: netip.MustParseAddrPort("192.0.2.1:1")}},
		&releasedRecord{"oscore-1", "t"}, goneRecord("oscore-2"),
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
