package dtls12

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write testdata anew")

// steady is a random source that is none.
type steady byte

func (s *steady) Read(b []byte) (int, error) {
	for i := range b {
		*s++
		b[i] = byte(*s)
	}
	return len(b), nil
}

// TestGolden: with fixed keys and randoms every byte of a handshake, and what is
// exported from it, is as it was.
func TestGolden(t *testing.T) {
	t.Parallel()
	seeded := func(b byte) *Key {
		k, err := NewKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ck, sk := seeded(1), seeded(2)
	cc, sc := accepting(ck, sk), accepting(sk, ck)
	a, b := steady(10), steady(100)
	cc.Rand, sc.Rand = &a, &b
	cc.CID, sc.CID = []byte("node"), []byte("gateway1")
	p := newPair(t, cc, sc)
	p.cookies = &Cookies{}
	var got bytes.Buffer
	p.tap = func(toServer bool, d []byte) bool {
		who := "server"
		if toServer {
			who = "client"
		}
		fmt.Fprintf(&got, "%s %s\n", who, hex.EncodeToString(d))
		return false
	}
	p.run()
	p.agreed(t)
	x, err := p.server.Result().Export("EXPORTER-ACE-Pop-Input-coap-group-oscore-app", []byte{}, 32)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&got, "exporter %s\n", hex.EncodeToString(x))
	const file = "testdata/rawkeys.txt"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the handshake is\n%s\nnot\n%s", got.Bytes(), want)
	}
}
