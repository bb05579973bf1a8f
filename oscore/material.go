package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// Bounds of what an Authorization Server may put into input material, our choice.
const (
	minSecret       = 16 // bytes of the Master Secret
	maxSecret       = 64 // bytes of the Master Secret and of the salt
	maxMaterialID   = 64 // bytes of the identifier
	maxContextID    = 64 // bytes of the ID Context
	maxMaterialName = 64 // bytes of an algorithm's name

	// maxSetupNonce bounds the nonces that client and server exchange, in bytes.
	maxSetupNonce = 64
)

// ErrMaterial says that input material, or what was exchanged with it, cannot be
// used.
var ErrMaterial = errors.New("oscore: unusable input material")

// Labels of the OSCORE Security Context Parameters registry (RFC 9203, Section
// 9.4).
const (
	materialID        = 0
	materialVersion   = 1
	materialSecret    = 2
	materialHKDF      = 3
	materialAlg       = 4
	materialSalt      = 5
	materialContextID = 6
	materialParams    = 7 // one more than the last
)

// Material is an OSCORE_Input_Material (RFC 9203, Section 3.2.1): what an
// Authorization Server gives a client and, in the access token, a server. It
// prints as [redacted].
type Material struct {
	ID           []byte      // 0: 1 to 64 bytes, names the material
	MasterSecret cose.Secret // 2: 16 to 64 bytes
	HKDF         int64       // 3: HMAC 256/256 or HMAC 512/512; 0: absent, the former
	AEAD         int64       // 4: COSE algorithm; 0: absent, AES-CCM-16-64-128
	Salt         []byte      // 5: up to 64 bytes; nil: absent
	IDContext    []byte      // 6: up to 64 bytes; nil: absent

	version bool // 1: present
}

// Format prints [redacted]: it holds the Master Secret.
func (Material) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the Master Secret out of logs.
func (Material) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Encode gives the CBOR map, core-deterministic.
func (m *Material) Encode() []byte {
	out := map[int64]any{materialID: m.ID, materialSecret: m.MasterSecret.Bytes()}
	if m.version {
		out[materialVersion] = 1
	}
	if m.HKDF != 0 {
		out[materialHKDF] = m.HKDF
	}
	if m.AEAD != 0 {
		out[materialAlg] = m.AEAD
	}
	if m.Salt != nil {
		out[materialSalt] = m.Salt
	}
	if m.IDContext != nil {
		out[materialContextID] = m.IDContext
	}
	return cose.MustMarshal(out)
}

// DecodeMaterial reads the CBOR map and checks that a Security Context can be made
// of it. Both id and ms must be there, and nothing that is not known here (RFC
// 9203, Section 4.2). Errors wrap [ErrMaterial] and quote no key.
func DecodeMaterial(b []byte) (*Material, error) {
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMaterial, err)
	}
	fail := func(what string) (*Material, error) { return nil, fmt.Errorf("%w: %s", ErrMaterial, what) }
	// A map of at most seven entries has its length in the first byte; entries
	// with names instead of labels are not in m.
	if b[0] != 0xa0|byte(len(m)) {
		return fail("unknown parameter")
	}
	for label := range m {
		if label < 0 || label >= materialParams {
			return fail("unknown parameter")
		}
	}
	out := &Material{version: m.Has(materialVersion)}
	var present bool
	if out.ID, present, err = m.Bytes(materialID); err != nil || !present || len(out.ID) == 0 || len(out.ID) > maxMaterialID {
		return fail("id")
	}
	secret, present, err := m.Bytes(materialSecret)
	if err != nil || !present || len(secret) < minSecret || len(secret) > maxSecret {
		return fail("ms")
	}
	out.MasterSecret = cose.NewSecret(secret)
	if v, present, err := m.Uint(materialVersion); err != nil || present && v != 1 {
		return fail("version")
	}
	if out.HKDF, err = materialAlgorithm(m, materialHKDF, hkdfOf); err != nil {
		return fail("hkdf")
	}
	if out.AEAD, err = materialAlgorithm(m, materialAlg, aeadOf); err != nil {
		return fail("alg")
	}
	if out.Salt, _, err = m.Bytes(materialSalt); err != nil || len(out.Salt) > maxSecret {
		return fail("salt")
	}
	if out.IDContext, _, err = m.Bytes(materialContextID); err != nil || len(out.IDContext) > maxContextID {
		return fail("contextId")
	}
	return out, nil
}

