package proxy

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/test/certs"
)

// TestNoHandshake: whatever there is wrong with a handshake, the log says what and what
// to do, and so does the answer; neither has a key in it.
func TestNoHandshake(t *testing.T) {
	t.Parallel()
	ours, theirs := certs.New(t), certs.New(t)
	here := []net.IP{net.IPv4(127, 0, 0, 1)}
	cert, key := ours.Pair("edge")
	strange, strangeKey := theirs.Pair("edge")
	show := func(c, k []byte) func() ([]byte, []byte) { return func() ([]byte, []byte) { return c, k } }
	certificate := &Credential{Roots: ours.Roots(), Cert: show(cert, key)}
	secret := func(identity string, k string) *Credential {
		return &Credential{Identity: []byte(identity), Key: func() []byte { return []byte(k) }}
	}
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	nobody := Target{Scheme: CoAPS, Host: "127.0.0.1", Port: silent.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	withKey := serving(t, &psk{identity: "edge", key: []byte("0123456789abcdef")}, echoing).target()
	with := func(scheme string, c *x509.Certificate) Target {
		pem, key := ours.PairFor(c)
		return certifiedWith(t, scheme, ours, pem, key)
	}
	for _, tt := range []struct {
		name string
		to   Target
		ours *Credential
		code coap.Code
		why  shakeError
		time time.Duration
	}{
		{"unknown identity", withKey, secret("other", "0123456789abcdef"), coap.BadGateway, shakeIdentity, 0},
		{"wrong key", withKey, secret("edge", "fedcba9876543210"), coap.BadGateway, shakeHalf, 3 * time.Second},
		{"nobody", nobody, secret("edge", "0123456789abcdef"), coap.GatewayTimeout, shakeNobody, time.Second},
		{"PSK at a server with certificates", certified(t, CoAPS, ours), secret("edge", "0123456789abcdef"), coap.BadGateway, shakeSuites, 0},
		{"certificate at a server with PSK", withKey, certificate, coap.BadGateway, shakeSuites, 0},
		{"untrusted, DTLS", certified(t, CoAPS, ours), &Credential{Roots: theirs.Roots(), Cert: show(cert, key)}, coap.BadGateway, shakeUntrusted, 0},
		{"untrusted, TLS", certified(t, CoAPSTCP, ours), &Credential{Roots: theirs.Roots(), Cert: show(cert, key)}, coap.BadGateway, shakeUntrusted, 0},
		{"expired, DTLS", with(CoAPS, &x509.Certificate{IPAddresses: here, NotAfter: time.Now().Add(-time.Minute)}), certificate, coap.BadGateway, shakeExpired, 0},
		{"expired, TLS", with(CoAPSTCP, &x509.Certificate{IPAddresses: here, NotAfter: time.Now().Add(-time.Minute)}), certificate, coap.BadGateway, shakeExpired, 0},
		{"wrong name, DTLS", with(CoAPS, &x509.Certificate{DNSNames: []string{"elsewhere.test"}}), certificate, coap.BadGateway, shakeName, 0},
		{"wrong name, TLS", with(CoAPSTCP, &x509.Certificate{DNSNames: []string{"elsewhere.test"}}), certificate, coap.BadGateway, shakeName, 0},
		{"ours untrusted, DTLS", certified(t, CoAPS, ours), &Credential{Roots: ours.Roots(), Cert: show(strange, strangeKey)}, coap.BadGateway, shakeOurs, 0},
		{"ours untrusted, TLS", certified(t, CoAPSTCP, ours), &Credential{Roots: ours.Roots(), Cert: show(strange, strangeKey)}, coap.BadGateway, shakeOurs, 0},
		{"ours missing, TLS", certified(t, CoAPSTCP, ours), &Credential{Roots: ours.Roots()}, coap.BadGateway, shakeNone, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rule := forwardTo(tt.to)
			rule.Credential = tt.ours
			var log bytes.Buffer // written by one goroutine before it answers
			s := house(t, Config{Rules: []Rule{rule}}, func(d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			if tt.time > 0 {
				s.p.shaking = tt.time
			}
			r := do(t, s.client("a", coaptest.Options{}), proxied(coap.GET, tt.to.String()+"/x", nil))
			if r.Code != tt.code || !strings.Contains(string(r.Payload), tt.why.why) || !strings.Contains(string(r.Payload), tt.why.hint) {
				t.Errorf("%v %q", r.Code, r.Payload)
			}
			if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, tt.why.why) || !strings.Contains(got, tt.why.hint) || strings.Contains(got, "abcdef") {
				t.Errorf("%s", got)
			}
		})
	}
}
