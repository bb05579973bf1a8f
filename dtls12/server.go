package dtls12

import (
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

func pskSuite(s record.Suite) bool {
	return s == record.PSKCCM8 || s == record.PSKCCM || s == record.PSKGCM
}

func keySuite(s record.Suite) bool {
	return s == record.ECDSACCM8 || s == record.ECDSACCM || s == record.ECDSAGCM
}

// Choose finds the cipher suite that this end and a client have in common, the
// one that the client likes best; 0: none. Who offers suites with certificates may
// still have none, who offers those of pre-shared keys has a key: certificates are for
// those who do not.
func (c *Config) Choose(h *ClientHello) record.Suite {
	keys := c.show(h) != nil && h.group() != 0 && (h.formats == nil || slices.Contains(h.formats, 0))
	switch c.take(h) {
	case x509Certificate:
		keys = keys && !slices.ContainsFunc(h.suites, pskSuite)
	case rawPublicKey:
	default:
		keys = false
	}
	for _, s := range h.suites {
		if keySuite(s) && keys || pskSuite(s) && c.PSK != nil {
			return s
		}
	}
	return 0
}

// OffersKeys says whether a client knows suites in which both ends show public
// keys.
func (h *ClientHello) OffersKeys() bool { return slices.ContainsFunc(h.suites, keySuite) }

// Kind says how a client will show itself: "psk", "raw" or "cert".
func (c *Config) Kind(h *ClientHello) string {
	switch {
	case !keySuite(c.Choose(h)):
		return "psk"
	case c.take(h) == rawPublicKey:
		return "raw"
	}
	return "cert"
}

// usual are the certificate types of who names none (RFC 7250, Section 4.1).
func usual(types []byte) []byte {
	if types == nil {
		return []byte{x509Certificate}
	}
	return types
}

// show is what we show a client, in the form that it likes best of those that we
// have, with a signature that it can verify; nil: nothing. A client that names no
// schemes or groups is one of few of them: it gets what RFC 7252, Section
// 9.1.3.2, has.
func (c *Config) show(h *ClientHello) *Key {
	for _, t := range usual(h.takes) {
		var k *Key
		switch t {
		case rawPublicKey:
			k = c.Key
		case x509Certificate:
			k = c.Certificate
		}
		if k != nil && (h.schemes == nil && k.scheme == schemeES256 || slices.Contains(h.schemes, k.scheme)) {
			return k
		}
	}
	return nil
}

// take is the certificate type in which a client shows its key; -1: none that we
// know how to judge.
func (c *Config) take(h *ClientHello) int {
	for _, t := range usual(h.shows) {
		if t == rawPublicKey && c.Peer != nil || t == x509Certificate && c.PeerChain != nil {
			return int(t)
		}
	}
	return -1
}

// group is the one of the key agreement; 0: none in common.
func (h *ClientHello) group() int {
	if h.groups == nil {
		return groupP256
	}
	for _, g := range h.groups {
		if curveOf(g) != nil {
			return g
		}
	}
	return 0
}

// Accept begins the handshake of a server with a ClientHello whose cookie was
// verified.
func Accept(c *Config, hello *ClientHello, now time.Time) *Handshake {
	h := &Handshake{cfg: c, phase: awaitFlight, remote: hello.Random, suite: c.Choose(hello), extended: hello.extended}
	h.transcript = append(h.transcript, hello.message...)
	// RFC 6347, Section 4.2.1: a server that kept nothing goes on with the numbers
	// of the ClientHello.
	h.numbers[0], h.message = hello.record, hello.seq
	h.lastMsg, h.next = hello.seq, hello.seq+1
	switch {
	case hello.version > version || hello.version>>8 != version>>8:
		h.fail(ProtocolVersion, "the client has version %#x", hello.version)
		return h
	case h.suite == 0:
		h.fail(HandshakeFailure, "no cipher suite in common")
		return h
	}
	if err := c.random(h.local[:]); err != nil {
		h.fail(InternalError, "random: %w", err)
		return h
	}
	answer := serverHello{random: h.local, suite: h.suite, extended: hello.extended, secure: hello.secure}
	if hello.cid != nil && c.CID != nil {
		// RFC 9146, Section 3: each end says by which ID it wants to be known.
		answer.cid, h.cid = c.CID, c.CID
		if h.peerCID = hello.cid; len(h.peerCID) == 0 {
			h.peerCID = nil
		}
	}
	if keySuite(h.suite) {
		h.own, h.chained, answer.formats = c.show(hello), c.take(hello) == x509Certificate, hello.formats != nil
		// RFC 7250, Section 4.2: what was not asked about is not answered.
		if hello.shows != nil {
			answer.clientType = []byte{uint8(c.take(hello))}
		}
		if hello.takes != nil {
			answer.serverType = []byte{h.own.kind()}
		}
	}
	h.add(typeServerHello, answer.encode())
	if keySuite(h.suite) {
		if err := h.offerKey(hello.group()); err != nil {
			h.fail(InternalError, "key exchange: %w", err)
			return h
		}
	}
	h.add(typeServerHelloDone, nil)
	h.send(now, true)
	return h
}

// offerKey adds what a server with a public key says.
func (h *Handshake) offerKey(group int) (err error) {
	key := h.own
	if h.ephemeral, err = h.cfg.newEphemeral(group); err != nil {
		return err
	}
	params := ecParams(group, h.ephemeral.key.PublicKey().Bytes())
	client, server := h.randoms()
	signature, err := key.sign(signedParams(client, server, params))
	if err != nil {
		return err
	}
	h.add(typeCertificate, key.certificate())
	h.add(typeServerKeyExchange, appendSigned(params, key.scheme, signature))
	h.add(typeCertificateRequest, encodeCertificateRequest())
	return nil
}

// fromClient handles the messages of a client, of which the order is
//
//	public key       Certificate, ClientKeyExchange, CertificateVerify, Finished
//	pre-shared key   ClientKeyExchange, Finished
func (h *Handshake) fromClient(kind uint8, seq uint16, body []byte, now time.Time) {
	keys := keySuite(h.suite)
	var err error
	switch {
	case kind == typeCertificate && keys && h.phase == awaitFlight && h.peerKey == nil:
		err = h.clientCertificate(body)
	case kind == typeClientKeyExchange && h.phase == awaitFlight && (!keys || h.peerKey != nil):
		h.transcript = append(h.transcript, wrap(kind, seq, body)...)
		if err = h.clientKeyExchange(body); err == nil {
			h.phase = awaitFinished
		}
		h.checked(err)
		return
	case kind == typeCertificateVerify && keys && h.phase == awaitFinished && !h.proven:
		var scheme int
		var signature []byte
		if scheme, signature, err = decodeCertificateVerify(body); err == nil && !verify(h.peerKey, scheme, h.transcript, signature) {
			err = alertOf(DecryptError, errors.New("the signature of the client does not verify"))
		}
		h.proven = err == nil
	case kind == typeFinished && h.phase == awaitFinished && h.proven:
		h.clientFinished(seq, body, now)
		return
	default:
		h.fail(UnexpectedMessage, "message %d", kind)
		return
	}
	h.transcript = append(h.transcript, wrap(kind, seq, body)...)
	h.checked(err)
}

// tellable is an error that names its alert.
type tellable struct {
	alert Alert
	error
}

func (t tellable) Unwrap() error { return t.error }

func alertOf(a Alert, err error) error { return tellable{a, err} }

// checked ends the handshake when there is an error.
func (h *Handshake) checked(err error) {
	if err == nil {
		return
	}
	a := DecodeError
	if t, ok := errors.AsType[tellable](err); ok {
		a = t.alert
	}
	h.fail(a, "%w", err)
}

func (h *Handshake) clientCertificate(body []byte) error {
	if h.chained {
		return h.clientChain(body)
	}
	spki, err := decodeCertificate(body)
	if err != nil {
		return err
	}
	if len(spki) == 0 {
		return alertOf(HandshakeFailure, errors.New("the client shows no key"))
	}
	if h.peerKey, err = canonical(spki); err != nil {
		return alertOf(UnsupportedCertificate, err)
	}
	return nil
}

func (h *Handshake) clientKeyExchange(body []byte) error {
	psk := pskSuite(h.suite)
	v, err := decodeClientKeyExchange(body, psk)
	if err != nil {
		return err
	}
	var premaster []byte
	if psk {
		key, err := h.cfg.PSK(v)
		switch {
		case errors.Is(err, ErrUnknown):
			return alertOf(IllegalParameter, err) // RFC 9202, Section 3.3.2
		case err != nil || len(key) == 0:
			return alertOf(InternalError, errors.Join(errors.New("no pre-shared key"), err))
		}
		premaster = pskPremaster(key)
		h.identity, h.proven = v, true // by the Finished
	} else if premaster, err = h.ephemeral.agree(v); err != nil {
		return alertOf(IllegalParameter, err)
	}
	if err := h.secrets(premaster); err != nil {
		return alertOf(InternalError, err)
	}
	return nil
}

func (h *Handshake) clientFinished(seq uint16, body []byte, now time.Time) {
	if subtle.ConstantTimeCompare(body, h.finished(true)) != 1 {
		h.fail(DecryptError, "the Finished of the client does not verify")
		return
	}
	h.transcript = append(h.transcript, wrap(typeFinished, seq, body)...)
	if err := h.known(); err != nil {
		h.checked(err)
		return
	}
	h.lastMsg = seq
	h.begin()
	h.add(typeFinished, h.finished(false))
	h.send(now, false)
	h.finish()
}

// known asks about the key that the peer has shown to hold.
func (h *Handshake) known() error {
	if h.peerKey == nil {
		return nil
	}
	var err error
	if h.chained {
		err = h.cfg.PeerChain(h.peerChain)
	} else {
		err = h.cfg.Peer(h.peerKey)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnknown):
		return alertOf(refusal(err), err)
	}
	return alertOf(InternalError, err)
}
