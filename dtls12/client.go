package dtls12

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// Connect begins the handshake of a client with a raw public key.
func Connect(c *Config, now time.Time) *Handshake {
	h := &Handshake{cfg: c, client: true, phase: awaitHello}
	h.hello = &ClientHello{
		suites:  []record.Suite{record.ECDSACCM8, record.ECDSACCM, record.ECDSAGCM},
		groups:  []int{groupX25519, groupP256},
		schemes: []int{schemeES256, schemeEd25519},
		shows:   []byte{rawPublicKey},
		takes:   []byte{rawPublicKey},
		cid:     c.CID,
	}
	if c.Key == nil {
		h.phase, h.err = failed, errors.New("dtls12: a client needs a key")
		return h
	}
	if err := c.random(h.local[:]); err != nil {
		h.phase, h.err = failed, err
		return h
	}
	h.hello.Random = h.local
	h.sendHello(now)
	return h
}

// sendHello sends the ClientHello; what was said before does not count (RFC
// 6347, Section 4.2.1).
func (h *Handshake) sendHello(now time.Time) {
	repeats := h.repeats
	h.transcript = h.transcript[:0]
	h.begin()
	h.add(typeClientHello, h.hello.encode())
	h.send(now, true)
	h.repeats = repeats
}

// verifyRequest answers a HelloVerifyRequest.
func (h *Handshake) verifyRequest(body []byte, now time.Time) {
	cookie, err := decodeVerifyRequest(body)
	if err != nil || bytes.Equal(cookie, h.hello.Cookie) || h.repeats >= maxRepeats {
		return // a repeated one: ours will be repeated as well
	}
	h.repeats++
	h.hello.Cookie = bytes.Clone(cookie)
	h.sendHello(now)
}

// fromServer handles the messages of a server, of which the order is
//
//	ServerHello, Certificate, ServerKeyExchange, CertificateRequest,
//	ServerHelloDone, and then Finished
func (h *Handshake) fromServer(kind uint8, seq uint16, body []byte, now time.Time) {
	h.transcript = append(h.transcript, wrap(kind, seq, body)...)
	var err error
	switch {
	case kind == typeServerHello && h.phase == awaitHello:
		if err = h.serverHello(body); err == nil {
			h.phase = awaitFlight
		}
	case kind == typeCertificate && h.phase == awaitFlight && h.peerKey == nil:
		err = h.serverCertificate(body)
	case kind == typeServerKeyExchange && h.phase == awaitFlight && h.peerKey != nil && !h.shared:
		err = h.serverKeyExchange(body)
	case kind == typeCertificateRequest && h.phase == awaitFlight && h.shared && !h.requested:
		h.requested, err = decodeCertificateRequest(body, h.cfg.Key.scheme)
		if err == nil && !h.requested {
			err = alertOf(HandshakeFailure, errors.New("the server takes no key like ours"))
		}
	case kind == typeServerHelloDone && h.phase == awaitFlight && h.shared && len(body) == 0:
		if !h.requested {
			// RFC 9202, Section 3.2.1: both ends authenticate themselves.
			err = alertOf(HandshakeFailure, errors.New("the server does not ask for our key"))
			break
		}
		h.lastMsg = seq
		err = h.answerServer(now)
	case kind == typeFinished && h.phase == awaitFinished:
		h.serverFinished(body)
		return
	default:
		h.fail(UnexpectedMessage, "message %d", kind)
		return
	}
	h.checked(err)
}

func (h *Handshake) serverHello(body []byte) error {
	m, err := decodeServerHello(body)
	switch {
	case err != nil:
		return err
	case m.version != version:
		return alertOf(ProtocolVersion, errors.New("the server has another version"))
	case !slices.Contains(h.hello.suites, m.suite):
		return alertOf(IllegalParameter, errors.New("a cipher suite that was not offered"))
	case !raw(m.clientType) || !raw(m.serverType):
		return alertOf(UnsupportedCertificate, errors.New("the server has no raw public keys"))
	case !m.extended:
		return alertOf(HandshakeFailure, errors.New("the server does not know the extended master secret"))
	case m.cid != nil && h.hello.cid == nil:
		return alertOf(IllegalParameter, errors.New("a connection ID that was not asked for"))
	}
	h.remote, h.suite, h.extended = m.random, m.suite, m.extended
	if m.cid != nil {
		if len(m.cid) > 0 {
			h.peerCID = bytes.Clone(m.cid)
		}
		if len(h.hello.cid) > 0 {
			h.cid = h.hello.cid
		}
	}
	return nil
}

func raw(kind []byte) bool { return len(kind) == 1 && kind[0] == rawPublicKey }

func (h *Handshake) serverCertificate(body []byte) error {
	spki, err := decodeCertificate(body)
	if err != nil {
		return err
	}
	if h.peerKey, err = canonical(spki); err != nil {
		return alertOf(UnsupportedCertificate, err)
	}
	return nil
}

func (h *Handshake) serverKeyExchange(body []byte) error {
	m, err := decodeServerKeyExchange(body)
	if err != nil {
		return err
	}
	if !slices.Contains(h.hello.groups, m.group) {
		return alertOf(IllegalParameter, errors.New("a group that was not offered"))
	}
	client, server := h.randoms()
	if !verify(h.peerKey, m.scheme, signedParams(client, server, m.params), m.signature) {
		return alertOf(DecryptError, errors.New("the signature of the server does not verify"))
	}
	h.proven = true
	if err := h.known(); err != nil {
		return err
	}
	if h.ephemeral, err = h.cfg.newEphemeral(m.group); err != nil {
		return alertOf(InternalError, err)
	}
	h.ephemeral.peer, h.shared = bytes.Clone(m.point), true
	return nil
}

// answerServer sends the second flight of the client.
func (h *Handshake) answerServer(now time.Time) error {
	premaster, err := h.ephemeral.agree(h.ephemeral.peer)
	if err != nil {
		return alertOf(IllegalParameter, err)
	}
	key := h.cfg.Key
	h.begin()
	h.add(typeCertificate, key.certificate())
	h.add(typeClientKeyExchange, appendVector(nil, 1, h.ephemeral.key.PublicKey().Bytes()))
	if err := h.secrets(premaster); err != nil {
		return alertOf(InternalError, err)
	}
	signature, err := key.sign(h.transcript)
	if err != nil {
		return alertOf(InternalError, err)
	}
	h.add(typeCertificateVerify, appendSigned(nil, key.scheme, signature))
	h.add(typeFinished, h.finished(true))
	h.phase = awaitFinished
	h.send(now, true)
	return nil
}

// serverFinished: the transcript has the message already, which the server left
// out of what it computed.
func (h *Handshake) serverFinished(body []byte) {
	h.transcript = h.transcript[:len(h.transcript)-headerSize-len(body)]
	if subtle.ConstantTimeCompare(body, h.finished(false)) != 1 {
		h.fail(DecryptError, "the Finished of the server does not verify")
		return
	}
	h.begin() // there is nothing that could be repeated
	h.finish()
}
