package plugin

import (
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// A handshake that began with a node's key and ends when the node has another one
// proves the old key only: such an association has no rights, and a handshake with
// the new key has them at once.
func TestKeyReplacedDuringHandshake(t *testing.T) {
	t.Parallel()
	g, _ := running(t, authority(t))
	enroll := func(key string, replace bool) {
		t.Helper()
		n := ace.Node{Identity: "n", Key: cose.NewSecret([]byte(key)), Scope: groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}}
		if _, err := g.rooms.Load().access.(*ace.Server).Enroll(t.Context(), []ace.Node{n}, ace.EnrollOptions{Lifetime: time.Hour, Replace: replace}); err != nil {
			t.Error(err)
		}
	}
	const before, after = "the key before 1", "the key after 12"
	enroll(before, false)
	var once sync.Once
	l, err := coapnet.NewDTLSListener("udp", "127.0.0.1:0", coapnet.NewDTLSServerOptions(
		dtls.WithPSK(func(identity []byte) ([]byte, error) {
			key, err := g.PSK(nil)(identity)
			once.Do(func() { enroll(after, true) })
			return key, err
		}), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8)))
	if err != nil {
		t.Fatal(err)
	}
	s := coapdtls.NewServer(options.WithMux(g.Handler(nil)), options.WithOnNewConn(g.Connected), options.WithErrors(func(error) {}))
	over := make(chan struct{})
	go func() { defer close(over); _ = s.Serve(l) }()
	defer func() {
		s.Stop()
		_ = l.Close()
		<-over
	}()
	ask := func(key string) error {
		t.Helper()
		tr, err := node.DialDTLS(t.Context(), l.Addr().String(), []byte("n"), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		_, err = node.RequestToken(t.Context(), tr, node.TokenRequest{Scope: groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}})
		return err
	}
	if err := ask(before); err == nil {
		t.Error("the old key got a token")
	}
	if err := ask(after); err != nil {
		t.Errorf("the new key: %v", err)
	}
}
