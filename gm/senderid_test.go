package gm

import (
	"bytes"
	"testing"
)

func TestSenderIDPlaces(t *testing.T) {
	want := map[sidPlace]string{0: "", 1: "00", 2: "01", 256: "ff", 257: "0000", 257 + 65535: "ffff", 257 + 65536: "000000"}
	for p, s := range want {
		if got := p.id().String(); got != s {
			t.Errorf("place %d: %s, want %s", p, got, s)
		}
	}
	if noSID.id() != nil {
		t.Error("a monitor has an ID")
	}
	if n := places(1); n != 257 {
		t.Errorf("%d IDs of at most one byte", n)
	}
	if last := sidPlace(places(7) - 1).id().String(); last != "ffffffffffffff" {
		t.Errorf("last place: %s", last)
	}
	if _, ok := placeOf(make([]byte, 8)); ok {
		t.Error("an ID of 8 bytes has a place")
	}
}

func FuzzSenderIDPlaces(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, id []byte) {
		p, ok := placeOf(id)
		if ok != (len(id) <= 7) {
			t.Fatal("place or no place")
		}
		if ok && !bytes.Equal(p.id(), id) {
			t.Errorf("%x came back as %x", id, p.id())
		}
	})
}
