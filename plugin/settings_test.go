package plugin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestTokenURI(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for listen, want := range map[string]string{
		"127.0.0.1:5684":      "coaps://127.0.0.1:5684/token",
		"[2001:db8::1]:5684":  "coaps://[2001:db8::1]:5684/token",
		"gateway.example:700": "coaps://gateway.example:700/token",
		":5684":               "coaps://" + net.JoinHostPort(name, "5684") + "/token",
		"0.0.0.0:5684":        "coaps://" + net.JoinHostPort(name, "5684") + "/token",
		"[::]:5684":           "coaps://" + net.JoinHostPort(name, "5684") + "/token",
		"":                    "",
		"nowhere":             "",
	} {
		if got := tokenURI(listen); got != want {
			t.Errorf("tokenURI(%q) is %q, want %q", listen, got, want)
		}
	}
}

// settings is a configuration with something in every section that rooms read.
func settings() *config.Config {
	c := config.Embedded()
	c.DataDir = "/data"
	c.Tokens[0].SymmetricKey = cose.NewSecret([]byte("0123456789abcdef"))
	c.Tokens = append(c.Tokens, config.Token{
		Issuer: "as2", Audience: "rs2", Alg: "HMAC-256/256",
		SymmetricKey:  cose.NewSecret(bytes.Repeat([]byte("k"), 32)),
		EncryptionKey: cose.NewSecret([]byte("fedcba9876543210")), DerivationKey: cose.NewSecret(bytes.Repeat([]byte("d"), 16)),
	})
	c.PSK = []config.PSK{
		{Identity: "node", Key: cose.NewSecret([]byte("node key 16 byte")), May: []string{"token"}},
		{Identity: "other", Key: cose.NewSecret([]byte("other key 16 byt"))},
	}
	return c
}

func gatewayOf(t *testing.T, c *config.Config, opts ...Option) *Gateway {
	t.Helper()
	g, err := New(c, nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestACEConfig(t *testing.T) {
	c := settings()
	got, err := gatewayOf(t, c).aceConfig()
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Entries) != 2 || len(got.PSK) != 2 {
		t.Fatalf("%d entries, %d peers", len(got.Entries), len(got.PSK))
	}
	if e := got.Entries[0]; e.Issuer != "as1" || e.Audience != "groupgate" || e.Alg != cose.AlgAESCCM16_64_128 || string(e.Key.Bytes()) != "0123456789abcdef" {
		t.Errorf("first entry: %q %q %d", e.Issuer, e.Audience, e.Alg)
	}
	if e := got.Entries[1]; e.Alg != 5 || !bytes.Equal(e.Key.Bytes(), c.Tokens[1].SymmetricKey.Bytes()) ||
		!bytes.Equal(e.EncryptionKey.Bytes(), c.Tokens[1].EncryptionKey.Bytes()) || !bytes.Equal(e.DerivationKey.Bytes(), c.Tokens[1].DerivationKey.Bytes()) {
		t.Errorf("second entry: %d, keys mixed up", e.Alg)
	}
	if !got.PSK[0].MayToken || got.PSK[1].MayToken || string(got.PSK[1].Identity) != "other" {
		t.Errorf("peers: %q may %v, %q may %v", got.PSK[0].Identity, got.PSK[0].MayToken, got.PSK[1].Identity, got.PSK[1].MayToken)
	}
	want := groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}}
	if got.AS == nil || got.AS.Issuer != "as1" || len(got.AS.Policies) != 1 {
		t.Fatalf("AS: %+v", got.AS)
	}
	if p := got.AS.Policies[0]; p.Client != "node" || p.Audience != "groupgate" || p.Lifetime != 24*time.Hour ||
		len(p.Scope) != 1 || p.Scope[0].Group != want[0].Group || p.Scope[0].Roles != want[0].Roles {
		t.Errorf("policy: %+v", p)
	}
	if got.ASURI != "coaps://127.0.0.1:5684/token" {
		t.Errorf("AS at %q", got.ASURI)
	}

	// docs/protocol.md, Section 3: compat.rise_labels.
	if !got.RISELabels {
		t.Error("compat.rise_labels is on, and the room does not know")
	}
	c.Compat.RISELabels = false
	if got, err = gatewayOf(t, c).aceConfig(); err != nil || got.RISELabels {
		t.Errorf("compat.rise_labels is off: %v, %v", got.RISELabels, err)
	}

	c.AuthorizationServer.Enabled = false
	if got, err = gatewayOf(t, c).aceConfig(); err != nil || got.AS != nil || got.ASURI != "" {
		t.Errorf("without AS: %+v at %q, %v", got.AS, got.ASURI, err)
	}
	c = settings()
	c.AuthorizationServer.Policies[0].Client = "other" // may not ask for tokens
	if _, err := gatewayOf(t, c).aceConfig(); err == nil {
		t.Error("a policy for a peer that may not have tokens is accepted")
	}
}

