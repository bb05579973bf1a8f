package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// certPeer is a client of pion's with a certificate.
type certPeer struct {
	t    *testing.T
	conn *dtls.Conn
	mid  uint16
	leaf *x509.Certificate // of the gateway
}

// shows dials with a certificate; an error is that of the handshake.
func (d *door) shows(t *testing.T, own tls.Certificate, roots *x509.CertPool) (*certPeer, error) {
	t.Helper()
	raw, err := net.Dial("udp", d.coaps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	var leaf *x509.Certificate
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw), raw.RemoteAddr(), dtls.WithCertificates(own),
		dtls.WithRootCAs(roots), dtls.WithInsecureSkipVerify(true), dtls.WithVerifyPeerCertificate(func(shown [][]byte, _ [][]*x509.Certificate) error {
			var err error
			if leaf, err = x509.ParseCertificate(shown[0]); err == nil {
				_, err = leaf.Verify(x509.VerifyOptions{Roots: roots})
			}
			return err
		}), dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8), dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.HandshakeContext(soon(t)); err != nil {
		_ = c.Close()
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return &certPeer{t: t, conn: c, leaf: leaf}, nil
}

// ask sends a request and waits for what comes back with it.
func (p *certPeer) ask(code coap.Code, payload []byte, path ...string) *coap.Message {
	p.t.Helper()
	p.mid++
	m := coap.Message{Type: coap.Confirmable, Code: code, ID: p.mid, Token: []byte{byte(p.mid)}, Payload: payload}
	m.Options.SetPath(path...)
	if payload != nil {
		m.Options.SetContentFormat(coap.ACEGroupcomm)
	}
	b, err := m.MarshalBinary()
	if err != nil {
		p.t.Fatal(err)
	}
	stop := context.AfterFunc(soon(p.t), func() { _ = p.conn.Close() })
	defer stop()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
	in := make([]byte, 4096)
	for {
		n, err := p.conn.Read(in)
		if err != nil {
			p.t.Fatal(err)
		}
		if r, err := coap.DecodeMessage(in[:n]); err == nil && string(r.Token) == string(m.Token) {
			return r
		}
	}
}

// TestCertificateAssociations: a node with a certificate comes in because its chain
// leads to a root, or because a token confirms its key, joins with that token and
// without another proof, and others are told why not.
func TestCertificateAssociations(t *testing.T) {
	t.Parallel()
	files := newSite(t)
	ca, caKey := files.certify("ca", nil, nil)
	files.certify("gateway", ca, caKey)
	good, goodKey := files.certify("node", ca, caKey)
	other, otherKey := files.certify("other", nil, nil)
	alien, alienKey := files.certify("alien", other, otherKey)
	file := func(name string) string { return files.dir + "/" + name }
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	g := serve(t, func(c *config.Config) {
		l := &c.Listen
		l.CoAPSCertFile, l.CoAPSKeyFile, l.CoAPSRootsFile = file("gateway.pem"), file("gateway.key"), file("ca.pem")
		c.Groups[0].SignAlg, c.Groups[0].ECDHCurve = "ES256", "P-256"
	})
	own := tls.Certificate{Certificate: [][]byte{good.Raw}, PrivateKey: goodKey, Leaf: good}
	stranger := tls.Certificate{Certificate: [][]byte{alien.Raw}, PrivateKey: alienKey, Leaf: alien}

	p, err := g.shows(t, own, roots)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := g.admin.Identity(soon(t))
	if err != nil || shown.Certificate == nil || !bytes.Equal(shown.Certificate.DER, p.leaf.Raw) || !bytes.Equal(shown.Certificate.Key.SPKI, p.leaf.RawSubjectPublicKeyInfo) {
		t.Errorf("the gateway says that it shows %+v, %v", shown, err)
	}
	if r := p.ask(coap.GET, nil, ".well-known", "core"); r.Code != coap.Content {
		t.Errorf("discovery: %v", r.Code)
	}
	if r := p.ask(coap.GET, nil, "ace-group", group, "num"); r.Code != coap.Unauthorized {
		t.Errorf("without a token: %v", r.Code)
	}
	if _, err := g.shows(t, stranger, roots); err == nil || !strings.Contains(err.Error(), "UnknownCA") {
		t.Errorf("a stranger: %v", err)
	}

	for name, own := range map[string]tls.Certificate{"node": own, "alien": stranger} {
		key, err := cose.PrivateKeyFromPEM([]byte(read(t, file(name+".key"))))
		if err != nil {
			t.Fatal(err)
		}
		a := g.rawToken(key)
		g.post(a)
		p, err := g.shows(t, own, roots)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		nonce := make([]byte, 8)
		_, _ = rand.Read(nonce)
		m := groupcomm.JoinRequest{
			Scope: groupcomm.ScopeEntry{Group: group, Roles: both}.Encode(), CNonce: nonce,
			ClientCred: cose.EncodeCCS(name, key.Public()), ClientCredVerify: []byte{},
		}
		r := p.ask(coap.POST, m.Encode(), "ace-group", group)
		if d, err := groupcomm.DecodeKeyDistribution(r.Payload); r.Code != coap.Created || err != nil || len(d.Key.MasterSecret) == 0 {
			t.Errorf("%s joins: %v, %v", name, r.Code, err)
		}
	}

	// A token that names the certificate alone, by its hash.
	far, farKey := files.certify("far", other, otherKey)
	sum := sha256.Sum256(far.Raw)
	c := claims()
	c.Cnf = &cwt.Confirmation{CertHash: sum[:]}
	g.post(&node.Access{Token: seal(t, cwt.Protection{Alg: cose.AlgAESCCM16_64_128, Key: g.cfg.Tokens[0].SymmetricKey.Bytes()}, c)})
	p, err = g.shows(t, tls.Certificate{Certificate: [][]byte{far.Raw}, PrivateKey: farKey, Leaf: far}, roots)
	if err != nil {
		t.Fatal(err)
	}
	if r := p.ask(coap.GET, nil, "ace-group", group, "num"); r.Code != coap.Forbidden { // with a token, and no member
		t.Errorf("with a token for its certificate: %v", r.Code)
	}
}
