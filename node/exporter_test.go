package node

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

// handshake makes one PSK session in memory and returns both states. The
// master secret is learned through the key log, independently of the state.
func handshake(t *testing.T, suite dtls.CipherSuiteID) (client, server dtls.State, keylog string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	psk := func([]byte) ([]byte, error) { return []byte("0123456789abcdef"), nil }
	var log bytes.Buffer
	shared := []dtls.Option{dtls.WithPSK(psk), dtls.WithPSKIdentityHint([]byte("n")), dtls.WithCipherSuites(suite)}
	srv, err := dtls.ServerWithOptions(b, a.LocalAddr(), serverOptions(shared)...)
	if err != nil {
		t.Fatal(err)
	}
	cli, err := dtls.ClientWithOptions(a, b.LocalAddr(), append(clientOptions(shared), dtls.WithKeyLogWriter(&log))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close(); srv.Close() })
	var wg sync.WaitGroup
	var srvErr error
	wg.Go(func() { srvErr = srv.HandshakeContext(ctx) })
	if err := cli.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if srvErr != nil {
		t.Fatal(srvErr)
	}
	client, ok := cli.ConnectionState()
	if !ok {
		t.Fatal("no client state")
	}
	server, ok = srv.ConnectionState()
	if !ok {
		t.Fatal("no server state")
	}
	return client, server, log.String()
}

func serverOptions(in []dtls.Option) (out []dtls.ServerOption) {
	for _, o := range in {
		out = append(out, o)
	}
	return out
}

func clientOptions(in []dtls.Option) (out []dtls.ClientOption) {
	for _, o := range in {
		out = append(out, o)
	}
	return out
}

// parseKeyLog reads the line "CLIENT_RANDOM <random> <master secret>".
func parseKeyLog(t *testing.T, line string) (clientRandom, master []byte) {
	t.Helper()
	f := strings.Fields(line)
	if len(f) < 3 || f[0] != "CLIENT_RANDOM" {
		t.Fatalf("key log %q", line)
	}
	clientRandom, err := hex.DecodeString(f[1])
	if err != nil {
		t.Fatal(err)
	}
	master, err = hex.DecodeString(f[2])
	if err != nil {
		t.Fatal(err)
	}
	return clientRandom, master
}

// remoteRandom is the whole random of the other side, its time included.
func remoteRandom(t *testing.T, s *dtls.State) []byte {
	t.Helper()
	raw, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ RemoteRandom [32]byte }
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v.RemoteRandom[:]
}

// pHash256 is P_SHA256 of RFC 5246, Section 5, written from the text.
func pHash256(secret, seed []byte, n int) []byte {
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, secret)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	var out []byte
	for a := mac(seed); len(out) < n; a = mac(a) {
		out = append(out, mac(a, seed)...)
	}
	return out[:n]
}

// RFC 5705, Section 4: the exporter with a context that is present and empty.
func TestExportEmptyContext(t *testing.T) {
	t.Parallel()
	for _, suite := range []dtls.CipherSuiteID{dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256} {
		client, server, keylog := handshake(t, suite)
		c, err := ExportEmptyContext(&client, ExporterLabel, 32)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ExportEmptyContext(&server, ExporterLabel, 32)
		if err != nil {
			t.Fatal(err)
		}
		if len(c) != 32 || !bytes.Equal(c, s) {
			t.Fatalf("%v: client %x, server %x", suite, c, s)
		}
		absent, err := client.ExportKeyingMaterial(ExporterLabel, nil, 32)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(c, absent) {
			t.Error("an empty context gave the same key as an absent one")
		}

		clientRandom, master := parseKeyLog(t, keylog)
		serverRandom := client.RemoteRandomBytes()
		full := remoteRandom(t, &client)
		if !bytes.Equal(full[4:], serverRandom[:]) {
			t.Fatal("server random differs from what pion says")
		}
		seed := append([]byte(ExporterLabel), clientRandom...)
		seed = append(append(seed, full...), 0, 0)
		if want := pHash256(master, seed, 32); !bytes.Equal(want, c) {
			t.Errorf("%v: got %x, computed from the key log %x", suite, c, want)
		}
	}
}

func TestExportEmptyContextRefuses(t *testing.T) {
	t.Parallel()
	if _, err := ExportEmptyContext(&dtls.State{}, ExporterLabel, 32); err == nil {
		t.Error("no handshake: no error")
	}
	client, _, _ := handshake(t, dtls.TLS_PSK_WITH_AES_128_CCM_8)
	for _, n := range []int{-1, 0, 1 << 20} {
		if _, err := ExportEmptyContext(&client, ExporterLabel, n); err == nil {
			t.Errorf("length %d accepted", n)
		}
	}
	if _, err := ExportEmptyContext(&client, "master secret", 32); err == nil {
		t.Error("a reserved label was accepted")
	}
}
