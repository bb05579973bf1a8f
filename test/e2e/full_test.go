//go:build linux

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
)

// grow bounds the size of the files that the program writes; a write beyond
// fails, as on a disk that takes no more.
func (c *child) grow(limit uint64) {
	c.t.Helper()
	var now unix.Rlimit
	if err := unix.Prlimit(c.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &now); err != nil {
		c.t.Fatal(err)
	}
	now.Cur = min(limit, now.Max)
	if err := unix.Prlimit(c.cmd.Process.Pid, unix.RLIMIT_FSIZE, &now, nil); err != nil {
		c.t.Fatal(err)
	}
}

// TestDiskFull: a join that cannot be stored is answered 5.03 and has not
// happened; when the disk takes data again, so does the gateway.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	d := s.door()
	owner := d.join()
	a := d.token()
	cfg := d.config(a)
	cfg.Transfer = d.post(a)
	tr := d.as(a)
	before := s.show()
	for _, name := range []string{"groupgate.db", "groupgate.db-wal"} {
		if _, err := os.Stat(filepath.Join(s.dir, "data", name)); err != nil {
			t.Fatal(err)
		}
	}

	gw.grow(0)
	m, err := node.New(cfg, tr)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		e, ok := errors.AsType[*node.Error](err)
		if !ok || e.Code != coap.ServiceUnavailable {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	refused("a join", m.Join(soon(t)))
	refused("a leave", owner.Leave(soon(t)))
	if c := run(t, 1, "group", "rekey", "sensors", "--config", s.config); c.err.String() == "" {
		t.Error("a rekey on a full disk fails without a word")
	}
	if num, err := owner.Num(soon(t)); err != nil || num != owner.state().Version {
		t.Errorf("reading on a full disk: version %d, %v", num, err)
	}
	if during := s.show(); len(during.Members) != 1 || during.Version != before.Version || during.Gid != before.Gid {
		t.Errorf("before %+v, during %+v", before, during)
	}

	gw.grow(unix.RLIM_INFINITY)
	if err := m.Join(soon(t)); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	version := s.rekey()
	if err := owner.Poll(soon(t)); err != nil || owner.state().Version != version {
		t.Errorf("the first member: version %d, want %d, %v", owner.state().Version, version, err)
	}
	s.shown("both are members", func(g *admin.GroupInfo) bool { return len(g.Members) == 2 && g.Version == version })
	if status := gw.signal(syscall.SIGTERM); status != 0 {
		t.Errorf("status %d", status)
	}
	_ = m.Close()
}
