package keytree

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func sample() *Material {
	k := bytes.Repeat([]byte{7}, KeyLen)
	return &Material{Tree: []byte("8 bytes!"), Degree: 3, Path: []Node{
		{ID: ID{0, 5}, Version: 9, Key: k}, {ID: ID{1, 1}, Version: 2, Step: 3, Key: k}, {ID: ID{2, 0}, Version: 1, Key: k},
	}}
}

func TestMaterialIsStrict(t *testing.T) {
	b := sample().Encode()
	if _, err := DecodeMaterial(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if _, err := DecodeMaterial(b[:i]); err == nil {
			t.Fatalf("prefix of %d bytes is read", i)
		}
	}
	for name, spoil := range map[string]func(*Material){
		"tree":      func(m *Material) { m.Tree = m.Tree[1:] },
		"degree":    func(m *Material) { m.Degree = 1 },
		"no way":    func(m *Material) { m.Path[1].Index = 2 },
		"no root":   func(m *Material) { m.Path = m.Path[:2] },
		"no leaf":   func(m *Material) { m.Path = m.Path[1:] },
		"short key": func(m *Material) { m.Path[0].Key = m.Path[0].Key[1:] },
	} {
		m := sample()
		spoil(m)
		if _, err := DecodeMaterial(m.Encode()); err == nil {
			t.Errorf("%s: is read", name)
		}
	}
}

func TestNothingPrints(t *testing.T) {
	m := sample()
	f := NewFollower(10, make([]byte, 13), m)
	for _, v := range []any{m, m.Path[0], *m, f, []Node{m.Path[0]}, Wrap{m.Path[0], m.Path[1]}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s"} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "0707") || strings.Contains(s, "7 7 7") || strings.Contains(s, "0x7, 0x7") {
				t.Errorf("%s of %T: %s", verb, v, s)
			}
		}
	}
}

func FuzzDecodeMaterial(f *testing.F) {
	f.Add(sample().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMaterial(b)
		if err != nil {
			return
		}
		if again, err := DecodeMaterial(m.Encode()); err != nil || !bytes.Equal(again.Encode(), m.Encode()) {
			t.Fatal("does not survive its own codec")
		}
	})
}

func FuzzDecodeKey(f *testing.F) {
	f.Add(EncodeKey(sample().Path[1]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := decodeKey(b); err == nil {
			if again, err := decodeKey(EncodeKey(n)); err != nil || again.ID != n.ID {
				t.Fatal("does not survive its own codec")
			}
		}
	})
}

func FuzzParseKID(f *testing.F) {
	f.Add(KID([]byte("8 bytes!"), sample().Path[1]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tree, n, err := parseKID(b); err == nil && !bytes.Equal(KID([]byte(tree), n), b) {
			t.Fatal("does not survive its own codec")
		}
	})
}
