package record

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"testing"

	"github.com/pion/dtls/v3/pkg/crypto/ciphersuite"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
	"github.com/pion/dtls/v3/pkg/protocol"
	"github.com/pion/dtls/v3/pkg/protocol/recordlayer"
)

var suites = []Suite{PSKCCM8, PSKCCM, PSKGCM, ECDSACCM8, ECDSACCM, ECDSAGCM}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// pair derives keys here and by pion, which are to be the same.
func pair(t testing.TB, s Suite) (client, server Keys) {
	t.Helper()
	var c, v [32]byte
	copy(c[:], random(32))
	copy(v[:], random(32))
	master := random(48)
	client, server, err := Derive(s, master, c, v)
	if err != nil {
		t.Fatal(err)
	}
	want, err := prf.GenerateEncryptionKeys(master, c[:], v[:], 0, 16, 4, sha256.New)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(client.Key[:], want.ClientWriteKey) || !bytes.Equal(server.Key[:], want.ServerWriteKey) ||
		!bytes.Equal(client.IV[:], want.ClientWriteIV) || !bytes.Equal(server.IV[:], want.ServerWriteIV) {
		t.Fatal("other keys than pion's")
	}
	return client, server
}

func newCipher(t testing.TB, s Suite, k *Keys) *Cipher {
	t.Helper()
	c, err := NewCipher(s, k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// peer is pion's record protection at the other end.
type peer interface {
	Encrypt(pkt *recordlayer.RecordLayer, raw []byte) ([]byte, error)
	Decrypt(h recordlayer.Header, in []byte) ([]byte, error)
}

func pionClient(t testing.TB, s Suite, client, server Keys) peer {
	t.Helper()
	var p peer
	var err error
	switch {
	case s.gcm():
		p, err = ciphersuite.NewGCM(client.Key[:], client.IV[:], server.Key[:], server.IV[:])
	case s.tagSize() == 8:
		p, err = ciphersuite.NewCCM(ciphersuite.CCMTagLength8, client.Key[:], client.IV[:], server.Key[:], server.IV[:])
	default:
		p, err = ciphersuite.NewCCM(ciphersuite.CCMTagLength, client.Key[:], client.IV[:], server.Key[:], server.IV[:])
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAgainstPion: each reads what the other writes, with and without
// Connection ID, whatever the length.
func TestAgainstPion(t *testing.T) {
	for _, s := range suites {
		for _, cid := range [][]byte{nil, {7}, random(8), random(20)} {
			t.Run(fmt.Sprintf("%#04x/%d", uint16(s), len(cid)), func(t *testing.T) {
				client, server := pair(t, s)
				pion := pionClient(t, s, client, server)
				out, in := newCipher(t, s, &server), newCipher(t, s, &client)
				for n := range 200 {
					seq := mrand.Uint64N(MaxSeq)
					text := random(n)
					b := out.Seal(nil, ApplicationData, 1, seq, cid, text)
					if len(b) != n+out.Overhead(len(cid)) {
						t.Fatalf("%d bytes, not %d", len(b), n+out.Overhead(len(cid)))
					}
					h := recordlayer.Header{}
					if cid != nil {
						h.ConnectionID = make([]byte, len(cid))
					}
					plain, err := pion.Decrypt(h, b)
					if err != nil {
						t.Fatalf("pion on %d bytes: %v", n, err)
					}
					if err := h.Unmarshal(b); err != nil || h.SequenceNumber != seq || h.Epoch != 1 {
						t.Fatalf("header %+v, %v", h, err)
					}
					plain = plain[h.Size():]
					if cid != nil {
						var inner recordlayer.InnerPlaintext
						if err := inner.Unmarshal(plain); err != nil || inner.RealType != protocol.ContentTypeApplicationData {
							t.Fatalf("inner plaintext: %v", err)
						}
						plain = inner.Content
					}
					if !bytes.Equal(plain, text) {
						t.Fatalf("pion reads %x for %x", plain, text)
					}

					kind, got, err := open(in, pionSeal(t, pion, seq, cid, text, n%5), len(cid))
					if err != nil || kind != ApplicationData || !bytes.Equal(got, text) {
						t.Fatalf("of pion's %d bytes: type %d, %x, %v", n, kind, got, err)
					}
				}
			})
		}
	}
}

func open(c *Cipher, b []byte, cidSize int) (uint8, []byte, error) {
	r, rest, err := Next(b, cidSize)
	if err != nil {
		return 0, nil, err
	}
	if len(rest) != 0 {
		return 0, nil, errors.New("something is left")
	}
	return c.Open(nil, &r)
}

func pionSeal(t testing.TB, p peer, seq uint64, cid, text []byte, padding int) []byte {
	t.Helper()
	h := recordlayer.Header{Version: protocol.Version1_2, ContentType: protocol.ContentTypeApplicationData, Epoch: 1, SequenceNumber: seq, ContentLen: uint16(len(text))}
	body := text
	if len(cid) > 0 {
		inner := recordlayer.InnerPlaintext{Content: text, RealType: protocol.ContentTypeApplicationData, Zeros: uint(padding)}
		var err error
		if body, err = inner.Marshal(); err != nil {
			t.Fatal(err)
		}
		h.ContentType, h.ConnectionID, h.ContentLen = protocol.ContentTypeConnectionID, cid, uint16(len(body))
	}
	raw, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Encrypt(&recordlayer.RecordLayer{Header: h, Content: &protocol.ApplicationData{Data: text}}, append(raw, body...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestForged: no bit of a record may differ, nor its end be missing.
func TestForged(t *testing.T) {
	for _, s := range suites {
		for _, cid := range [][]byte{nil, random(8)} {
			client, _ := pair(t, s)
			c := newCipher(t, s, &client)
			b := c.Seal(nil, ApplicationData, 1, 5, cid, []byte("hello"))
			if kind, got, err := open(c, b, len(cid)); err != nil || kind != ApplicationData || string(got) != "hello" {
				t.Fatalf("%d, %q, %v", kind, got, err)
			}
			for i := range b {
				if _, _, err := open(c, b[:i], len(cid)); err == nil {
					t.Errorf("%#04x: %d bytes of %d open", uint16(s), i, len(b))
				}
				for bit := range 8 {
					b[i] ^= 1 << bit
					if _, _, err := open(c, b, len(cid)); err == nil {
						t.Errorf("%#04x: opens with bit %d of byte %d changed", uint16(s), bit, i)
					}
					b[i] ^= 1 << bit
				}
			}
		}
	}
}

// TestNoType: an inner plaintext of zeros has no content type (RFC 9146,
// Section 4).
func TestNoType(t *testing.T) {
	client, _ := pair(t, PSKCCM8)
	c := newCipher(t, PSKCCM8, &client)
	for n := range 4 {
		b := c.Seal(nil, 0, 1, uint64(n), []byte("cid"), make([]byte, n))
		if _, _, err := open(c, b, 3); !errors.Is(err, ErrOpen) {
			t.Errorf("%d zeros: %v", n+1, err)
		}
	}
}

// TestDatagram: several records follow each other.
func TestDatagram(t *testing.T) {
	b := AppendPlain(nil, Handshake, 3, []byte("one"))
	b = AppendPlain(b, ChangeCipherSpec, 4, []byte{1})
	first, rest, err := Next(b, 8)
	if err != nil || first.Type != Handshake || first.Seq != 3 || first.Epoch != 0 || string(first.Fragment) != "one" {
		t.Fatalf("%+v, %v", first, err)
	}
	second, rest, err := Next(rest, 8)
	if err != nil || second.Type != ChangeCipherSpec || second.Seq != 4 || len(rest) != 0 {
		t.Fatalf("%+v, %v", second, err)
	}
}

// TestUnsupported: what cannot be protected is refused.
func TestUnsupported(t *testing.T) {
	if _, _, err := Derive(0xc014, make([]byte, 48), [32]byte{}, [32]byte{}); !errors.Is(err, ErrSuite) {
		t.Error(err)
	}
	if _, err := NewCipher(0x1301, &Keys{}); !errors.Is(err, ErrSuite) {
		t.Error(err)
	}
	if _, _, err := Derive(PSKCCM8, make([]byte, 47), [32]byte{}, [32]byte{}); err == nil {
		t.Error("a short master secret is taken")
	}
}

// TestNoAllocation: in steady state nothing is allocated.
func TestNoAllocation(t *testing.T) {
	for _, s := range suites {
		client, _ := pair(t, s)
		c := newCipher(t, s, &client)
		text, cid := random(160), random(8)
		b, plain := make([]byte, 0, 512), make([]byte, 0, 512)
		if n := testing.AllocsPerRun(100, func() {
			b = c.Seal(b[:0], ApplicationData, 1, 9, cid, text)
			r, _, err := Next(b, 8)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Open(plain[:0], &r); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%#04x: %v allocations", uint16(s), n)
		}
	}
}

// TestWindow: against a set that remembers everything.
func TestWindow(t *testing.T) {
	rng := mrand.New(mrand.NewPCG(1, 2))
	var w Window
	seen := map[uint64]bool{}
	var high uint64
	for range 20000 {
		seq := high + rng.Uint64N(80)
		if back := rng.Uint64N(120); back <= seq {
			seq -= back
		}
		if rng.IntN(500) == 0 {
			seq += 1000
		}
		want := !seen[seq] && (len(seen) == 0 || seq > high || high-seq < windowSize)
		if got := w.Fresh(seq); got != want {
			t.Fatalf("%d with %d the highest: %v", seq, high, got)
		}
		if !want {
			continue
		}
		newest := w.Accept(seq)
		if newest != (len(seen) == 0 || seq > high) {
			t.Fatalf("%d with %d the highest: newest %v", seq, high, newest)
		}
		seen[seq] = true
		high = max(high, seq)
		if w.Next() != high+1 {
			t.Fatalf("next is %d after %d", w.Next(), high)
		}
	}
	if w.Fresh(MaxSeq + 1) {
		t.Error("a number of 49 bits is fresh")
	}
	old := From(100)
	for seq, want := range map[uint64]bool{0: false, 36: false, 99: false, 100: true, 5000: true} {
		if old.Fresh(seq) != want {
			t.Errorf("after a restart at 100: %d is fresh: %v", seq, !want)
		}
	}
}

// FuzzNext: no bytes do harm, and what is read is what was there.
func FuzzNext(f *testing.F) {
	f.Add(AppendPlain(nil, Handshake, 1, []byte("x")), 8)
	f.Add(append([]byte{ConnectionID, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1}, 'x'), 8)
	keys := Keys{}
	c, err := NewCipher(PSKCCM8, &keys)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, cid int) {
		cid &= 31
		for rest := b; len(rest) > 0; {
			r, next, err := Next(rest, cid)
			if err != nil {
				if !errors.Is(err, ErrFormat) {
					t.Fatal(err)
				}
				return
			}
			if n := len(rest) - len(next); n != headerSize+len(r.CID)+len(r.Fragment) {
				t.Fatalf("a record of %d bytes: %+v", n, r)
			}
			if r.Epoch != 0 {
				_, _, _ = c.Open(nil, &r) // for a panic
			}
			rest = next
		}
	})
}

// FuzzSeal: what is sealed opens to the same.
func FuzzSeal(f *testing.F) {
	f.Add(uint8(0), uint64(1), []byte("cid"), []byte("text"))
	f.Fuzz(func(t *testing.T, which uint8, seq uint64, cid, text []byte) {
		s := suites[int(which)%len(suites)]
		if len(cid) > maxCID || len(text) > 4096 {
			return
		}
		keys := Keys{Key: [16]byte{1}, IV: [4]byte{2}}
		c, err := NewCipher(s, &keys)
		if err != nil {
			t.Fatal(err)
		}
		kind, got, err := open(c, c.Seal(nil, Alert, 1, seq, cid, text), len(cid))
		if err != nil || kind != Alert || !bytes.Equal(got, text) {
			t.Fatalf("%d, %x, %v", kind, got, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, s := range []Suite{PSKCCM8, PSKGCM} {
		b.Run(fmt.Sprintf("%#04x", uint16(s)), func(b *testing.B) {
			client, _ := pair(b, s)
			c := newCipher(b, s, &client)
			text, cid := random(160), random(8)
			buf := make([]byte, 0, 512)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				buf = c.Seal(buf[:0], ApplicationData, 1, uint64(i), cid, text)
			}
		})
	}
}
