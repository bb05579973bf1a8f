// Package dtls12 does handshakes of DTLS 1.2 (RFC 6347) with raw public keys
// (RFC 7250), with certificates (as a server) and with pre-shared keys (RFC 4279), as the DTLS profile of ACE
// asks for them (RFC 9202): TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 and
// TLS_PSK_WITH_AES_128_CCM_8 first, then their kin. Both ends authenticate
// themselves, always. There is no renegotiation and no resumption.
//
// A [Handshake] is a state machine and nothing else: it has no goroutine, no
// socket and no clock. Its owner gives it what comes ([Handshake.Receive]) and
// tells it that time has passed ([Handshake.Expire]); what it wants to send is
// taken from [Handshake.Output]. When it is done a [Result] has the keys, and
// package record protects what follows.
//
// A server keeps nothing for a client that may be nobody: a ClientHello without
// a cookie is answered by [Cookies.Verify] alone, and [Accept] begins with one
// that has it. A client begins with [Connect], or has [Dial] do everything.
//
// Bytes of the network are bounded before they are kept: limits.go.
package dtls12

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// ErrUnknown is what a [Config] answers about a peer that may not come in: the
// handshake ends with the alert of its kind.
var ErrUnknown = errors.New("dtls12: unknown peer")

// Config is what all handshakes of one end have in common. Its functions may
// wait; they are called by Receive.
type Config struct {
	// Key authenticates this end. nil: no raw public keys.
	Key *Key
	// Peer is asked about the public key of a peer, a SubjectPublicKeyInfo in DER,
	// of which it has shown possession. An error that wraps [ErrUnknown] is told as
	// certificate_unknown, any other as internal_error. It is needed with Key.
	Peer func(spki []byte) error
	// Certificate authenticates a server to clients without raw public keys; nil: no
	// certificates.
	Certificate *Key
	// PeerChain is asked about the certificates of a client, its own first, of whose
	// key it has shown possession. Errors are told as those of Peer; what package
	// x509 finds wrong has alerts of its own. nil: clients show no certificates.
	PeerChain func(chain []*x509.Certificate) error
	// PSK finds the key of a psk_identity, of a server. An error that wraps
	// ErrUnknown is told as illegal_parameter (RFC 9202, Section 3.3.2), any other
	// as internal_error. nil: no pre-shared keys.
	PSK func(identity []byte) ([]byte, error)
	// CID is the connection ID that is given to the peer (RFC 9146); nil: none. A
	// client that gives an empty one wants to use that of the server, and none in
	// what it receives.
	CID []byte
	// Rand gives the random of the hello and the ephemeral key; nil: crypto/rand.
	Rand io.Reader
}

// Result is a finished handshake.
type Result struct {
	Suite       record.Suite
	Read, Write record.Keys
	// PeerKey is the SubjectPublicKeyInfo of the peer in DER; nil with a
	// pre-shared key.
	PeerKey []byte
	// PeerChain is what the key came in, the peer's own certificate first; nil: it
	// was a raw public key.
	PeerChain []*x509.Certificate
	// Identity is the psk_identity; nil with raw public keys.
	Identity []byte
	// CID is by what the peer names us in its records, PeerCID by what it wants to
	// be named in ours; nil: not at all.
	CID, PeerCID []byte

	master         []byte
	client, server [32]byte
	bound          bool // the master secret is of this handshake alone
}

// maxExport bounds what is exported at a time, in bytes.
const maxExport = 1024

// Export is the keying material exporter of RFC 5705. A nil context is absent,
// an empty one is present and empty. With public keys it needs the extended
// master secret: without, two handshakes can be made to have one secret (RFC
// 7627, Section 1).
func (r *Result) Export(label string, context []byte, n int) ([]byte, error) {
	switch {
	case n < 1 || n > maxExport || len(context) > maxExport:
		return nil, fmt.Errorf("dtls12: exporter: length %d", n)
	case !r.bound:
		return nil, errors.New("dtls12: exporter: the peer does not know the extended master secret (RFC 7627)")
	}
	return record.Export(r.master, r.client, r.server, label, context, n), nil
}

// phase is where a handshake is.
type phase uint8

