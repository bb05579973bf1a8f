package cose

import (
	"bytes"
	"testing"
)

// edwardsPoint is the encoding of the point of edwards25519 with a small y and
// x of an even sign.
func edwardsPoint(y byte, high byte) []byte {
	b := make([]byte, 32)
	b[0], b[31] = y, high
	return b
}

// TestMontgomery maps both halves of a key pair to one key pair: what two signers
// agree on is the same seen from both sides, and the mapped private key belongs to
// the mapped public key.
func TestMontgomery(t *testing.T) {
	a, err := GenerateKey(AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	b, err := GenerateKey(AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	m, err := a.Montgomery()
	if err != nil {
		t.Fatal(err)
	}
	if m.Crv != CrvX25519 || m.Check() != nil {
		t.Errorf("private and public part differ: %v", m.Check())
	}
	if pub, err := a.Public().Montgomery(); err != nil || !bytes.Equal(pub.X, m.X) || pub.IsPrivate() {
		t.Errorf("public part alone: %v", err)
	}
	ab, err := a.ECDH(b.Public())
	if err != nil {
		t.Fatal(err)
	}
	ba, err := b.ECDH(a.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ab, ba) {
		t.Error("the two sides differ")
	}
	if _, err := a.ECDH(m); err == nil {
		t.Error("an Ed25519 key agrees with an X25519 key")
	}
	if _, err := a.Public().ECDH(b); err == nil {
		t.Error("a public key agrees")
	}
}

// TestMontgomeryDegenerate: draft-ietf-core-oscore-groupcomm-28, Section 2.5.2.1:
// y = 1 and y = -1 are refused, and so is what is no point, or a point of small
// order, whose secret is zero.
func TestMontgomeryDegenerate(t *testing.T) {
	own, err := GenerateKey(AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	minusOne := bytes.Repeat([]byte{0xff}, 32)
	minusOne[0], minusOne[31] = lowOfMinusOne, 0x7f
	small := []byte{
		0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
	}
	for name, x := range map[string][]byte{
		"y = 1":       edwardsPoint(1, 0),
		"y = -1":      minusOne,
		"y = 1 + p":   append([]byte{0xee}, append(bytes.Repeat([]byte{0xff}, 30), 0x7f)...),
		"no point":    edwardsPoint(2, 0),
		"order four":  edwardsPoint(0, 0),
		"order eight": small,
		"31 bytes":    make([]byte, 31),
	} {
		if _, err := own.ECDH(&Key{Kty: KtyOKP, Crv: CrvEd25519, X: x}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestSignerVerifier: what is made once does what is made each time.
func TestSignerVerifier(t *testing.T) {
	msg := []byte("message")
	for _, alg := range []int64{AlgEdDSA, AlgES256, AlgES384, AlgES512} {
		k, err := GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := k.Signer()(msg)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := SignatureSize(alg); !ok || n != len(sig) {
			t.Errorf("%d: signature has %d bytes, not %d", alg, len(sig), n)
		}
		verify := k.Public().Verifier()
		if err := verify(msg, sig); err != nil {
			t.Errorf("%d: %v", alg, err)
		}
		sig[3] ^= 1
		if verify(msg, sig) == nil || verify(msg, nil) == nil {
			t.Errorf("%d: a wrong signature verifies", alg)
		}
	}
	if _, ok := SignatureSize(AlgECDHSSHKDF256); ok {
		t.Error("a key agreement has signatures")
	}
	if (&Key{Kty: KtyOKP, Crv: CrvX25519}).Verifier()(msg, make([]byte, 64)) == nil {
		t.Error("an X25519 key verifies")
	}
	if _, err := (&Key{Kty: KtyOKP, Crv: CrvEd25519}).Signer()(msg); err == nil {
		t.Error("a public key signs")
	}
}
