package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync/atomic"
	"syscall"
)

// shakeError says why there is no association with an upstream, in words that are fit for
// the log and for clients: they hold no secret, and nothing that the upstream sent.
type shakeError struct {
	why, hint string
	cause     error
	silent    bool // nobody said anything
}

func (e *shakeError) Error() string {
	if e.cause == nil {
		return e.why
	}
	return e.why + ": " + e.cause.Error()
}

func (e *shakeError) Unwrap() []error {
	if e.silent {
		return []error{errSilent, e.cause}
	}
	return []error{errShake, e.cause}
}

// Failures of handshakes.
var (
	shakeIdentity  = shakeError{why: "the server does not know the identity of the gateway", hint: "is the identity of the rule one that the server has?"}
	shakeKey       = shakeError{why: "the server does not accept the identity or the key of the gateway", hint: "compare the identity and the key_file of the rule with what the server has"}
	shakeHalf      = shakeError{why: "the server began the handshake, and did not end it", hint: "most do so when the pre-shared key is another one: compare the key_file of the rule with what the server has"}
	shakeNobody    = shakeError{why: "nothing answered the handshake", hint: "is the server running there, and is this its port of DTLS?", silent: true}
	shakeUntrusted = shakeError{why: "the certificate of the server leads to no root that is trusted", hint: "the ca_file of the rule has to hold the root that issued it"}
	shakeExpired   = shakeError{why: "the certificate of the server has expired, or is not valid yet", hint: "renew it there, or set the clock here"}
	shakeName      = shakeError{why: "the certificate of the server is for another name", hint: "the host of the URI has to be among its names; an address among its IP addresses"}
	shakeUnsound   = shakeError{why: "the certificate of the server is not usable", hint: "the log of the gateway says why"}
	shakeOurs      = shakeError{why: "the server does not accept the certificate of the gateway, or wants one", hint: "is there a cert_file in the rule, is it valid, and does the server have the root that issued it?"}
	shakeNone      = shakeError{why: "the server wants a certificate of the gateway, of a root that it has", hint: "name one by cert_file and key_file of the rule"}
	shakeSuites    = shakeError{why: "the server and the gateway have no cipher suite in common", hint: "a server with pre-shared keys wants an identity and key_file in the rule, one with certificates a ca_file; the suites are in docs/proxy.md"}
	shakeOther     = shakeError{why: "the handshake failed", hint: "the log of the gateway says how"}
)

// Alerts (RFC 5246, Section 7.2; RFC 4279, Section 2; RFC 8446, Section 6) that tell why.
const (
	alertClose        = 0
	alertBadMAC       = 20
	alertHandshake    = 40
	alertBadCert      = 42
	alertUnknownCert  = 46
	alertIllegal      = 47
	alertUnknownCA    = 48
	alertDenied       = 49
	alertDecrypt      = 51
	alertInsufficient = 71
	alertInternal     = 80
	alertUnknownPSK   = 115
	alertCertRequired = 116
	recordAlert       = 21
	recordHandshake   = 22
	typeServerHello   = 2
	recordHeader      = 13
	alertNone         = -1
	remoteAlert       = "remote error" // net.OpError.Op of crypto/tls
)

// How far a handshake came.
const (
	shakeUnheard = iota // the server said nothing
	shakeHeard
	shakeHello // it chose a cipher suite
)

// shake says what went wrong with a handshake. alert is what the server sent; psk: with a
// pre-shared key.
func shake(err error, alert int, psk bool, reached int32) error {
	because := func(e shakeError) error { e.cause = err; return &e }
	var untrusted x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &untrusted):
		return because(shakeUntrusted)
	case errors.As(err, &name):
		return because(shakeName)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return because(shakeExpired)
	case errors.As(err, &invalid):
		return because(shakeUnsound)
	case alert == alertUnknownPSK, psk && (alert == alertIllegal || alert == alertInternal || alert == alertDenied):
		return because(shakeIdentity) // which of them depends on the server's stack
	case psk && (alert == alertDecrypt || alert == alertBadMAC || alert == alertHandshake && reached == shakeHello):
		return because(shakeKey)
	case psk && alert == alertClose && reached == shakeHello:
		return because(shakeHalf)
	case alert == alertHandshake && reached == shakeHello:
		return because(shakeOurs)
	case alert == alertHandshake, alert == alertInsufficient:
		return because(shakeSuites)
	case alert == alertCertRequired:
		return because(shakeNone)
	case !psk && (alert >= alertBadCert && alert <= alertUnknownCert || alert == alertUnknownCA || alert == alertDenied || alert == alertDecrypt):
		return because(shakeOurs)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", errRefused, err)
	case errors.Is(err, context.DeadlineExceeded) && reached != shakeUnheard:
		return because(shakeHalf)
	case errors.Is(err, context.DeadlineExceeded):
		return because(shakeNobody)
	}
	return because(shakeOther)
}

// alertOf is the alert that ended a connection of crypto/tls, whose type is its own.
func alertOf(err error) int {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == remoteAlert {
		if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
			return int(v.Uint())
		}
	}
	return alertNone
}

// eavesdropper sees the alerts of a handshake over DTLS as they come: pion has no name for
// some, and takes none that comes in a wrong place.
type eavesdropper struct {
	net.Conn
	alert   atomic.Int32 // alertNone: none
	reached atomic.Int32
	over    atomic.Bool // the handshake is
}

func (e *eavesdropper) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if n > 0 && !e.over.Load() {
		e.reached.CompareAndSwap(shakeUnheard, shakeHeard)
		// Type, version, epoch 0, sequence number, length (RFC 6347, Section 4.1).
		switch clear := n >= recordHeader+2 && b[3] == 0 && b[4] == 0; {
		case clear && b[0] == recordAlert:
			e.alert.Store(int32(b[recordHeader+1]))
		case clear && b[0] == recordHandshake && b[recordHeader] == typeServerHello:
			e.reached.Store(shakeHello)
		}
	}
	return n, err
}
