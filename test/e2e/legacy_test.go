package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// speak changes the interface of the site's group.
func (s *site) speak(how string) {
	s.t.Helper()
	name := filepath.Join(s.dir, "gateway.yaml")
	b, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	text := strings.Replace(string(b), "  - name: sensors\n", "  - name: sensors\n    "+how+"\n", 1)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// legacyMember takes a node of this process to membership in a dialect.
func (d *door) legacyMember(dialect groupcomm.Interface) *node.LegacyMember {
	d.t.Helper()
	as := d.dial([]byte(d.client.Identity), d.client.Key.Bytes())
	a, err := node.RequestToken(soon(d.t), as, node.TokenRequest{
		Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}}, TextScope: dialect == groupcomm.Draft03,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	info, err := node.PostLegacyToken(soon(d.t), dialect, d.plain(), a)
	if err != nil {
		d.t.Fatal(err)
	}
	m, err := node.NewLegacy(node.LegacyConfig{Dialect: dialect, Group: group, Roles: both, Info: info, WantKeys: true}, d.as(a))
	if err != nil {
		d.t.Fatal(err)
	}
	if err := m.Join(soon(d.t)); err != nil {
		d.t.Fatalf("join: %v", err)
	}
	return m
}

// legacyHolds waits until a node that follows has a version.
func legacyHolds(t *testing.T, m *node.LegacyMember, version uint64) node.State {
	t.Helper()
	eventually(t, "the node is rekeyed", func() bool { s, _ := m.State(); return s.Version >= version })
	s, _ := m.State()
	return s
}

// TestLegacyDialects: nodes of 2019 and 2020 take the whole way, over sockets,
// with the token in their form: join, look each other up, renew, are rekeyed by
// observation, leave.
func TestLegacyDialects(t *testing.T) {
	t.Parallel()
	for _, dialect := range []groupcomm.Interface{groupcomm.Draft03, groupcomm.Hackathon109} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.speak("interface: " + dialect.String())
			gw := s.run()
			d := s.door()
			first, second := d.legacyMember(dialect), d.legacyMember(dialect)
			a, _ := first.State()
			b, _ := second.State()
			if !bytes.Equal(a.MasterSecret.Bytes(), b.MasterSecret.Bytes()) || len(b.Peers) != 1 || !bytes.Equal(b.Peers[0].SenderID, a.SenderID) {
				t.Fatal("the two do not know each other")
			}
			peers, err := first.PubKeys(soon(t))
			if err != nil || len(peers) != 1 || !bytes.Equal(peers[0].SenderID, b.SenderID) {
				t.Errorf("public keys: %v %v", peers, err)
			}
			if peers, err = first.PubKeys(soon(t), b.SenderID, groupcomm.SenderID{0x77}); err != nil || len(peers) != 1 {
				t.Errorf("public keys by Sender ID: %v %v", peers, err)
			}
			if err := second.Renew(soon(t)); err != nil {
				t.Errorf("renewal: %v", err)
			}
			if now, _ := second.State(); bytes.Equal(now.SenderID, b.SenderID) {
				t.Error("the Sender ID stayed")
			}

			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan error, 1)
			go func() { over <- first.Follow(ctx) }()
			s.shown("the first observes", func(g *admin.GroupInfo) bool {
				return len(g.Members) == 2 && (g.Members[0].Channel == "observe" || g.Members[1].Channel == "observe")
			})
			version := s.rekey()
			now := legacyHolds(t, first, version)
			if bytes.Equal(now.MasterSecret.Bytes(), a.MasterSecret.Bytes()) || !bytes.Equal(now.SenderID, a.SenderID) {
				t.Error("the rekey changed too little, or the Sender ID")
			}
			s.shown("its acknowledgement confirms", func(g *admin.GroupInfo) bool {
				for _, m := range g.Members {
					if m.Version == version {
						return true
					}
				}
				return false
			})
			if err := second.Poll(soon(t)); err != nil {
				t.Errorf("poll: %v", err)
			}
			if num, err := second.Num(soon(t)); err != nil || num != version {
				t.Errorf("version %d, %v", num, err)
			}
			if err := second.Leave(soon(t)); err != nil {
				t.Errorf("leave: %v", err)
			}
			legacyHolds(t, first, version+1)
			if _, err := second.PubKeys(soon(t)); !errors.Is(err, node.ErrNotJoined) {
				t.Errorf("who left: %v", err)
			}
			cancel()
			if err := <-over; !errors.Is(err, context.Canceled) {
				t.Errorf("follow: %v", err)
			}
			if status := gw.signal(syscall.SIGTERM); status != 0 {
				t.Errorf("status %d", status)
			}
		})
	}
}

// TestLegacyProgram: `gateway node join --interface draft-03` beside a current
// node, in a group with both interfaces.
func TestLegacyProgram(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.speak("interface: both")
	s.run()
	now := s.join("now")
	old := s.join("old", "--interface", "draft-03", "--poll", "1h")
	if *old.joined.SenderID == *now.joined.SenderID || old.joined.Gid != now.joined.Gid {
		t.Errorf("joined as %+v and %+v", old.joined, now.joined)
	}
	s.shown("both observe", func(g *admin.GroupInfo) bool {
		for _, m := range g.Members {
			if m.Channel != "observe" {
				return false
			}
		}
		return len(g.Members) == 2
	})
	version := s.rekey()
	if via := old.holds(version).Via; via != "observe" {
		t.Errorf("the old node was told by %q", via)
	}
	if old.holds(version).Gid != now.holds(version).Gid {
		t.Error("the two hold different Gids")
	}
	once := run(t, 0, "node", "join", "--once", "--interface", "draft-03", "--config", s.config, "--client", s.client)
	for _, want := range []string{"dialect draft-03", "/group-oscore/sensors", "[redacted]", "Left the group; keys deleted."} {
		if !strings.Contains(once.out.String(), want) {
			t.Errorf("%q is not told:\n%s", want, &once.out)
		}
	}
	refused := run(t, 1, "node", "join", "--once", "--interface", "hackathon-109", "--config", s.config, "--client", s.client)
	if !strings.Contains(refused.err.String(), "hint: ") {
		t.Errorf("another dialect: %s", &refused.err)
	}
}

// TestLegacyRekeyInstead: with on_renewal: rekey a node that asks for a Sender ID
// is refused, and everybody is rekeyed.
func TestLegacyRekeyInstead(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.speak("interface: draft-03\n    on_renewal: rekey")
	s.run()
	m := s.door().legacyMember(groupcomm.Draft03)
	before, _ := m.State()
	if err := m.Renew(soon(t)); !errors.Is(err, node.ErrRekeying) {
		t.Fatalf("renewal: %v", err)
	}
	eventually(t, "the group is rekeyed", func() bool {
		if err := m.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
		s, _ := m.State()
		return s.Version > before.Version
	})
	if now, _ := m.State(); !bytes.Equal(now.SenderID, before.SenderID) || bytes.Equal(now.Gid, before.Gid) {
		t.Error("the rekey changed the Sender ID, or not the Gid")
	}
}
