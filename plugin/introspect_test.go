package plugin

import (
	"testing"
	"time"

	dtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// serveGateway serves a running gateway behind a stock go-coap server over
// DTLS.
func serveGateway(t *testing.T, addr string, g *Gateway) (at string, stop func()) {
	t.Helper()
	l, err := coapnet.NewDTLSListener("udp", addr, coapnet.NewDTLSServerOptions(
		dtls.WithPSK(g.PSK(nil)), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8)))
	if err != nil {
		t.Fatal(err)
	}
	s := coapdtls.NewServer(options.WithMux(g.Handler(nil)), options.WithErrors(func(error) {}))
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(l) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			s.Stop()
			_ = l.Close()
			<-over
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

var (
	keyF  = []byte("the key of clien")
	keyRS = []byte("the key of rs2 .")
)

// authority is a gateway that is only an Authorization Server for rs2.
func authority(t *testing.T) *config.Config {
	t.Helper()
	c := config.Default()
	c.Listen.CoAPS = "127.0.0.1:5684"
	c.Tokens = []config.Token{{Issuer: "as1", Audience: "rs2", SymmetricKeyFile: "as.key"}}
	c.PSK = []config.PSK{
		{Identity: "clientF", KeyFile: keyFile(t, keyF), May: []string{"token"}},
		{Identity: "rs2", KeyFile: keyFile(t, keyRS), May: []string{"introspect"}},
	}
	c.AuthorizationServer.Policies = []config.Policy{{
		Client: "clientF", Audience: "rs2", Scope: []config.ScopeEntry{{Group: "g1", Roles: []string{"requester"}}}, Lifetime: time.Hour,
	}}
	return c
}

// tokenOf asks the Authorization Server at addr for a token for rs2.
func tokenOf(t *testing.T, addr string) *node.Access {
	t.Helper()
	tr, err := node.DialDTLS(t.Context(), addr, []byte("clientF"), keyF)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	a, err := node.RequestToken(t.Context(), tr, node.TokenRequest{Audience: "rs2", Scope: groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// postTo posts a token as a stranger does and returns the response code.
func postTo(t *testing.T, g *Gateway, token []byte) coap.Code {
	t.Helper()
	req := &coap.Request{Code: coap.POST, Payload: (&groupcomm.TokenTransfer{AccessToken: token}).Encode()}
	req.Options.SetPath("authz-info")
	req.Options.SetContentFormat(coap.ACE)
	resp, err := g.ServeCoAP(t.Context(), req)
	if err != nil {
		resp = coap.ErrorResponse(err)
	}
	return resp.Code
}

// RFC 9200, Section 5.9, between two gateways over CoAPS: one issues, the other
// has no key that opens the tokens and asks.
func TestIntrospectionOverCoAPS(t *testing.T) {
	t.Parallel()
	as, _ := running(t, authority(t))
	at, stopAS := serveGateway(t, ports.Addr(t), as)

	c := config.Default()
	c.Listen.CoAPS = ""
	c.AuthorizationServer.Enabled = false
	c.Tokens = []config.Token{{
		Issuer: "as1", Audience: "rs2", ASURI: "coaps://" + at + "/token",
		Introspect: config.Introspect{URI: "coaps://" + at + "/introspect", Identity: "rs2", KeyFile: keyFile(t, keyRS)},
	}}
	g := config.DefaultGroup()
	g.Name = "g1"
	c.Groups = []config.Group{g}
	rs, _ := running(t, c)

	first := tokenOf(t, at)
	if got := postTo(t, rs, first.Token); got != coap.Created {
		t.Fatalf("a token of the AS: %v", got)
	}
	// The key that the AS told is the one of the handshake.
	key, err := rs.psk(first.Identity())
	if err != nil || string(key) != string(first.Key.Bytes()) {
		t.Errorf("key of the token: %v", err)
	}
	if got := postTo(t, rs, []byte("no such token")); got != coap.Unauthorized {
		t.Errorf("an unknown token: %v", got)
	}

	// The AS goes away without a word and comes back without associations.
	second, third := tokenOf(t, at), tokenOf(t, at)
	stopAS()
	if got := postTo(t, rs, second.Token); got != coap.ServiceUnavailable {
		t.Errorf("while the AS is away: %v", got)
	}
	if key, err := rs.psk(first.Identity()); err != nil || len(key) == 0 {
		t.Errorf("what was accepted before: %v", err)
	}
	serveGateway(t, at, as)
	for _, a := range []*node.Access{second, third} {
		if got := postTo(t, rs, a.Token); got != coap.Created {
			t.Errorf("when it is back: %v", got)
		}
	}
}
