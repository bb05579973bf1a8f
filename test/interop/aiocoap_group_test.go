//go:build interop

package interop

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// groupPatience bounds one exchange with the peer.
const groupPatience = 20 * time.Second

// pairOf is a Group Encryption Algorithm and an AEAD Algorithm.
type pairOf struct{ groupEnc, aead string }

// groupPairs are those that aiocoap and Californium used among themselves
// (draft-ietf-core-oscore-groupcomm-28, Section 13.3), for all four
// combinations of modes, and one more.
var groupPairs = []pairOf{
	{"AES-CCM-16-64-128", "AES-CCM-16-64-128"},
	{"ChaCha20/Poly1305", "ChaCha20/Poly1305"},
	{"AES-CCM-16-64-128", "ChaCha20/Poly1305"},
	{"ChaCha20/Poly1305", "AES-CCM-16-64-128"},
	{"A128GCM", "A256GCM"},
}

// gatewayWith starts a gateway whose group has the algorithms.
func gatewayWith(t *testing.T, sign string, p pairOf) (host.Addrs, *config.Config) {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("groups: [{name: sensors, sign_alg: %q, gp_enc_alg: %q, alg: %q, rekey: {batch_window: 50ms}}]\n", sign, p.groupEnc, p.aead)
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	parsed, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Embedded()
	cfg.Groups = parsed.Groups
	cfg.DataDir = filepath.Join(dir, "data")
	l := &cfg.Listen
	l.CoAPS, l.CoAP, l.HTTP, l.MQTT = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	ctx, cancel := context.WithCancel(context.Background())
	ready, over := make(chan host.Addrs, 1), make(chan error, 1)
	go func() {
		over <- host.Serve(ctx, cfg, slog.New(slog.DiscardHandler), func(_ *plugin.Gateway, at host.Addrs) { ready <- at })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("the gateway ended: %v", err)
		}
	})
	select {
	case at := <-ready:
		return at, cfg
	case err := <-over:
		over <- err
		t.Fatalf("the gateway does not start: %v", err)
	}
	return host.Addrs{}, nil
}

// joinGroup joins with a token of its own.
func joinGroup(t *testing.T, at host.Addrs, cfg *config.Config, name string) *node.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), groupPatience)
	defer cancel()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := node.LoadClient(cfg.Path(node.ClientFile))
	fail(err)
	as, err := node.DialDTLS(ctx, at.CoAPS, []byte(c.Identity), c.Key.Bytes())
	fail(err)
	roles := groupcomm.Requester | groupcomm.Responder
	access, err := node.RequestToken(ctx, as, node.TokenRequest{
		Audience: c.Audience, Scope: groupcomm.Scope{{Group: "sensors", Roles: roles}},
	})
	fail(err)
	fail(as.Close())
	plain, err := node.DialUDP(ctx, at.CoAP)
	fail(err)
	transfer, err := node.PostToken(ctx, plain, access)
	fail(err)
	fail(plain.Close())
	tr, err := node.DialDTLS(ctx, at.CoAPS, access.Identity(), access.Key.Bytes())
	fail(err)
	m, err := node.New(node.Config{Group: "sensors", Roles: roles, Transfer: transfer, WantCreds: true, Subject: name}, tr)
	fail(err)
	t.Cleanup(func() { _ = m.Close() })
	fail(m.Join(ctx))
	return m
}

// groupPeer is the other program as a member of the group: it gets what its join
// gave.
type groupPeer struct{ out *bufio.Scanner }

// startGroupPeer starts aiocoap with the keys of m.
func startGroupPeer(t *testing.T, role string, m *node.Member, more map[string]any) *groupPeer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), groupPatience)
	t.Cleanup(cancel)
	if err := m.Poll(ctx); err != nil {
		t.Fatal(err)
	}
	peers, err := m.Creds(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := m.State()
	key := m.Key()
	h := hex.EncodeToString
	member := map[string]any{"sid": h(s.SenderID), "private": h(key.D), "x": h(key.X), "y": h(key.Y), "cred": h(m.Cred())}
	others := []map[string]any{}
	for _, p := range peers {
		others = append(others, map[string]any{"sid": h(p.SenderID), "cred": h(p.Cred)})
	}
	material := map[string]any{
		"gid": h(s.Gid), "ms": h(s.MasterSecret.Bytes()), "salt": h(s.MasterSalt), "gm_cred": h(s.KDCCred),
		"alg": s.Params.Alg, "gp_enc_alg": s.Params.GpEncAlg, "sign_alg": s.Params.SignAlg, "ecdh_alg": s.Params.ECDHAlg,
		"member": member, "peers": others,
	}
	for k, v := range more {
		material[k] = v
	}
	line, err := json.Marshal(material)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, python(t), "testdata/aiocoap_group.py", role)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	p := &groupPeer{out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("peer: %v\n%s", err, stderr.String())
		}
	})
	return p
}