//	client: awaitHello ─▶ awaitFlight ─▶ awaitFinished ─▶ done
//	server:               awaitFlight ─▶ awaitFinished ─▶ done
//
// Any of them may fail instead.
const (
	awaitHello    phase = iota // a client: HelloVerifyRequest or ServerHello
	awaitFlight                // the messages of the peer up to its Finished, or ServerHelloDone
	awaitFinished              // the Finished of the peer
	done
	failed
)

// Handshake is one handshake. It is not safe for concurrent use.
type Handshake struct {
	cfg    *Config
	client bool
	phase  phase
	err    error

	hello      *ClientHello // a client: its own
	local      [32]byte     // randoms
	remote     [32]byte
	suite      record.Suite
	extended   bool // extended master secret
	ephemeral  *ephemeral
	own        *Key // a server: what it shows
	chained    bool // a server: the client shows certificates
	peerChain  []*x509.Certificate
	peerKey    []byte // SubjectPublicKeyInfo
	proven     bool   // the peer signed, or knows the pre-shared key
	requested  bool   // a client: its key was asked for
	shared     bool   // a client: the ephemeral key of the server is there
	identity   []byte
	transcript []byte // of all messages so far, as unfragmented

	result Result
	sender
	receiver
}

// Done says that the handshake succeeded.
func (h *Handshake) Done() bool { return h.phase == done }

// Err is why the handshake failed; nil: it did not.
func (h *Handshake) Err() error { return h.err }

// Result is the outcome of a handshake that is done.
func (h *Handshake) Result() *Result { return &h.result }

// random fills b.
func (c *Config) random(b []byte) error {
	r := c.Rand
	if r == nil {
		r = rand.Reader
	}
	_, err := io.ReadFull(r, b)
	return err
}

// fail ends the handshake, and tells the peer why.
func (h *Handshake) fail(a Alert, format string, args ...any) {
	if h.phase == failed {
		return
	}
	alert := part{kind: record.Alert, body: []byte{levelFatal, byte(a)}}
	if h.client && h.phase == awaitFinished {
		alert.epoch = 1 // our ChangeCipherSpec has gone out
	}
	h.phase, h.err = failed, &AlertError{Alert: a, cause: fmt.Errorf(format, args...)}
	h.deadline = time.Time{}
	h.push(h.pack(nil, alert))
}

// randoms are those of client and server.
func (h *Handshake) randoms() (client, server [32]byte) {
	if h.client {
		return h.local, h.remote
	}
	return h.remote, h.local
}

// secrets derives everything from a premaster secret; the transcript ends with
// the ClientKeyExchange.
func (h *Handshake) secrets(premaster []byte) error {
	client, server := h.randoms()
	r := &h.result
	r.Suite, r.client, r.server = h.suite, client, server
	r.master = make([]byte, 48)
	if h.extended {
		sum := sha256.Sum256(h.transcript) // RFC 7627, Section 4
		record.PRF(r.master, premaster, "extended master secret", sum[:])
	} else {
		record.PRF(r.master, premaster, "master secret", client[:], server[:])
	}
	clear(premaster)
	r.bound = h.extended || pskSuite(h.suite)
	fromClient, fromServer, err := record.Derive(h.suite, r.master, client, server)
	if err != nil {
		return err
	}
	r.Read, r.Write = fromClient, fromServer
	if h.client {
		r.Read, r.Write = fromServer, fromClient
	}
	if h.reader, err = record.NewCipher(h.suite, &r.Read); err != nil {
		return err
	}
	h.writer, err = record.NewCipher(h.suite, &r.Write)
	return err
}

// finished is the verify_data of one end (RFC 5246, Section 7.4.9).
func (h *Handshake) finished(ofClient bool) []byte {
	label := "server finished"
	if ofClient {
		label = "client finished"
	}
	sum := sha256.Sum256(h.transcript)
	out := make([]byte, finishedSize)
	record.PRF(out, h.result.master, label, sum[:])
	return out
}

// finish is called when both Finished are there.
func (h *Handshake) finish() {
	r := &h.result
	r.PeerKey, r.PeerChain, r.Identity = h.peerKey, h.peerChain, bytes.Clone(h.identity)
	r.CID, r.PeerCID = h.cid, h.peerCID
	h.phase, h.deadline = done, time.Time{}
	h.transcript, h.ephemeral, h.hello = nil, nil, nil
	h.receiver.forget()
}
