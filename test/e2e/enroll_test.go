package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
)

// TestEnroll: thousands of nodes are enrolled while the gateway runs, one of
// them joins with its credential, is disabled, and is out.
func TestEnroll(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	var file strings.Builder
	file.WriteString("identity,key,groups,roles\n")
	for i := range 5000 {
		fmt.Fprintf(&file, "meter-%d,,sensors,requester responder\n", i)
	}
	s.write("nodes.csv", file.String())
	csv, keys := filepath.Join(s.dir, "nodes.csv"), filepath.Join(s.dir, "nodes-keys.csv")
	enroll := func(status int, flags ...string) *child {
		t.Helper()
		return run(t, status, append([]string{"node", "enroll", "--csv", csv, "--config", s.config}, flags...)...)
	}

	enroll(0, "--dry-run").says(`^5000 nodes would be enrolled for audience rs$`)
	if _, err := os.Stat(keys); err == nil {
		t.Error("a dry run leaves keys")
	}
	enroll(0).says(`^5000 nodes enrolled for audience rs\nkeys that were made: .*nodes-keys.csv  \(secret\)$`)
	if st, err := os.Stat(keys); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("file of keys: %v, %v", st, err)
	}
	nodes, faults := admin.ParseNodes(strings.NewReader(read(t, keys)), false)
	if len(faults) > 0 || len(nodes) != 5000 {
		t.Fatalf("%d nodes with keys, %v", len(nodes), faults)
	}
	if list := *decode[[]admin.NodeInfo](t, run(t, 0, "node", "list", "--json", "--config", s.config).out.String()); len(list) != 5000 {
		t.Errorf("%d nodes are listed", len(list))
	}

	// Again: refused, and neither keys nor nodes are changed.
	if c := enroll(1, "--keys-out", filepath.Join(s.dir, "other.csv")); !strings.Contains(c.err.String(), "line 2: \"meter-0\" is enrolled already") {
		t.Errorf("again: %s", &c.err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "other.csv")); err == nil {
		t.Error("keys that nobody has are left")
	}
	if c := enroll(1); !strings.Contains(c.err.String(), "--keys-out") {
		t.Errorf("over the keys: %s", &c.err)
	}
	s.write("bad.csv", "identity,key,groups,roles\nx,,sensors,boss\nclientA,,sensors,monitor\ny,00,sensors,monitor\n")
	c := run(t, 1, "node", "enroll", "--csv", filepath.Join(s.dir, "bad.csv"), "--config", s.config)
	if !strings.Contains(c.err.String(), "bad.csv:2: roles must be of") {
		t.Errorf("mistakes: %s", &c.err)
	}
	s.write("bad.csv", "identity,key,groups,roles\nx,,sensors,monitor\nclientA,,sensors,monitor\ny,00,sensors,monitor\n")
	c = run(t, 1, "node", "enroll", "--csv", filepath.Join(s.dir, "bad.csv"), "--config", s.config)
	if !strings.Contains(c.err.String(), "line 3: \"clientA\" is configured in the section psk") || !strings.Contains(c.err.String(), "line 4: a key has 16 to 64 bytes") {
		t.Errorf("mistakes: %s", &c.err)
	}

	gw = restart(s, gw) // what was enrolled stays

	// One of the nodes joins with the credential of the file.
	join := func(identity, file string) *player {
		return &player{child: start(t, "node", "join", "--config", s.config, "--identity", identity, "--key-file", file, "--json", "--poll", "1s")}
	}
	p := join("meter-4321", keys)
	joined := func(e step) bool { return e.Event == "joined" }
	before := *p.event(joined).Version
	s.shown("it is a member", func(g *admin.GroupInfo) bool { return len(g.Members) == 1 })

	run(t, 0, "node", "disable", "meter-4321", "--config", s.config).says(`^1 node disabled$`)
	s.shown("it is out, and the keys are new", func(g *admin.GroupInfo) bool { return len(g.Members) == 0 && g.Version > before })
	if status := p.wait(); status != 1 {
		t.Errorf("the node that is shut out ends with %d: %s", status, &p.err)
	}
	if again := join("meter-4321", keys); again.wait() != 1 || strings.Contains(again.out.String(), "joined") {
		t.Errorf("a disabled node joins: %s", &again.out)
	}
	run(t, 0, "node", "enable", "meter-4321", "--config", s.config).says(`^1 node enabled$`)
	s.write("key", fmt.Sprintf("%x\n", nodes[4321].Key.Bytes()))
	join("meter-4321", filepath.Join(s.dir, "key")).event(joined)
	run(t, 0, "node", "remove", "meter-1", "--config", s.config).says(`^1 node removed$`)
	if c := run(t, 1, "node", "remove", "meter-1", "--config", s.config); !strings.Contains(c.err.String(), "node list") {
		t.Errorf("removed twice: %s", &c.err)
	}

	if status := gw.signal(syscall.SIGTERM); status != 0 {
		t.Errorf("status %d", status)
	}
	for _, n := range nodes {
		if key := fmt.Sprintf("%x", n.Key.Bytes()); strings.Contains(gw.err.String()+gw.out.String(), key) {
			t.Fatal("a key is logged")
		}
	}
}

// restart kills the gateway and starts it again.
func restart(s *site, gw *child) *child {
	s.t.Helper()
	gw.signal(syscall.SIGKILL)
	return s.run()
}