// tells reads the next line of the peer.
func (p *groupPeer) tells(t *testing.T, v any) {
	t.Helper()
	if !p.out.Scan() {
		t.Fatal("the peer says nothing more")
	}
	if err := json.Unmarshal(p.out.Bytes(), v); err != nil {
		t.Fatal(err)
	}
}

// TestAiocoapGroup: aiocoap as a member of a group of ours, with keys from a join at our
// Group Manager: as server and as client, in all four combinations of modes, with each
// pair of algorithms; with EdDSA and, for the first pair, ES256.
func TestAiocoapGroup(t *testing.T) {
	python(t)
	for _, sign := range []string{"EdDSA", "ES256"} {
		for i, pair := range groupPairs {
			if sign == "ES256" && i > 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s,%s", sign, pair.groupEnc, pair.aead), func(t *testing.T) {
				at, cfg := gatewayWith(t, sign, pair)
				ours, theirs := joinGroup(t, at, cfg, "ours"), joinGroup(t, at, cfg, "aiocoap")
				t.Run("server", func(t *testing.T) { askAiocoap(t, ours, theirs) })
				t.Run("client", func(t *testing.T) { answerAiocoap(t, ours, theirs) })
			})
		}
	}
}

// follow makes the traffic of a member with the newest keys.
func follow(t *testing.T, m *node.Member) *node.Traffic {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), groupPatience)
	defer cancel()
	if err := m.Poll(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Creds(ctx); err != nil {
		t.Fatal(err)
	}
	traffic, err := node.NewTraffic(m, node.TrafficConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := traffic.Sync(); err != nil {
		t.Fatal(err)
	}
	return traffic
}

// askAiocoap sends to aiocoap.
func askAiocoap(t *testing.T, ours, theirs *node.Member) {
	traffic := follow(t, ours)
	peer := startGroupPeer(t, "server", theirs, nil)
	var ready struct{ Port uint16 }
	peer.tells(t, &ready)
	own, _ := ours.State()
	other, _ := theirs.State()
	client, err := node.DialGroup(t.Context(), traffic, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ready.Port)
	for _, mode := range []oscore.Mode{oscore.GroupMode, oscore.PairwiseMode} {
		for _, answer := range []oscore.Mode{oscore.GroupMode, oscore.PairwiseMode} {
			req := &coap.Message{Code: coap.POST, Payload: []byte("hello")}
			req.Options.SetPath(answer.String())
			var to *groupcomm.SenderID
			if mode == oscore.PairwiseMode {
				to = &other.SenderID
			}
			n := 0
			err := client.Send(t.Context(), dst, to, req, groupPatience, func(a node.Answer) {
				n++
				if a.Err != nil {
					t.Errorf("%v, %v: %v", mode, answer, a.Err)
					return
				}
				want := fmt.Sprintf("%v %s hello", mode, hex.EncodeToString(own.SenderID))
				if string(a.Message.Payload) != want || a.Who.Mode != answer || a.Message.Code != coap.Changed {
					t.Errorf("%v, %v: %v %q in %v mode", mode, answer, a.Message.Code, a.Message.Payload, a.Who.Mode)
				}
			})
			if err != nil || n != 1 {
				t.Errorf("%v, %v: %d answers, %v", mode, answer, n, err)
			}
		}
	}
}

// answerAiocoap answers aiocoap, at one port in each mode.
func answerAiocoap(t *testing.T, ours, theirs *node.Member) {
	traffic := follow(t, ours)
	other, _ := theirs.State()
	own, _ := ours.State()
	ports := map[string]uint16{}
	ctx, cancel := context.WithCancel(t.Context())
	var servers sync.WaitGroup
	defer servers.Wait()
	defer cancel()
	for _, mode := range []oscore.Mode{oscore.GroupMode, oscore.PairwiseMode} {
		s, err := node.ListenGroup(ctx, node.GroupServerConfig{
			Traffic: traffic, Mode: &mode,
			Handle: func(req *coap.Message, x *oscore.GroupRequest) *coap.Message {
				if !slices.Equal(x.Sender(), []byte(other.SenderID)) {
					t.Errorf("request of %x", x.Sender())
				}
				return &coap.Message{Code: coap.Changed, Payload: append([]byte(x.Mode().String()+", "), req.Payload...)}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ports[mode.String()] = s.Addr().Port()
		servers.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	peer := startGroupPeer(t, "client", theirs, map[string]any{"to": hex.EncodeToString(own.SenderID), "ports": ports})
	for _, mode := range []string{"group", "pairwise"} {
		for _, answer := range []string{"group", "pairwise"} {
			var got struct{ Request, Path, Response, Payload string }
			peer.tells(t, &got)
			if got.Request != mode || got.Path != answer || got.Response != answer || got.Payload != mode+", by "+mode {
				t.Errorf("request in %s mode, answer in %s mode: %+v", mode, answer, got)
			}
		}
	}
}
