package oscore

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/seed4911071e/groupgate/cose"
)

// defaultMaxUnfragmented is the default of Params.MaxUnfragmented, and its
// largest value: AES-CCM with nonces of 13 bytes takes no more.
const defaultMaxUnfragmented = 1<<16 - 1

// Params are what a Security Context is made from (RFC 8613, Section 3.2).
type Params struct {
	MasterSecret cose.Secret
	MasterSalt   []byte // nil: empty
	// SenderID and RecipientID differ, and are up to the nonce length less six
	// bytes long: seven bytes with AES-CCM-16-64-128.
	SenderID    []byte
	RecipientID []byte
	// IDContext may be nil, which differs from empty. It goes into requests as
	// kid context unless OmitIDContext says that the server needs no hint.
	IDContext     []byte
	OmitIDContext bool

	AEAD int64 // COSE algorithm; 0: AES-CCM-16-64-128
	HKDF int64 // HMAC 256/256 or HMAC 512/512; 0: the former, HKDF SHA-256

	// Sequence is where the Sender Sequence Numbers begin, and what makes them
	// durable. A context that lived before begins at what was last reserved.
	Sequence SequenceConfig
	// Window is what the context had received when it was stored. nil: it is new
	// and nothing was received. A state that is not Valid: it lived before and
	// what it received is lost, so the first request is challenged with Echo.
	Window     *WindowState
	WindowSize int // 1 to 64; 0: 32

	// MaxUnfragmented is the size in bytes of the payload of a protected message,
	// MAX_UNFRAGMENTED_SIZE of RFC 8613, Section 4.1.3.4.2: larger messages go in
	// inner blocks. 0: 65535, which is the most.
	MaxUnfragmented int

	// Hop says that one of the two ends is a proxy for requests of the other: what is
	// for it, where to send them among that, is protected, and what it forwards may be
	// protected itself (draft-ietf-core-oscore-capable-proxies-07, Section 2).
	Hop bool
}

// Context is a Security Context: Common, Sender and Recipient Context (RFC 8613,
// Section 3.1). It is used as client and as server alike, and by many goroutines
// at once.
type Context struct {
	alg           int64
	sender        cipher.AEAD
	recipient     cipher.AEAD
	commonIV      []byte
	requestIV     []byte // Common IV of the context of requests, where another answers: Appendix B.2
	senderID      []byte
	recipientID   []byte
	idContext     []byte // nil: none
	kidContext    []byte // what requests carry; nil: nothing
	kidContextStr string // the same
	settled       *settled
	aadHead       []byte // of the aad_array, up to the algorithms
	max           int
	span          span

	seq    Sequence
	window Window
	echo   [8]byte // proves that a request is younger than this Context
}

// New derives a Security Context.
func New(p Params) (*Context, error) {
	if p.AEAD == 0 {
		p.AEAD = cose.AlgAESCCM16_64_128
	}
	if p.HKDF == 0 {
		p.HKDF = cose.AlgHMAC256
	}
	if p.MaxUnfragmented == 0 {
		p.MaxUnfragmented = defaultMaxUnfragmented
	}
	key, nonce, _, ok := cose.AEADSizes(p.AEAD)
	switch {
	case !ok:
		return nil, fmt.Errorf("oscore: AEAD Algorithm %d is not supported", p.AEAD)
	case p.MasterSecret.IsZero():
		return nil, errors.New("oscore: no Master Secret")
	case len(p.SenderID) > maxIDLen(nonce), len(p.RecipientID) > maxIDLen(nonce):
		return nil, fmt.Errorf("oscore: an identifier is longer than %d bytes", maxIDLen(nonce))
	case bytes.Equal(p.SenderID, p.RecipientID):
		return nil, errors.New("oscore: Sender ID and Recipient ID are the same")
	case len(p.IDContext) > 255-2-maxPIV-maxIDLen(nonce):
		return nil, fmt.Errorf("oscore: ID Context of %d bytes", len(p.IDContext))
	case p.MaxUnfragmented < 0 || p.MaxUnfragmented > defaultMaxUnfragmented:
		return nil, fmt.Errorf("oscore: unfragmented messages of %d bytes: at most %d", p.MaxUnfragmented, defaultMaxUnfragmented)
	}
	c := &Context{
		alg: p.AEAD, max: p.MaxUnfragmented, span: span(p.Hop),
		senderID:    append([]byte{}, p.SenderID...),
		recipientID: append([]byte{}, p.RecipientID...),
		idContext:   bytes.Clone(p.IDContext),
		aadHead:     appendCBORInt([]byte{0x85, 0x01, 0x81}, p.AEAD),
	}
	if !p.OmitIDContext {
		c.setKIDContext(c.idContext)
	}
	secret := p.MasterSecret.Bytes()
	defer clear(secret)
	derive := func(id []byte, typ string, n int) ([]byte, error) {
		return hkdfKey(p.HKDF, secret, p.MasterSalt, appendInfo(nil, id, p.IDContext, p.AEAD, typ, n), n)
	}
	var err error
	if c.commonIV, err = derive(nil, typeIV, nonce); err != nil {
		return nil, err
	}
	for _, half := range []struct {
		id []byte
		to *cipher.AEAD
	}{{p.SenderID, &c.sender}, {p.RecipientID, &c.recipient}} {
		k, err := derive(half.id, typeKey, key)
		if err != nil {
			return nil, err
		}
		*half.to, err = cose.NewAEAD(p.AEAD, k)
		clear(k)
		if err != nil {
			return nil, fmt.Errorf("oscore: %w", err)
		}
	}
	if err := c.seq.init(p.Sequence); err != nil {
		return nil, err
	}
	if err := c.window.setSize(p.WindowSize); err != nil {
		return nil, err
	}
	if p.Window == nil {
		c.window.Reset()
	} else {
		c.window.Restore(*p.Window)
	}
	rand.Read(c.echo[:])
	return c, nil
}

