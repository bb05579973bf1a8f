//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
)

// certified writes NAME.pem and NAME.key, signed by an authority that it makes and
// writes to ca.pem.
func certified(t *testing.T, dir string, names ...string) {
	t.Helper()
	certifiedWith(t, dir, func(*x509.Certificate) {}, names...)
}

// certifiedWith has each of them changed before it is signed.
func certifiedWith(t *testing.T, dir string, change func(*x509.Certificate), names ...string) {
	t.Helper()
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		}
		if ca == nil {
			ca, caKey = c, key
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}
		change(c)
		der, err1 := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		pkcs8, err2 := x509.MarshalPKCS8PrivateKey(key)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		for ext, b := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
			if err := os.WriteFile(filepath.Join(dir, name+ext), pem.EncodeToMemory(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCertificateHandshakes: the clients of GnuTLS, OpenSSL and libcoap with a
// certificate verify that of the gateway, are verified, and read its resources.
func TestCertificateHandshakes(t *testing.T) {
	request := wellKnownCore(t)
	dir := t.TempDir()
	certified(t, dir, "gateway", "node")
	file := func(name string) string { return filepath.Join(dir, name) }
	cfg := config.Embedded()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	const free = "127.0.0.1:0"
	l := &cfg.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = free, free, free, ""
	l.CoAPSCertFile, l.CoAPSKeyFile, l.CoAPSRootsFile = file("gateway.pem"), file("gateway.key"), file("ca.pem")
	g := &gateway{t: t, cfg: cfg}
	g.run()
	host, port, err := net.SplitHostPort(g.at.CoAPS)
	if err != nil {
		t.Fatal(err)
	}
	command := func(t *testing.T, program string, args ...string) *exec.Cmd {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("%s is not installed; .ci/run interop does it", program)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		t.Cleanup(cancel)
		return exec.CommandContext(ctx, path, args...)
	}
	core := func(r *coap.Message) bool {
		return r.Code == coap.Content && bytes.Contains(r.Payload, []byte("/ace-group"))
	}
	for _, cipher := range []string{"AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM"} {
		t.Run("GnuTLS "+cipher, func(t *testing.T) {
			exchange(t, command(t, "gnutls-cli", "--udp", "--port", port, "--x509cafile", file("ca.pem"), "--x509certfile", file("node.pem"),
				"--x509keyfile", file("node.key"), "--verify-hostname", "gateway", "--sni-hostname", "gateway", "--logfile", os.DevNull, "--priority",
				"NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+ECDHE-ECDSA:-CIPHER-ALL:+"+cipher, host), request, core)
		})
	}
	for _, cipher := range []string{"ECDHE-ECDSA-AES128-CCM8", "ECDHE-ECDSA-AES128-CCM", "ECDHE-ECDSA-AES128-GCM-SHA256"} {
		t.Run("OpenSSL "+cipher, func(t *testing.T) {
			exchange(t, command(t, "openssl", "s_client", "-dtls1_2", "-connect", g.at.CoAPS, "-cert", file("node.pem"), "-key", file("node.key"),
				"-CAfile", file("ca.pem"), "-verify_return_error", "-verify_hostname", "gateway", "-cipher", cipher+":@SECLEVEL=0", "-quiet"), request, core)
		})
	}
	for _, program := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		t.Run(program, func(t *testing.T) {
			out, err := command(t, libcoapProgram(t, program), "-c", file("node.pem"), "-j", file("node.key"), "-C", file("ca.pem"), "-v", "3",
				"-m", "get", "coaps://"+g.at.CoAPS+"/.well-known/core").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "/ace-group") {
				t.Errorf("%v, %q", err, out)
			}
		})
	}
}
