package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/dtls/v3"
	coapmessage "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	coaptcp "github.com/plgd-dev/go-coap/v3/tcp"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/test/certs"
	"github.com/seed4911071e/groupgate/test/ports"
)

// certified runs a server of go-coap that demands a certificate of an authority.
func certified(t *testing.T, scheme string, a *certs.Authority) Target {
	t.Helper()
	pem, key := a.Pair("origin")
	return certifiedWith(t, scheme, a, pem, key)
}

// certifiedWith is certified with a certificate for the server.
func certifiedWith(t *testing.T, scheme string, a *certs.Authority, pem, key []byte) Target {
	t.Helper()
	cert, err := tls.X509KeyPair(pem, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := a.Pool()
	router := mux.NewRouter()
	router.DefaultHandle(mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		body, _ := r.ReadBody()
		_ = w.SetResponse(codes.Content, coapmessage.TextPlain, bytes.NewReader(append([]byte("origin:"), body...)))
	}))
	refused := func(error) {} // what it says of handshakes; the client's side is looked at
	var serve func() error
	var stop func()
	var at net.Addr
	if scheme == CoAPSTCP {
		l, err := coapnet.NewTLSListener("tcp4", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			NextProtos: []string{"coap"}, MinVersion: tls.VersionTLS12,
		})
		if err != nil {
			t.Fatal(err)
		}
		s := coaptcp.NewServer(options.WithMux(router), options.WithErrors(refused))
		at, serve = l.Addr(), func() error { return s.Serve(l) }
		stop = func() { s.Stop(); _ = l.Close() }
	} else {
		l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(
			dtls.WithCertificates(cert), dtls.WithClientAuth(dtls.RequireAndVerifyClientCert), dtls.WithClientCAs(pool),
			dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
		))
		if err != nil {
			t.Fatal(err)
		}
		s := coapdtls.NewServer(options.WithMux(router), options.WithErrors(refused))
		at, serve = l.Addr(), func() error { return s.Serve(l) }
		stop = func() { s.Stop(); _ = l.Close() }
	}
	over := make(chan error, 1)
	go func() { over <- serve() }()
	t.Cleanup(func() {
		stop()
		if err := <-over; err != nil && !errors.Is(err, context.Canceled) {
			t.Log(err)
		}
	})
	ap := netip.MustParseAddrPort(at.String())
	return Target{Scheme: scheme, Host: ap.Addr().String(), Port: ap.Port()}
}

// TestCertificates: upstreams over DTLS and over TLS that prove themselves by
// certificates, and demand one (RFC 7252, Section 9.1.3.3; RFC 8323, Section 9).
func TestCertificates(t *testing.T) {
	ours, theirs := certs.New(t), certs.New(t)
	cert, key := ours.Pair("edge")
	strange, strangeKey := theirs.Pair("edge")
	show := func(c, k []byte) func() ([]byte, []byte) { return func() ([]byte, []byte) { return c, k } }
	for _, scheme := range []string{CoAPS, CoAPSTCP} {
		for name, c := range map[string]struct {
			credential *Credential
			want       coap.Code
			payload    string
		}{
			"both known":           {&Credential{Roots: ours.Roots(), Cert: show(cert, key)}, coap.Content, "origin:"},
			"upstream not trusted": {&Credential{Roots: theirs.Roots(), Cert: show(cert, key)}, coap.BadGateway, ""},
			"ours not trusted":     {&Credential{Roots: ours.Roots(), Cert: show(strange, strangeKey)}, coap.BadGateway, ""},
			"no credential":        {nil, coap.BadGateway, ""},
		} {
			t.Run(scheme+"/"+name, func(t *testing.T) {
				to := certified(t, scheme, ours)
				rule := forwardTo(to)
				rule.Credential = c.credential
				l := house(t, Config{Rules: []Rule{rule}}, nil).client("a", coaptest.Options{})
				r := do(t, l, proxied(coap.GET, to.String()+"/x", nil))
				if r.Code != c.want || !strings.HasPrefix(string(r.Payload), c.payload) || len(r.Payload) == 0 {
					t.Fatalf("%v %q, not %v", r.Code, r.Payload, c.want)
				}
				if c.want != coap.Content {
					return
				}
				body := bytes.Repeat([]byte("abcdefghij"), 100)
				if r := do(t, l, proxied(coap.POST, to.String()+"/x", body)); !bytes.Equal(r.Payload, append([]byte("origin:"), body...)) {
					t.Errorf("%v, %d bytes", r.Code, len(r.Payload))
				}
			})
		}
	}
}

// TestToldWhy: the log warns of an upstream that is not reached, once, and says why; the
// client is told that it is not.
func TestToldWhy(t *testing.T) {
	t.Parallel()
	ours, theirs := certs.New(t), certs.New(t)
	for scheme, why := range map[string]string{CoAPS: "x509: ", CoAPSTCP: "x509: ", CoAPTCP: "connection refused"} {
		to := Target{Scheme: scheme, Host: "127.0.0.1", Port: uint16(ports.Free(t))}
		if scheme != CoAPTCP {
			to = certified(t, scheme, ours)
		}
		rule := forwardTo(to)
		rule.Credential = &Credential{Roots: theirs.Roots()}
		var log bytes.Buffer // written by one goroutine before it answers
		l := house(t, Config{Rules: []Rule{rule}}, func(d *Deps) {
			d.Log = slog.New(slog.NewTextHandler(&log, nil))
		}).client("a", coaptest.Options{})
		for range 3 {
			if r := do(t, l, proxied(coap.GET, to.String()+"/x", nil)); r.Code != coap.BadGateway || strings.Contains(string(r.Payload), "x509") {
				t.Errorf("%s: %v %q", scheme, r.Code, r.Payload)
			}
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, why) {
			t.Errorf("%s: %s", scheme, got)
		}
	}
}
