package dtls12

import (
	"crypto/x509"
	"errors"
)

// Certificates (RFC 5246, Sections 7.4.2 and 7.4.6; RFC 7252, Section 9.1.3.3). Only
// servers have them here: who is in the chain is the business of [Config].

// encodeChain is the body of a Certificate with certificates.
func encodeChain(chain [][]byte) []byte {
	var list []byte
	for _, c := range chain {
		list = appendVector(list, 3, c)
	}
	return appendVector(nil, 3, list)
}

// decodeChain reads it.
func decodeChain(b []byte) (chain [][]byte, err error) {
	r := reader{b: b}
	list := reader{b: r.vector(3, 0, maxMessage)}
	for len(list.b) > 0 {
		chain = append(chain, list.vector(3, 1, maxMessage))
		if list.bad || len(chain) > maxChain {
			return nil, errDecode
		}
	}
	return chain, r.end()
}

// clientChain reads the certificates of a client. That they are worth anything is
// found out when it has shown that the key of the first is its own.
func (h *Handshake) clientChain(body []byte) error {
	list, err := decodeChain(body)
	switch {
	case err != nil:
		return err
	case len(list) == 0:
		// RFC 9202: both ends authenticate themselves.
		return alertOf(HandshakeFailure, errors.New("the client shows no certificate"))
	}
	chain := make([]*x509.Certificate, len(list))
	for i, der := range list {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return alertOf(BadCertificate, err)
		}
	}
	leaf := chain[0]
	if h.peerKey, _, err = publicKey(leaf.PublicKey); err != nil {
		return alertOf(UnsupportedCertificate, err)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		// RFC 5246, Section 7.4.2: if there is a key usage, it allows to sign.
		return alertOf(UnsupportedCertificate, errors.New("the certificate's key is not for signatures"))
	}
	h.peerChain = chain
	return nil
}

// refusal is the alert for a peer that is not known (RFC 5246, Section 7.2.2).
func refusal(err error) Alert {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return UnknownCA
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return CertificateExpired
		}
		return BadCertificate
	}
	return CertificateUnknown
}
