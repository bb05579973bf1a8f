package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSeal(t *testing.T) {
	s := openTest(t, newDir(t))
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte{7}, 5000)} {
		sealed := s.Seal("group/a", plain)
		if len(sealed) != len(plain)+SealOverhead {
			t.Errorf("%d bytes became %d", len(plain), len(sealed))
		}
		if bytes.Equal(sealed, s.Seal("group/a", plain)) {
			t.Error("sealed twice to the same bytes")
		}
		got, err := s.Unseal("group/a", sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("unsealed %d bytes: %v", len(plain), err)
		}
		if _, err := s.Unseal("group/b", sealed); !errors.Is(err, ErrUnseal) {
			t.Errorf("in another place: %v", err)
		}
	}
	sealed := s.Seal("c", []byte("secret"))
	for i := range sealed {
		if _, err := s.Unseal("c", sealed[:i]); !errors.Is(err, ErrUnseal) {
			t.Errorf("prefix of %d bytes: %v", i, err)
		}
		bad := bytes.Clone(sealed)
		bad[i] ^= 0x10
		if _, err := s.Unseal("c", bad); !errors.Is(err, ErrUnseal) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
}

// A sealed value outlives a restart with the same key, and a program with
// another key does not start.
func TestWrongKey(t *testing.T) {
	dir := newDir(t)
	s, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	sealed := s.Seal("c", []byte("secret"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte{1}, KeySize)
	s, err = open(t, dir, func(o *Options) {
		o.SealKey = other
		o.Migrations = append(o.Migrations, Migrations{Room: "new", Steps: []string{"CREATE TABLE new_t (a INTEGER)"}})
	})
	if !errors.Is(err, ErrWrongKey) || s != nil {
		t.Fatalf("another key: %v", err)
	}
	s = openTest(t, dir)
	if got, err := s.Unseal("c", sealed); err != nil || string(got) != "secret" {
		t.Errorf("got %q, %v", got, err)
	}
	if hasTable(t, s, "new_t") {
		t.Error("a program with the wrong key changed the schema")
	}
	if _, err := open(t, newDir(t), func(o *Options) { o.SealKey = other[:16] }); err == nil {
		t.Error("a short key was taken")
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	key := []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345")
	s := openTest(t, newDir(t), func(o *Options) { o.SealKey = key })
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "seal", s.seal)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&b, verb, s.seal)
	}
	for _, form := range []string{string(key), fmt.Sprintf("%x", key), strings.Trim(fmt.Sprint(key), "[]")} {
		if strings.Contains(b.String(), form) {
			t.Error("the key was printed")
		}
	}
}

// sealedOnce is "secret", sealed by this package under the all-zero key for
// the context "c": what is on disk must stay readable.
const sealedOnce = "01db96491ccc07ad4eed57331c627324fdf1af3947cd22ca2d99093f79dac514f815c464adf1187f7a1bcf8de11504"

func FuzzUnseal(f *testing.F) {
	s := &Store{seal: newSealer(testKey())}
	good, err := hex.DecodeString(sealedOnce)
	if err != nil {
		f.Fatal(err)
	}
	if plain, err := s.Unseal("c", good); err != nil || string(plain) != "secret" {
		f.Fatalf("got %q, %v", plain, err)
	}
	f.Add("c", good)
	f.Add("d", good)
	f.Add("", good[:SealOverhead])
	f.Fuzz(func(t *testing.T, context string, sealed []byte) {
		plain, err := s.Unseal(context, sealed)
		if err == nil && (context != "c" || !bytes.Equal(sealed, good) || string(plain) != "secret") {
			t.Errorf("opened what was never sealed: %x", sealed)
		}
		again := s.Seal(context, sealed)
		if got, err := s.Unseal(context, again); err != nil || !bytes.Equal(got, sealed) {
			t.Errorf("round trip: %v", err)
		}
	})
}
