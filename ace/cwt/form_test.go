package cwt

import (
	"bytes"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// What Seal makes has the form of RFC 9770, Section 3; only ECDSA signatures
// have a twin, which verifies as well and has the first as its own.
func TestForms(t *testing.T) {
	for _, alg := range []int64{cose.AlgAESCCM16_64_128, cose.AlgHMAC256, cose.AlgEdDSA, cose.AlgES256} {
		p := Protection{Alg: alg, Key: bytes.Repeat([]byte{1}, 16)}
		if KindOf(alg) == Sign1 {
			k, err := cose.GenerateKey(alg)
			if err != nil {
				t.Fatal(err)
			}
			p.Signer = k
		}
		b, err := Seal(p, []byte{0xa0})
		if err != nil {
			t.Fatal(err)
		}
		token, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if !token.Canonical() {
			t.Errorf("%d: %x", alg, b)
		}
		for _, other := range [][]byte{b[2:], b[3:], slices.Concat(b[:3], []byte{0x98, b[3] & 0x1f}, b[4:])} {
			if o, err := Parse(other); err == nil && o.Canonical() {
				t.Errorf("%d: %x", alg, other)
			}
		}
		twin := token.Twin()
		if (twin != nil) != (alg == cose.AlgES256) {
			t.Errorf("%d: twin %x", alg, twin)
		}
		if twin == nil {
			continue
		}
		second, err := Parse(twin)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := second.Verify(p.Signer.Public()); err != nil || bytes.Equal(twin, b) || !bytes.Equal(second.Twin(), b) {
			t.Errorf("twin %x of %x: %v", twin, b, err)
		}
	}
}