var errAlgorithm = errors.New("oscore: unsupported algorithm")

// materialAlgorithm reads an algorithm, which is given by number or by name; 0:
// absent.
func materialAlgorithm(m cose.Map, label int64, known func(int64) (name string, ok bool)) (int64, error) {
	raw, present := m[label]
	if !present {
		return 0, nil
	}
	if cose.IsText(raw) {
		given, err := cose.AsText(raw)
		if err != nil || len(given) > maxMaterialName {
			return 0, errAlgorithm
		}
		// The algorithms that fit have numbers of one byte.
		for alg := int64(1); alg < 64; alg++ {
			if name, ok := known(alg); ok && name == given {
				return alg, nil
			}
		}
		return 0, errAlgorithm
	}
	alg, err := cose.AsInt(raw)
	if err != nil {
		return 0, err
	}
	if _, ok := known(alg); !ok {
		return 0, errAlgorithm
	}
	return alg, nil
}

func aeadOf(alg int64) (string, bool) { return cose.AEADName(alg) }

func hkdfOf(alg int64) (string, bool) {
	switch alg {
	case cose.AlgHMAC256:
		return "HMAC 256/256", true
	case cose.AlgHMAC512:
		return "HMAC 512/512", true
	}
	return "", false
}

// MaxID is the length in bytes of the longest Sender and Recipient ID with the
// algorithm of the material (RFC 8613, Section 3.3).
func (m *Material) MaxID() int {
	alg := m.AEAD
	if alg == 0 {
		alg = cose.AlgAESCCM16_64_128
	}
	_, nonce, _, _ := cose.AEADSizes(alg)
	return max(0, maxIDLen(nonce))
}

// Setup is what client and server know after the access token was posted (RFC
// 9203, Section 4.3): the material of the Authorization Server and what the two
// exchanged. It prints as [redacted].
type Setup struct {
	Material
	Nonce1 []byte // N1, of the client: 1 to 64 bytes
	Nonce2 []byte // N2, of the server
	ID1    []byte // Recipient ID of the client, Sender ID of the server
	ID2    []byte // Recipient ID of the server, Sender ID of the client
}

// Check says what is wrong with the exchanged values: an error that wraps
// [ErrMaterial].
func (s *Setup) Check() error {
	for _, n := range [][]byte{s.Nonce1, s.Nonce2} {
		if len(n) == 0 || len(n) > maxSetupNonce {
			return fmt.Errorf("%w: nonce of %d bytes", ErrMaterial, len(n))
		}
	}
	for _, id := range [][]byte{s.ID1, s.ID2} {
		if len(id) > s.MaxID() {
			return fmt.Errorf("%w: identifier of %d bytes", ErrMaterial, len(id))
		}
	}
	// RFC 9203, Section 4.3: the Sender and Recipient Key would be equal.
	if bytes.Equal(s.ID1, s.ID2) {
		return fmt.Errorf("%w: both identifiers are the same", ErrMaterial)
	}
	return nil
}

// ClientParams are the parameters of the client's Security Context.
func (s *Setup) ClientParams() Params { return s.params(s.ID2, s.ID1) }

// ServerParams are the parameters of the server's Security Context.
func (s *Setup) ServerParams() Params { return s.params(s.ID1, s.ID2) }

func (s *Setup) params(sender, recipient []byte) Params {
	return Params{
		MasterSecret: s.MasterSecret, MasterSalt: s.MasterSalt(), SenderID: sender, RecipientID: recipient,
		IDContext: s.IDContext, AEAD: s.AEAD, HKDF: s.HKDF,
	}
}

// MasterSalt is salt | N1 | N2, each as a CBOR byte string (RFC 9203, Section
// 4.3). Without a salt nothing stands in its place, as in the implementations that
// are known; the text allows an empty byte string as well, so an Authorization
// Server does well to send one.
func (s *Setup) MasterSalt() []byte {
	var b []byte
	if s.Salt != nil {
		b = appendCBORBytes(b, s.Salt)
	}
	b = appendCBORBytes(b, s.Nonce1)
	return appendCBORBytes(b, s.Nonce2)
}
