package config

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
)

// Certificate is what the gateway shows to DTLS clients that have certificates, and
// whose it accepts.
type Certificate struct {
	Chain [][]byte // DER, the gateway's own first
	Key   crypto.Signer
	Leaf  *x509.Certificate
	Roots *x509.CertPool // nil: only keys that are known otherwise
}

func (c *Config) validateCertificate(f *faults) {
	l := &c.Listen
	switch cert, key := l.CoAPSCertFile != "", l.CoAPSKeyFile != ""; {
	case cert && !key:
		f.add("listen.coaps_key_file", "listen.coaps_cert_file needs the key of its certificate")
	case !cert && key:
		f.add("listen.coaps_cert_file", "is missing: listen.coaps_key_file is the key of a certificate")
	case !cert && l.CoAPSRootsFile != "":
		f.add("listen.coaps_cert_file", "is missing: who asks for certificates has one")
	case cert && c.Endpoint.Kind != EndpointOwn:
		f.add("listen.coaps_cert_file", "is for endpoint.kind: own")
	}
}

// certificate reads what listen.coaps shows and trusts. Handshakes are signed with
// ECDSA on P-256 (RFC 7252, Section 9.1.3.3) or Ed25519; who signed the certificate may
// use what it likes.
func (r *keyReader) certificate() {
	l := &r.c.Listen
	cert, ok1 := r.file("listen.coaps_cert_file", l.CoAPSCertFile, false)
	key, ok2 := r.file("listen.coaps_key_file", l.CoAPSKeyFile, true)
	roots, ok3 := r.file("listen.coaps_roots_file", l.CoAPSRootsFile, false)
	if !ok1 || !ok2 || !ok3 && l.CoAPSRootsFile != "" {
		return
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		r.faults.add("listen.coaps_cert_file", "%s with %s: %s", l.CoAPSCertFile, l.CoAPSKeyFile, err)
		return
	}
	c := &Certificate{Chain: pair.Certificate, Leaf: pair.Leaf}
	switch k := pair.PrivateKey.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			c.Key = k
		}
	case ed25519.PrivateKey:
		c.Key = k
	}
	if c.Key == nil {
		r.faults.add("listen.coaps_key_file", "must be a key of ECDSA on P-256, which every node knows, or of Ed25519")
		return
	}
	if ok3 {
		if c.Roots = x509.NewCertPool(); !c.Roots.AppendCertsFromPEM(roots) {
			r.faults.add("listen.coaps_roots_file", "%s holds no certificate", l.CoAPSRootsFile)
			return
		}
	}
	l.CoAPSCert = c
}
