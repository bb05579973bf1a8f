package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
)

// TestLife: start, four kinds of nodes, rekeys, an eviction, a clean end.
func TestLife(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()

	olga := s.join("olga", "--poll", "1h")
	mike := s.join("mike", "--mqtt", "--poll", "1h")
	sam := s.join("sam", "--sleep", "100ms")
	nodes := []*player{olga, mike, sam}
	ids := map[string]bool{}
	for _, n := range nodes {
		ids[*n.joined.SenderID] = true
	}
	if len(ids) != len(nodes) {
		t.Fatalf("%d Sender IDs for %d nodes", len(ids), len(nodes))
	}
	before := s.show().Version
	version := s.rekey()
	if version <= before {
		t.Fatalf("version %d after %d", version, before)
	}
	gid := ""
	for _, n := range nodes {
		gid = n.holds(version).Gid
	}
	if via := mike.holds(version).Via; via != "mqtt" && via != "observe" {
		t.Errorf("mike was told by %q", via)
	}

	s.shown("all have confirmed the rekey", func(g *admin.GroupInfo) bool {
		for _, m := range g.Members {
			if m.Version != version || m.State != "current" {
				return false
			}
		}
		return len(g.Members) == len(nodes) && g.Version == version && g.Gid == gid
	})
	checkShape(t, s, version)

	// One who joins and leaves at once: the others are rekeyed for it.
	once := run(t, 0, "node", "join", "--once", "--config", s.config, "--client", s.client)
	if !strings.Contains(once.out.String(), "Left the group; keys deleted.") {
		t.Errorf("--once did not leave:\n%s", &once.out)
	}
	version = s.shown("the leave rekeys", func(g *admin.GroupInfo) bool { return g.Version > version }).Version
	for _, n := range nodes {
		n.holds(version)
	}

	// Evicted by name: it is told, its program ends, the rest is rekeyed.
	out := run(t, 0, "group", "evict", "sensors", mike.joined.NodeName, "--json", "--config", s.config)
	if r := decode[admin.EvictResult](t, out.out.String()); len(r.Evicted) != 1 || r.Evicted[0] != mike.joined.NodeName {
		t.Errorf("evicted %v", r)
	}
	if status := mike.wait(); status != 1 {
		t.Errorf("an evicted node ends with status %d", status)
	}
	if !strings.Contains(mike.out.String(), `"event":"evicted"`) {
		t.Error("mike was not told of the eviction")
	}
	// And by Sender ID.
	run(t, 0, "group", "evict", "sensors", "--sender-id", *sam.joined.SenderID, "--config", s.config)
	if status := sam.wait(); status != 1 {
		t.Errorf("an evicted sleeper ends with status %d", status)
	}
	// One rekey may serve both evictions.
	last := s.shown("one member is left", func(g *admin.GroupInfo) bool { return len(g.Members) == 1 && g.Version > version })
	olga.holds(last.Version)
	refused := run(t, 1, "group", "evict", "sensors", mike.joined.NodeName, "--config", s.config)
	if !strings.Contains(refused.err.String(), mike.joined.NodeName) {
		t.Errorf("evicting a stranger: %s", &refused.err)
	}

	if status := olga.signal(syscall.SIGINT); status != 0 {
		t.Errorf("a node that is interrupted ends with status %d", status)
	}
	if status := gw.signal(syscall.SIGTERM); status != 0 {
		t.Errorf("SIGTERM ends the gateway with status %d", status)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "data", "groupgate.db-wal")); err == nil {
		t.Error("an orderly end leaves a write-ahead log")
	}
}

// checkShape: `group show --json` has the members of docs/protocol.md, Section 11,
// and no others.
func checkShape(t *testing.T, s *site, version uint64) {
	t.Helper()
	c := run(t, 0, "group", "show", "sensors", "--json", "--config", s.config)
	g, err := keysOf([]byte(c.out.String()), "name", "gid", "version", "active", "members")
	if err != nil {
		t.Fatal(err)
	}
	if string(g["name"]) != `"sensors"` || string(g["active"]) != "true" {
		t.Errorf("name %s, active %s", g["name"], g["active"])
	}
	var members []json.RawMessage
	if err := json.Unmarshal(g["members"], &members); err != nil {
		t.Fatal(err)
	}
	channels := map[string]bool{}
	for _, raw := range members {
		if _, err := keysOf(raw, "node", "sender_id", "roles", "version", "state", "channel", "last_heard", "expires"); err != nil {
			t.Error(err)
		}
		m := decode[admin.MemberInfo](t, string(raw))
		if m.Version != version || m.State != "current" || m.LastHeard == nil || m.Expires == nil || m.SenderID == nil {
			t.Errorf("member %s", raw)
		}
		if strings.Join(m.Roles, ",") != "requester,responder" {
			t.Errorf("roles %v", m.Roles)
		}
		channels[m.Channel] = true
	}
	if !channels["mqtt"] && !channels["observe"] || channels[""] {
		t.Errorf("channels %v", channels)
	}
	// For people: the same facts.
	text := run(t, 0, "group", "show", "sensors", "--config", s.config).out.String()
	for _, want := range []string{"group sensors, version", "3 of 3 members current", "SENDER ID"} {
		if !strings.Contains(text, want) {
			t.Errorf("group show lacks %q:\n%s", want, text)
		}
	}
}

