//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// stack is what a node's DTLS and CoAP are made of.
type stack struct {
	name    string
	alg     int64 // of its raw public key; 0: it has a pre-shared key
	cid     bool  // the gateway gives it a connection ID, so it may move
	several bool  // requests have associations of their own
	text    bool  // it takes identity and key for C strings, so they are without zeros
	dial    func(t *testing.T, ctx context.Context, addr string, a *node.Access, server []byte) node.Transport
}

// commandOf is the path of a program that .ci/run interop installs.
func commandOf(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("%s is not installed; .ci/run interop does it", program)
	}
	return path
}

// scandium is Californium's stack, which gives out a connection ID of cid bytes.
func scandium(alg int64, cid string) func(*testing.T, context.Context, string, *node.Access, []byte) node.Transport {
	return func(t *testing.T, _ context.Context, addr string, a *node.Access, server []byte) node.Transport {
		classes := californiumClasses(t)
		args := []string{"-XX:TieredStopAtLevel=1", "-cp", classes, "NodePeer", "coaps://" + addr, cid}
		if alg == 0 {
			args = append(args, "PSK", hex.EncodeToString(a.Identity()), hex.EncodeToString(a.Key.Bytes()))
		} else {
			signer, err1 := a.PrivateKey.PrivateKey()
			spki, err2 := a.PrivateKey.SPKI()
			der, err3 := x509.MarshalPKCS8PrivateKey(signer)
			if err := errors.Join(err1, err2, err3); err != nil {
				t.Fatal(err)
			}
			args = append(args, map[int64]string{cose.AlgES256: "EC", cose.AlgEdDSA: "Ed25519"}[alg],
				hex.EncodeToString(der), hex.EncodeToString(spki), hex.EncodeToString(server))
		}
		return newToldNode(t, exec.Command("java", args...))
	}
}

func libcoap(program string) func(*testing.T, context.Context, string, *node.Access, []byte) node.Transport {
	return func(t *testing.T, _ context.Context, addr string, a *node.Access, _ []byte) node.Transport {
		return &libcoapNode{t: t, path: libcoapProgram(t, program), uri: "coaps://" + addr, identity: a.Identity(), key: a.Key.Bytes()}
	}
}

var stacks = []stack{
	{name: "Californium, CID of both", cid: true, dial: scandium(0, "6")},
	{name: "Californium, CID of the gateway", cid: true, dial: scandium(0, "0")},
	{name: "Californium, no CID", dial: scandium(0, "-1")},
	{name: "Californium, raw P-256 key, CID of both", alg: cose.AlgES256, cid: true, dial: scandium(cose.AlgES256, "6")},
	{name: "Californium, raw Ed25519 key, CID of both", alg: cose.AlgEdDSA, cid: true, dial: scandium(cose.AlgEdDSA, "6")},
	{name: "pion v3 and go-coap, CID of the gateway", cid: true, dial: func(t *testing.T, ctx context.Context, addr string, a *node.Access, _ []byte) node.Transport {
		tr, err := node.DialDTLS(ctx, addr, a.Identity(), a.Key.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		return tr
	}},
	{name: "pion v2", text: true, dial: func(t *testing.T, _ context.Context, addr string, a *node.Access, _ []byte) node.Transport {
		return newPipedNode(t, exec.Command(buildPion2(t), addr, string(a.Identity()), hex.EncodeToString(a.Key.Bytes())))
	}},
	{name: "OpenSSL s_client", text: true, dial: func(t *testing.T, _ context.Context, addr string, a *node.Access, _ []byte) node.Transport {
		return newPipedNode(t, exec.Command(commandOf(t, "openssl"), "s_client", "-dtls1_2", "-connect", addr, "-psk", hex.EncodeToString(a.Key.Bytes()),
			"-psk_identity", string(a.Identity()), "-cipher", "PSK-AES128-CCM8:@SECLEVEL=0", "-quiet"))
	}},
	{name: "libcoap over OpenSSL", text: true, several: true, dial: libcoap("coap-client-openssl")},
	{name: "libcoap over GnuTLS", text: true, several: true, dial: libcoap("coap-client-gnutls")},
	{name: "tinydtls, raw P-256 key", alg: cose.AlgES256, dial: rawTinydtls},
	// Its DTLSSocket takes strlen of the identity.
	{name: "aiocoap over tinydtls", text: true, dial: func(t *testing.T, _ context.Context, addr string, a *node.Access, _ []byte) node.Transport {
		py := python(t)
		if out, err := exec.Command(py, "-c", "import DTLSSocket").CombinedOutput(); err != nil {
			t.Skipf("no DTLSSocket beside aiocoap; .ci/run interop installs it: %s", out)
		}
		return newToldNode(t, exec.Command(py, "testdata/aiocoap_node.py", "coaps://"+addr, hex.EncodeToString(a.Identity()), hex.EncodeToString(a.Key.Bytes())))
	}},
}

// TestSessionsGoOn: with each stack a node shakes hands, joins a group and observes
// it; it goes on from a new address where it has a connection ID; the gateway is
// stopped and started, then killed and started; and each time the next rekey comes
// over the same observation, and requests are answered, with no new handshake.
func TestSessionsGoOn(t *testing.T) {
	gateway := buildGateway(t)
	for _, s := range stacks {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.goesOn(t, gateway)
		})
	}
}

