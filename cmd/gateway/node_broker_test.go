package main

import (
	"crypto/tls"
	"path/filepath"
	"testing"

	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/certs"
)

// A node shows its certificate to a broker that wants one, and believes the roots it
// was given.
func TestNodeBrokerFiles(t *testing.T) {
	t.Parallel()
	ca, dir := certs.New(t), t.TempDir()
	roots := ca.WriteRoots(dir)
	cert, private := ca.WritePair(dir, "own")

	var cfg node.Config
	c := nodeJoinCmd{MQTT: true, BrokerCA: roots, BrokerCert: cert, BrokerKey: private}
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
		"without --mqtt":   {BrokerCA: roots},
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
