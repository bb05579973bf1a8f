package ace

import (
	"bytes"
	"testing"
	"time"
)

// FuzzChallenges: what a database column holds reads as challenges that encode
// to the same bytes, or not at all.
func FuzzChallenges(f *testing.F) {
	l := challenges(nil).add(newChallenge(), 0, time.Unix(1e9, 0))
	f.Add(l.encode())
	f.Add(l.add(newChallenge(), givenInside, time.Unix(1e9+1, 0)).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeChallenges(b)
		if err != nil || len(b) == 0 {
			return
		}
		again, err := decodeChallenges(l.encode())
		if err != nil || !bytes.Equal(again.encode(), l.encode()) {
			t.Fatalf("%x: %v", b, err)
		}
	})
}