func (s *stack) goesOn(t *testing.T, gateway string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := newProgram(t, gateway, s.alg, "")
	cfg := node.Config{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder}
	if s.alg != 0 {
		key, err := cose.GenerateKey(s.alg)
		must(err)
		cfg.Key, cfg.SameKey = key, true
	}
	a, info := p.token(ctx, cfg.Key, func(a *node.Access) bool {
		return !s.text || !bytes.Contains(append(a.Identity(), a.Key.Bytes()...), []byte{0})
	})
	var server []byte
	if a.ServerKey != nil {
		var err error
		server, err = a.ServerKey.SPKI()
		must(err)
	}
	nat := newNAT(t, p.coaps)
	tr := s.dial(t, ctx, nat.addr(), a, server)
	cfg.Transfer = info
	m, err := node.New(cfg, tr)
	must(err)
	must(m.Join(ctx))

	get := func(path ...string) *coap.Request {
		req := &coap.Request{Code: coap.GET}
		req.Options.SetPath(append([]string{"ace-group", "sensors"}, path...)...)
		return req
	}
	request := func(want uint64) {
		t.Helper()
		r, err := tr.Do(ctx, get("num"))
		if err != nil || r.Code != coap.Content || !bytes.Equal(r.Payload, cose.MustMarshal(want)) {
			t.Fatalf("request: %+v, %v", r, err)
		}
	}
	notes := make(chan []byte, 100)
	observe := get()
	observe.Options.SetUint(coap.ObserveOption, 0)
	_, err = tr.Observe(ctx, observe, func(r *coap.Response) { notes <- r.Payload })
	must(err)
	full, err := groupcomm.DecodeKeyDistribution(<-notes)
	must(err)
	version := uint64(full.Num)
	// rekeyed has the group rekeyed and waits for the notification; what was told
	// before may be told again after a restart.
	rekeyed := func() {
		t.Helper()
		r, err := p.api.Rekey(ctx, "sensors", "test")
		must(err)
		for version < uint64(r.Version) {
			select {
			case note := <-notes:
				msg, err := groupcomm.DecodeRekeyMessage(note)
				if err != nil || uint64(msg.Num) < version || msg.Num > r.Version {
					t.Fatalf("notification %x after version %d: %v", note, version, err)
				}
				version = uint64(msg.Num)
			case <-ctx.Done():
				t.Fatalf("no notification of version %d\n%s", r.Version, p.metrics())
			}
		}
	}
	rekeyed()
	if !s.several {
		request(version)
	}
	hellos := nat.handshakes()
	goesOn := func(what string) {
		t.Helper()
		began := time.Now()
		rekeyed()
		if !s.several {
			request(version)
		}
		if n := nat.handshakes(); n != hellos {
			t.Errorf("%s: %d more ClientHellos", what, n-hellos)
		}
		t.Logf("%s: goes on after %v", what, time.Since(began).Round(time.Millisecond))
	}
	if s.cid {
		nat.rebind()
		request(version) // so the gateway learns the address
		goesOn("from a new address")
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p.end(sig)
		p.run()
		goesOn(fmt.Sprint("after ", sig))
	}
	if s.cid { // both at once
		nat.rebind()
		p.end(syscall.SIGKILL)
		p.run()
		request(version)
		goesOn("from a new address, after a kill")
	}
	if !s.several { // with side effects: a stale session is asked for Echo
		req := get("nodes", mustState(t, m).Node)
		req.Code = coap.DELETE
		if r, err := tr.Do(ctx, req); err != nil || r.Code != coap.Deleted {
			t.Errorf("leave: %+v, %v", r, err)
		}
	}
}

func mustState(t *testing.T, m *node.Member) node.State {
	t.Helper()
	s, ok := m.State()
	if !ok {
		t.Fatal("no member")
	}
	return s
}