// TestKilled: whatever was answered is there after kill -9, and nobody has to
// get a token or join anew.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	d := s.door()
	olga := d.join()
	mike := s.join("mike", "--mqtt", "--poll", "1h") // a process of its own
	vera := s.join("vera", "--poll", "1s")           // observes; what she misses she asks for
	version := s.rekey()
	mike.holds(version)
	vera.holds(version)
	if err := olga.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	late := d.token()
	challenged := d.post(late) // has its challenge, will join after the kill
	node := olga.state().Node
	before := s.shown("both confirmed", func(g *admin.GroupInfo) bool {
		a, b := row(g, node), row(g, mike.joined.NodeName)
		return a != nil && b != nil && a.Version == version && b.Version == version
	})

	if status := gw.signal(syscall.SIGKILL); status != -1 {
		t.Fatalf("killed, but ended with status %d", status)
	}
	s.run()
	after := s.show()
	if after.Version != before.Version || after.Gid != before.Gid || len(after.Members) != len(before.Members) {
		t.Fatalf("before the kill\n%+v\nafter\n%+v", before, after)
	}
	for _, was := range before.Members {
		is := row(after, was.Node)
		if is == nil || *is.SenderID != *was.SenderID || is.Version != was.Version || !is.Expires.Equal(*was.Expires) {
			t.Errorf("member %+v is now %+v", was, is)
		}
	}

	// A new association by the key identifier of the old token.
	held := olga.state()
	if err := olga.Reconnect(soon(t)); err != nil {
		t.Fatal(err)
	}
	if num, err := olga.Num(soon(t)); err != nil || num != version {
		t.Fatalf("after the restart: version %d, %v", num, err)
	}
	version = s.rekey()
	if err := olga.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	if st := olga.state(); st.Version != version || st.SenderID.String() != held.SenderID.String() || st.Node != node ||
		st.MasterSecret.Equal(held.MasterSecret) {
		t.Errorf("held %+v, holds %+v", held, st)
	}
	// Mike's broker went with the gateway and came back with it. The question
	// that he asks over a new association may be quicker than that.
	for again := 0; ; again++ {
		via := mike.holds(version).Via
		if via == "mqtt" {
			break
		}
		if again == 3 {
			t.Fatalf("mike was told by %q", via)
		}
		version = s.rekey()
		if err := olga.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	// Vera's association and observation outlived the gateway.
	vera.holds(version)
	s.shown("both confirmed after the restart", func(g *admin.GroupInfo) bool {
		a, b := row(g, node), row(g, mike.joined.NodeName)
		return a.State == "current" && b.State == "current" && a.Version == version && b.Version == version
	})
	// The challenge of before is as good as ever.
	cfg := d.config(late)
	cfg.Transfer = challenged
	new := d.enter(late, cfg, d.as(late))
	if id := new.state().SenderID.String(); id == held.SenderID.String() || id == *mike.joined.SenderID {
		t.Errorf("Sender ID %q is given twice", id)
	}
	if new.wire.tries != 1 {
		t.Errorf("%d join requests instead of one", new.wire.tries)
	}
}

// TestRefusesToStart: what would go wrong later is told at the start.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()

	t.Run("second instance", func(t *testing.T) {
		twin := &site{t: t, dir: s.dir, at: map[string]string{"coaps": anyPort, "coap": anyPort, "http": anyPort, "mqtt": anyPort}}
		copied := strings.NewReplacer(s.at["coaps"], anyPort, s.at["coap"], anyPort, s.at["http"], anyPort, s.at["mqtt"], anyPort).Replace(read(t, s.config))
		twin.write("twin.yaml", copied)
		c := run(t, 1, "run", "--config", filepath.Join(s.dir, "twin.yaml"))
		if !strings.Contains(c.err.String(), "another gateway runs with this data folder") {
			t.Errorf("no hint: %s", &c.err)
		}
	})
	for _, key := range []string{"coaps", "coap", "http", "mqtt"} {
		t.Run("busy "+key, func(t *testing.T) {
			other := newSite(t)
			other.at[key] = s.at[key]
			other.configure()
			c := run(t, 1, "run", "--config", other.config)
			for _, want := range []string{"listen." + key, s.at[key], "in use"} {
				if !strings.Contains(c.err.String(), want) {
					t.Errorf("no %q in: %s", want, &c.err)
				}
			}
		})
	}
	t.Run("three mistakes", func(t *testing.T) {
		bad := newSite(t)
		bad.write("gateway.yaml", "listen:\n  coap: \"nowhere\"\nlimits: {sessions: many}\ngroups:\n  - name: sensors\n    hkdf: MD5\n")
		c := run(t, 1, "run", "--config", bad.config)
		for _, want := range []string{"gateway.yaml:2: listen.coap", "gateway.yaml:3: limits.sessions", "gateway.yaml:6: groups[0].hkdf", "3 mistakes"} {
			if !strings.Contains(c.err.String(), want) {
				t.Errorf("no %q in:\n%s", want, &c.err)
			}
		}
		if _, err := os.Stat(filepath.Join(bad.dir, "data")); err == nil {
			t.Error("a faulty configuration creates files")
		}
	})

	if status := gw.signal(syscall.SIGTERM); status != 0 {
		t.Fatalf("status %d", status)
	}
	t.Run("wrong seal key", func(t *testing.T) {
		name := filepath.Join(s.dir, "data", "seal.key")
		right := read(t, name)
		other := &site{t: t, dir: filepath.Dir(name)}
		other.write("seal.key", strings.Repeat("5a", 32)+"\n")
		c := run(t, 1, "run", "--config", s.config)
		if !strings.Contains(c.err.String(), "restore the seal.key that belongs to this database") {
			t.Errorf("no hint: %s", &c.err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		c = run(t, 1, "run", "--config", s.config)
		if !strings.Contains(c.err.String(), "seal.key is missing") {
			t.Errorf("a missing key: %s", &c.err)
		}
		if _, err := os.Stat(name); err == nil {
			t.Error("a key was invented for a database that has one")
		}
		other.write("seal.key", right)
		s.run()
	})
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