func (c *Context) setKIDContext(b []byte) {
	c.kidContext, c.kidContextStr = b, string(b)
}

// settled is for contexts of a [Renewal]: once both ends have agreed on one, its
// requests carry the ID Context as it is, and not wrapped as in the protocol.
type settled struct {
	done      atomic.Bool
	idContext string
}

// hint is the kid context of requests, also as a string.
func (c *Context) hint() ([]byte, string) {
	if c.settled != nil && c.settled.done.Load() {
		return c.idContext, c.settled.idContext
	}
	return c.kidContext, c.kidContextStr
}

// named says whether a kid context that came is one for this context.
func (c *Context) named(kidContext []byte) bool {
	return c.idContext != nil && (bytes.Equal(kidContext, c.idContext) || c.kidContext != nil && bytes.Equal(kidContext, c.kidContext))
}

// SenderID is this endpoint's identifier: the kid of its requests.
func (c *Context) SenderID() []byte { return bytes.Clone(c.senderID) }

// RecipientID is the peer's identifier: the kid of the requests that come.
func (c *Context) RecipientID() []byte { return bytes.Clone(c.recipientID) }

// IDContext is the ID Context; nil when there is none.
func (c *Context) IDContext() []byte { return bytes.Clone(c.idContext) }

// AEAD is the AEAD Algorithm, as a COSE algorithm.
func (c *Context) AEAD() int64 { return c.alg }

// Overhead is how many bytes larger the payload of a protected message is than
// the plaintext, which is code, inner options and payload with its marker.
func (c *Context) Overhead() int { return c.sender.Overhead() }

// Window is the Replay Window, to be stored when the context is put aside.
func (c *Context) Window() *Window { return &c.window }

// Sequence hands out the Sender Sequence Numbers.
func (c *Context) Sequence() *Sequence { return &c.seq }

// describe tells contexts apart without their keys.
func (c *Context) describe() string {
	s := "oscore(" + hex.EncodeToString(c.senderID) + " to " + hex.EncodeToString(c.recipientID)
	if c.idContext != nil {
		s += " in " + hex.EncodeToString(c.idContext)
	}
	return s + ")"
}

// Format prints the identifiers under every verb, and no key.
func (c *Context) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.describe()) }

// LogValue keeps keys out of logs.
func (c *Context) LogValue() slog.Value { return slog.StringValue(c.describe()) }

// setAAD writes the Additional Authenticated Data of RFC 8613, Section 5.4 for
// the kid and Partial IV of a request:
//
//	[ "Encrypt0", h'', bstr .cbor [ 1, [ alg_aead ], request_kid, request_piv, options: h'' ] ]
func (c *Context) setAAD(b *Buffer, kid []byte, piv uint64) []byte {
	var room [maxPIV]byte
	p := appendPIV(room[:0], piv)
	n := len(c.aadHead) + 1 + len(kid) + 1 + len(p) + 1
	aad := append(b.aad[:0], encryptHead...)
	aad = appendCBORHead(aad, cborBytes, uint64(n))
	aad = append(aad, c.aadHead...)
	aad = appendCBORBytes(aad, kid)
	aad = appendCBORBytes(aad, p)
	return append(aad, 0x40)
}

// setRequestNonce writes the nonce that the request of the endpoint id had.
func (c *Context) setRequestNonce(b *Buffer, id []byte, piv uint64) []byte {
	if c.requestIV == nil {
		return c.setNonce(b, id, piv)
	}
	nonce := b.nonce[:len(c.requestIV)]
	setNonce(nonce, c.requestIV, id, piv)
	return nonce
}

// setNonce writes the nonce of a Partial IV that the endpoint id generated.
func (c *Context) setNonce(b *Buffer, id []byte, piv uint64) []byte {
	nonce := b.nonce[:len(c.commonIV)]
	setNonce(nonce, c.commonIV, id, piv)
	return nonce
}
