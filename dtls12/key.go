package dtls12

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// Signature schemes: hash and signature of RFC 5246, Section 7.4.1.4.1; EdDSA of
// RFC 8422, Section 5.1.3.
const (
	schemeES256   = 0x0403
	schemeEd25519 = 0x0807
)

// Key is a public key with its private key, of ECDSA on P-256 or Ed25519: a raw
// one, or one with a certificate.
type Key struct {
	signer crypto.Signer
	spki   []byte
	scheme int
	chain  [][]byte // certificates in DER, that of the key first; nil: a raw key
}

// NewKey takes an *ecdsa.PrivateKey on P-256 or an ed25519.PrivateKey.
func NewKey(k crypto.Signer) (*Key, error) {
	spki, scheme, err := publicKey(k.Public())
	if err != nil {
		return nil, err
	}
	return &Key{signer: k, spki: spki, scheme: scheme}, nil
}

// NewCertificate takes a key as NewKey does, and its certificate in DER followed by
// those above it.
func NewCertificate(chain [][]byte, k crypto.Signer) (*Key, error) {
	own, err := NewKey(k)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("dtls12: no certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("dtls12: certificate: %w", err)
	}
	if spki, _, err := publicKey(leaf.PublicKey); err != nil || !bytes.Equal(spki, own.spki) {
		return nil, errors.New("dtls12: the certificate is of another key")
	}
	own.chain = chain
	if n := len(own.certificate()); n > maxMessage || len(chain) > maxChain {
		return nil, fmt.Errorf("dtls12: %d certificates of %d bytes are more than nodes take", len(chain), n)
	}
	return own, nil
}

// kind is the certificate type.
func (k *Key) kind() uint8 {
	if k.chain != nil {
		return x509Certificate
	}
	return rawPublicKey
}

// certificate is the body of a Certificate that shows the key.
func (k *Key) certificate() []byte {
	if k.chain == nil {
		return encodeCertificate(k.spki)
	}
	return encodeChain(k.chain)
}

// Public is the SubjectPublicKeyInfo in DER.
func (k *Key) Public() []byte { return k.spki }

// Format keeps the key out of logs.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[redacted]") }

var errKey = errors.New("dtls12: keys are of ECDSA on P-256 or of Ed25519")

// publicKey is the one encoding of a public key, and its scheme.
func publicKey(pub any) (spki []byte, scheme int, err error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, 0, errKey
		}
		scheme = schemeES256
	case ed25519.PublicKey:
		scheme = schemeEd25519
	default:
		return nil, 0, errKey
	}
	spki, err = x509.MarshalPKIXPublicKey(pub)
	return spki, scheme, err
}

// sign makes a signature of the key's scheme.
func (k *Key) sign(message []byte) ([]byte, error) {
	if k.scheme == schemeEd25519 {
		return k.signer.Sign(nil, message, crypto.Hash(0))
	}
	sum := sha256.Sum256(message)
	return k.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// verify says whether the owner of a public key signed.
func verify(spki []byte, scheme int, message, signature []byte) bool {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return false
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return scheme == schemeES256 && ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		return scheme == schemeEd25519 && ed25519.Verify(k, message, signature)
	}
	return false
}

// canonical reads a SubjectPublicKeyInfo of a peer and gives the encoding by
// which we know the key.
func canonical(spki []byte) ([]byte, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, errKey
	}
	out, _, err := publicKey(pub)
	return out, err
}

// Groups of the key agreement (RFC 8422, Section 5.1.1): X25519, which RFC 9202,
// Section 3.2.1, asks for, and P-256, which RFC 7252 does.
const (
	groupP256   = 23
	groupX25519 = 29
)

func curveOf(group int) ecdh.Curve {
	switch group {
	case groupP256:
		return ecdh.P256()
	case groupX25519:
		return ecdh.X25519()
	}
	return nil
}

// ephemeral is a key of one handshake.
type ephemeral struct {
	group int
	key   *ecdh.PrivateKey
	peer  []byte // the other one's public key
}

// newEphemeral takes its key from the random source of the configuration.
func (c *Config) newEphemeral(group int) (*ephemeral, error) {
	for range 8 {
		var b [32]byte
		if err := c.random(b[:]); err != nil {
			return nil, err
		}
		k, err := curveOf(group).NewPrivateKey(b[:])
		clear(b[:])
		if err == nil { // P-256 takes nearly all of them
			return &ephemeral{group: group, key: k}, nil
		}
	}
	return nil, errors.New("dtls12: the random source gives no key")
}

// agree is the premaster secret (RFC 8422, Section 5.10). It refuses a point that
// is not on the curve, and a result of zero.
func (e *ephemeral) agree(peer []byte) ([]byte, error) {
	pub, err := e.key.Curve().NewPublicKey(peer)
	if err != nil {
		return nil, err
	}
	return e.key.ECDH(pub)
}
