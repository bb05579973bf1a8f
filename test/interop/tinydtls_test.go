//go:build interop

package interop

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/node"
)

// tinydtlsSources is the folder that has the sources of tinydtls, configured, as they
// come with its wrapper for Python.
const tinydtlsSources = "GROUPGATE_TEST_TINYDTLS"

var tinydtls struct {
	once sync.Once
	path string
	err  error
}

// buildTinydtls compiles tinydtls/peer.c, once, into the folder of the sources.
func buildTinydtls(t *testing.T) string {
	t.Helper()
	src := os.Getenv(tinydtlsSources)
	if src == "" {
		t.Skipf("%s names no folder with the sources of tinydtls; .ci/run interop makes one", tinydtlsSources)
	}
	tinydtls.once.Do(func() {
		tinydtls.path = filepath.Join(src, "groupgate-peer")
		args := []string{"-O1", "-w", "-I" + src, "-include", "stdint.h", "-D_GNU_SOURCE", "-DDTLSv12", "-DWITH_SHA256",
			"-DDTLS_CHECK_CONTENTTYPE", "-DNDEBUG", "-o", tinydtls.path, "tinydtls/peer.c"}
		for _, name := range []string{
			"ccm", "crypto", "dtls", "dtls_debug", "ecc/ecc", "dtls_time", "hmac", "netq", "peer", "session",
			"aes/rijndael", "aes/rijndael_wrap", "sha2/sha2", "platform-specific/dtls_prng_posix",
		} {
			args = append(args, filepath.Join(src, name+".c"))
		}
		if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
			tinydtls.err = fmt.Errorf("gcc: %w\n%s", err, out)
		}
	})
	if tinydtls.err != nil {
		t.Fatal(tinydtls.err)
	}
	return tinydtls.path
}

// rawTinydtls is a node with a raw public key of P-256.
func rawTinydtls(t *testing.T, _ context.Context, addr string, a *node.Access, server []byte) node.Transport {
	t.Helper()
	program := buildTinydtls(t)
	signer, err := a.PrivateKey.PrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := a.PrivateKey.SPKI()
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	private, err := signer.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{host, port, hex.EncodeToString(private)}
	for _, key := range [][]byte{spki, server} { // each ends with its coordinates
		point := key[len(key)-64:]
		args = append(args, hex.EncodeToString(point[:32]), hex.EncodeToString(point[32:]))
	}
	return newPipedNode(t, exec.Command(program, args...))
}
