package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/node"
)

// A node shows its certificate to a broker that wants one, and believes the roots it
// was given.
func TestNodeBrokerFiles(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, private := file("own.pem", "CERTIFICATE", der), file("own.key", "PRIVATE KEY", p8)

	var cfg node.Config
	c := nodeJoinCmd{MQTT: true, BrokerCA: cert, BrokerCert: cert, BrokerKey: private}
	if err := c.certificate(&cfg); err != nil {
		t.Fatal(err)
	}
	server := cfg.BrokerTLS.Clone()
	server.ClientCAs, server.ClientAuth = cfg.BrokerTLS.RootCAs, tls.RequireAndVerifyClientCert
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shown := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.(*tls.Conn).HandshakeContext(t.Context())
		}
		shown <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), cfg.BrokerTLS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-shown; err != nil {
		t.Error(err)
	}

	for name, c := range map[string]nodeJoinCmd{
		"without --mqtt":   {BrokerCA: cert},
		"a key alone":      {MQTT: true, BrokerKey: private},
		"no certificate":   {MQTT: true, BrokerCA: private},
		"not there":        {MQTT: true, BrokerCA: filepath.Join(dir, "none")},
		"a key for a cert": {MQTT: true, BrokerCert: private, BrokerKey: private},
	} {
		if err := c.certificate(new(node.Config)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
