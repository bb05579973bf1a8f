package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

func saveClient(t *testing.T, as string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := node.SaveClient(filepath.Join(dir, node.ClientFile), node.Client{
		Identity: "n", Key: cose.NewSecret([]byte("0123456789abcdef")), Audience: "rs2", AS: as,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Flags win over what the credential says, which wins over the standard ports.
func TestNodeLocate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		as    string
		flags nodeJoinCmd
		want  nodeAddrs
	}{
		{"nothing known", "", nodeJoinCmd{}, nodeAddrs{"127.0.0.1:5683", "127.0.0.1:5684"}},
		{"credential", "coaps://10.1.2.3:7000/token", nodeJoinCmd{}, nodeAddrs{"10.1.2.3:5683", "10.1.2.3:7000"}},
		{"credential for all interfaces", "coaps://:7000/token", nodeJoinCmd{}, nodeAddrs{"127.0.0.1:5683", "127.0.0.1:7000"}},
		{"flags", "coaps://10.1.2.3:7000/token", nodeJoinCmd{Gateway: "gw", CoAPPort: 1, CoAPSPort: 2}, nodeAddrs{"gw:1", "gw:2"}},
		{"IPv6", "coaps://[::1]:7000/token", nodeJoinCmd{}, nodeAddrs{"[::1]:5683", "[::1]:7000"}},
	} {
		c.flags.DataDir = saveClient(t, c.as)
		got, client, err := c.flags.locate()
		if err != nil || got != c.want || client.Identity != "n" {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	var none nodeJoinCmd
	none.DataDir = t.TempDir()
	if _, _, err := none.locate(); err == nil || !strings.Contains(hintFor(err), "gateway run") {
		t.Errorf("no credential: %v, hint %q", err, hintFor(err))
	}
}

// Whatever fails, the user learns what to do next.
func TestNodeAdvice(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"gateway run":       fmt.Errorf("x: %w", node.ErrLost),
		"`gateway run`":     &net.OpError{Op: "read", Err: errors.New("refused")},
		"policies":          &node.Error{Op: "join", Code: 0x83, ID: node.NoID},
		"new one":           &node.Error{Op: "join", Code: 0x81, ID: node.NoID},
		"join anew":         &node.Error{Op: "poll", Code: 0x84, ID: 5},
		"deleted the group": &node.Error{Op: "observe the group", Code: 0x84, ID: 6},
		"not active yet":    &node.Error{Op: "join", Code: 0xa3, ID: 9},
		"--data-dir":        errors.New("handshake alert"),
	} {
		got := nodeAdvice("get an access token from", "127.0.0.1:5684", err)
		if !errors.Is(got, err) || !strings.Contains(hintFor(got), want) {
			t.Errorf("%v: hint %q, want %q in it", err, hintFor(got), want)
		}
	}
}

// Nobody answers: exit status 1 and a hint, soon.
func TestNodeJoinNobody(t *testing.T) {
	t.Parallel()
	dir := saveClient(t, "coaps://"+ports.Addr(t)+"/token")
	var out, stderr bytes.Buffer
	if code := run([]string{"node", "join", "--data-dir", dir}, &out, &stderr); code != exitFailed {
		t.Errorf("status %d", code)
	}
	if !strings.Contains(stderr.String(), "hint: ") || strings.Contains(stderr.String(), "0123456789abcdef") {
		t.Errorf("stderr %q", stderr.String())
	}
	if code := run([]string{"node", "join", "--data-dir", dir, "--roles", "boss"}, &out, &stderr); code != exitUsage {
		t.Errorf("an unknown role: status %d", code)
	}
}

// Both forms of output tell each step, and neither tells a secret.
func TestNodeStory(t *testing.T) {
	t.Parallel()
	secret := []byte("secret of sixteen")
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		s := newNodeStory(&out, asJSON)
		a := &node.Access{Token: []byte("opaque to me"), KID: []byte{1, 2}, Key: cose.NewSecret(secret), ExpiresAt: time.Unix(1e9, 0)}
		s.start("n1", "sensors", groupcomm.Requester)
		s.token("h:1", "node", a)
		s.posted("h:2", &groupcomm.TokenTransferResponse{KDCChallenge: []byte{0xab}})
		s.associated("h:1", a)
		s.joined(node.State{Group: "sensors", Node: "n7", Gid: groupcomm.Gid{0xb1}, SenderID: groupcomm.SenderID{}, Version: 3,
			MasterSecret: cose.NewSecret(secret), Peers: []node.Peer{{SenderID: groupcomm.SenderID{0x52}}}})
		s.waiting(time.Second, true)
		for _, kind := range []string{node.Prepared, node.Rekeyed, node.Missed, node.Reconnected, node.Left, node.Evicted, node.Deleted, node.Refused} {
			s.event(node.Event{Kind: kind, Group: "sensors", Version: 4, Gid: groupcomm.Gid{0xb2}, Via: node.ViaMQTT, Err: context.Canceled})
		}
		s.stays()
		if strings.Contains(out.String(), string(secret)) || strings.Contains(out.String(), "opaque to me") {
			t.Errorf("a secret is told: %s", out.String())
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if !asJSON {
			for _, want := range []string{"Sender ID (empty)", "version 3", "credentials of Sender IDs 52", "Rekeyed: version 4", "Evicted"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not told in %s", want, out.String())
				}
			}
			continue
		}
		if len(lines) != 15 {
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			var v struct {
				Event string `json:"event"`
			}
			if err := json.Unmarshal([]byte(line), &v); err != nil || v.Event == "" {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}
