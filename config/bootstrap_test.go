package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/node"
)

// A first run makes every secret itself, for its owner only; a second run finds
// the same ones (docs/protocol.md, Section 11).
func TestBootstrapEmbedded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	load := func() *Config {
		c := Embedded()
		c.DataDir = dir
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if err := c.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data folder: %v %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
		}
	}
	if want := []string{AdminTokenFile, IssuerKeyFile, node.ClientFile, SealKeyFile}; !reflect.DeepEqual(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	again := load()
	secrets := func(c *Config) [][]byte {
		return [][]byte{c.Tokens[0].SymmetricKey.Bytes(), c.Seal.Key.Bytes(), c.PSK[0].Key.Bytes(), c.AdminToken.Bytes()}
	}
	if got, want := secrets(again), secrets(c); !reflect.DeepEqual(got, want) {
		t.Error("the second run has other secrets")
	}
	for i, n := range []int{16, 32, 16, 64} {
		if got := len(secrets(c)[i]); got != n {
			t.Errorf("secret %d has %d bytes, want %d", i, got, n)
		}
	}
	if err := c.Bootstrap(); err != nil {
		t.Errorf("on the same Config: %v", err)
	}
	if err := c.Validate(); err != nil {
		t.Errorf("after Bootstrap: %v", err)
	}
	for _, s := range secrets(c) {
		for _, text := range []string{fmt.Sprintf("%v", c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", *c)} {
			if strings.Contains(text, string(s)) || strings.Contains(text, hex.EncodeToString(s)) || strings.Contains(text, fmt.Sprint(s)) {
				t.Error("a secret is printed")
			}
		}
	}
}

func TestSealKeyIsNotReplaced(t *testing.T) {
	c := Embedded()
	c.DataDir = t.TempDir()
	if err := os.WriteFile(c.Path("groupgate.db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := c.Bootstrap()
	if err == nil || !strings.Contains(err.Error(), "restore the key") {
		t.Fatalf("got %v", err)
	}
	t.Setenv(SealKeyEnv, strings.Repeat("5a", 32))
	if err := c.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(c.Seal.Key.Bytes()); got != strings.Repeat("5a", 32) {
		t.Errorf("sealing key %s", got)
	}
	if _, err := os.Stat(c.Path(SealKeyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("key file: %v", err)
	}
}

func writeFile(t *testing.T, dir, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "good.key", "00112233445566778899001122334455\n", 0o600)
	writeFile(t, dir, "open.key", "00112233445566778899001122334466\n", 0o644)
	writeFile(t, dir, "mac.key", strings.Repeat("ab", 32), 0o600)
	writeFile(t, dir, "ed.pem", publicPEM(t, ed), 0o644)
	writeFile(t, dir, "ec.pem", publicPEM(t, &ec.PublicKey), 0o644)
	c, err := Parse("f", fmt.Appendf(nil, `
data_dir: %s
tokens:
- {issuer: other, audience: rs, symmetric_key_file: good.key, derivation_key_file: mac.key}
- {audience: rs, public_key_file: ed.pem}
- {audience: rs, public_key_file: ec.pem, alg: ES256}
psk: [{identity: a, key_file: open.key, may: [token]}]
`, dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckKeys(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, SealKeyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("CheckKeys left a sealing key: %v", err)
	}
	if err := c.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if k := c.Tokens[1].PublicKey; !bytes.Equal(k.X, ed) || k.CheckAlg(c.Tokens[1].AlgID()) != nil {
		t.Errorf("Ed25519 key: %+v", k)
	}
	if k := c.Tokens[2].PublicKey; k.CheckAlg(c.Tokens[2].AlgID()) != nil || !bytes.Equal(k.X, ec.X.FillBytes(make([]byte, 32))) {
		t.Errorf("P-256 key: %+v", k)
	}
	if got := strings.Join(c.Warnings(), "\n"); !strings.Contains(got, "open.key can be read by others") {
		t.Errorf("warnings %q", got)
	}
}

func TestKeyFileFaults(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "good.key", "00112233445566778899001122334455", 0o600)
	writeFile(t, dir, "text.key", "secret-in-clear", 0o600)
	writeFile(t, dir, "short.key", "0011", 0o600)
	writeFile(t, dir, "empty.key", "\n", 0o600)
	writeFile(t, dir, "writable.key", "00112233445566778899001122334455", 0o666)
	writeFile(t, dir, "big.key", strings.Repeat("00", maxKeyFile), 0o600)
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := Parse("f", fmt.Appendf(nil, `data_dir: %s
tokens:
- {issuer: other, audience: rs, symmetric_key_file: absent.key}
- {issuer: other, audience: rs, symmetric_key_file: text.key}
- {issuer: other, audience: rs, symmetric_key_file: short.key}
- {issuer: other, audience: rs, public_key_file: text.key}
- {issuer: other, audience: rs, symmetric_key_file: good.key, derivation_key_file: good.key}
psk:
- {identity: a, key_file: empty.key}
- {identity: b, key_file: writable.key}
- {identity: c, key_file: big.key}
- {identity: d, key_file: folder}
seal: {key_file: short.key}
`, dir))
	if err != nil {
		t.Fatal(err)
	}
	fe, ok := errors.AsType[*FaultError](c.CheckKeys())
	if !ok {
		t.Fatal("no fault")
	}
	for _, w := range []struct {
		line     string
		key, msg string
	}{
		{"3", "tokens[0].symmetric_key_file", "absent.key does not exist"},
		{"4", "tokens[1].symmetric_key_file", "text.key must be hexadecimal"},
		{"5", "tokens[2].symmetric_key_file", "needs a key of 16 bytes"},
		{"6", "tokens[3].public_key_file", "must hold one PEM block"},
		{"7", "tokens[4].derivation_key_file", "a key serves one"},
		{"9", "psk[0].key_file", "empty.key is empty"},
		{"10", "psk[1].key_file", "can be written by others"},
		{"11", "psk[2].key_file", "is larger than"},
		{"12", "psk[3].key_file", "is not a regular file"},
		{"13", "seal.key_file", "must hold 64 hexadecimal digits"},
	} {
		if !hasFault(fe, w.line, w.key, w.msg) {
			t.Errorf("no fault %v in:\n%v", w, fe)
		}
	}
	if len(fe.Faults) != 10 {
		t.Errorf("%d faults:\n%v", len(fe.Faults), fe)
	}
	if strings.Contains(fe.Error(), "secret-in-clear") {
		t.Error("a fault quotes a secret")
	}
}

// docs/protocol.md, Section 1: a configured identity that reads as a key id is a
// config error.
func TestIdentityThatReadsAsKid(t *testing.T) {
	for id, want := range map[string]bool{
		"\xa1\x08\xa1\x01\xa2\x01\x04\x02\x43abc":                            true,
		"\xa1\x08\xa1\x01\xa2\x02\x43abc\x01\x04":                            true,
		"\xa1\x08\xa1\x01\xa2\x01\x04\x02\x58\x18" + strings.Repeat("k", 24): true,
		"\xa1\x08\xa1\x01\xa2\x01\x04\x02\x43abcd":                           false,
		"\xa1\x08\xa1\x01\xa2\x01\x04\x02":                                   false,
		"client":                                                             false,
	} {
		if got := readsAsKid([]byte(id)); got != want {
			t.Errorf("%x: %v", id, got)
		}
	}
	c := Default()
	c.PSK = []PSK{{Identity: "\xa1\x08\xa1\x01\xa2\x01\x04\x02\x43abc", Key: newSecret(make([]byte, 16))}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "reads as the key id") {
		t.Errorf("got %v", err)
	}
}