func TestBridgeConfig(t *testing.T) {
	c := settings()
	c.Listen.MQTTS, c.Listen.MQTTSCertFile, c.Listen.MQTTSKeyFile = "0.0.0.0:8883", "broker.pem", "/etc/broker.key"
	c.MQTT = config.MQTT{TopicPrefix: "gg", PublicURI: "mqtts://gw.example", CAFile: "ca.pem", User: "gw", Password: cose.NewSecret([]byte("pw")), Insecure: true}
	b := gatewayOf(t, c).bridgeConfig()
	if b.Prefix != "gg" || b.PublicURI != "mqtts://gw.example" || b.CAFile != "/data/ca.pem" || b.CertFile != "" ||
		b.User != "gw" || b.Password != "pw" || !b.InsecurePlain || b.Listen != c.Listen.MQTT || b.ListenTLS != "0.0.0.0:8883" ||
		b.TLSCertFile != "/data/broker.pem" || b.TLSKeyFile != "/etc/broker.key" || len(b.Listeners) != 0 {
		t.Errorf("embedded broker: %+v", b)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b := gatewayOf(t, c, WithMQTT(l)).bridgeConfig(); len(b.Listeners) != 1 || b.Listen != "" || b.ListenTLS == "" {
		t.Errorf("with a listener of the host: %+v", b)
	}
	c.MQTT.Broker = "mqtts://broker.example"
	if b := gatewayOf(t, c).bridgeConfig(); b.Broker != c.MQTT.Broker || b.Listen != "" || b.ListenTLS != "" || len(b.Listeners) != 0 {
		t.Errorf("an operator's broker beside an embedded one: %+v", b)
	}
}

// TestNew: it does no I/O.
func TestNew(t *testing.T) {
	c := config.Embedded()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	g := gatewayOf(t, c)
	_, _ = g.Handler(nil), g.PSK(nil)
	if _, err := os.Stat(c.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data folder: %v", err)
	}
	if _, err := New(nil, nil); err == nil {
		t.Error("a gateway without a configuration")
	}
	// Before Run everything is refused for the moment.
	if _, err := g.ServeCoAP(t.Context(), &coap.Request{Code: coap.GET}); coap.ErrorResponse(err).Code != coap.ServiceUnavailable {
		t.Errorf("before Run: %v", err)
	}
	// But the host's own peers are the host's business.
	psk := g.PSK(func(identity []byte) ([]byte, error) {
		if string(identity) != "host's" {
			return nil, errors.New("unknown")
		}
		return []byte("key"), nil
	})
	if key, err := psk([]byte("host's")); err != nil || string(key) != "key" {
		t.Errorf("a key of the host: %q, %v", key, err)
	}
	if _, err := psk([]byte("nobody's")); err == nil {
		t.Error("a key for nobody")
	}
	if _, err := g.PSK(nil)([]byte("host's")); err == nil {
		t.Error("a key without a host")
	}
}

// TestRunWaits: Run returns when the requests under way are over, and turns
// away those that come later.
func TestRunWaits(t *testing.T) {
	c := config.Embedded()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	c.Listen.HTTP, c.Listen.MQTT = "", ""
	g := gatewayOf(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- g.Run(ctx) }()
	select {
	case <-g.Ready():
	case err := <-over:
		t.Fatalf("Run: %v", err)
	}
	release, ok := g.gate.enter()
	if !ok {
		t.Fatal("a request is turned away")
	}
	inside, end := g.requestContext(t.Context())
	defer end()
	cancel()
	<-inside.Done() // the request is asked to end
	eventually(t, "the gate closes", func() bool {
		again, ok := g.gate.enter()
		if ok {
			again()
		}
		return !ok
	})
	select {
	case err := <-over:
		t.Fatalf("Run returned beside a running request: %v", err)
	default:
	}
	release()
	if err := <-over; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// keyFile writes a key as configuration files name it.
func keyFile(t *testing.T, key []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "psk.key")
	if err := os.WriteFile(name, []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
