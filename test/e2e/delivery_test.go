package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
)

// TestDeliveryShown: an operator sees how far a rekey has come, who lacks it and
// when the last one got it, in the program's words and over the API.
func TestDeliveryShown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	d := s.door()
	m, still := d.join(), d.join()
	m.follow()
	cmd := func(args ...string) string {
		t.Helper()
		return run(t, 0, append(args, "--config", s.config)...).out.String()
	}
	status := func(args ...string) admin.DeliveryInfo {
		t.Helper()
		return *decode[admin.DeliveryInfo](t, cmd(append([]string{"group", "status", "sensors", "--json"}, args...)...))
	}
	short := run(t, 3, "group", "rekey", "sensors", "--watch", "--for", "300ms", "--config", s.config)
	out := short.out.String() + short.err.String()
	for _, want := range []string{"is at version 1 now", "of 2 members have it", "the delivery goes on", "version 1 of group sensors is not confirmed yet by ", "gateway why NODE sensors"} {
		if !strings.Contains(out, want) {
			t.Errorf("rekey --watch lacks %q:\n%s", want, out)
		}
	}
	m.reaches(1)
	eventually(t, "one of two has it", func() bool {
		d := status()
		return d.Delivered == 1 && d.Pending == 1 && d.Percent == 50 && d.Done == nil && len(d.Ledger) == 2
	})
	out = cmd("group", "status", "sensors")
	if !strings.Contains(out, still.state().Node) || strings.Contains(out, m.state().Node) || !strings.Contains(out, "pending") {
		t.Errorf("group status:\n%s", out)
	}
	if out = cmd("group", "status", "sensors", "--all"); !strings.Contains(out, "observe confirmed") {
		t.Errorf("group status --all:\n%s", out)
	}
	for range 2 { // the second shows that it has what the first brought
		if err := still.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both have it", func() bool { d := status(); return d.Percent == 100 && d.Done != nil })
	list := *decode[[]admin.DeliveryInfo](t, cmd("group", "status", "--json"))
	if len(list) != 1 || list[0].Group != "sensors" || list[0].Delivered != 2 || list[0].Ledger != nil {
		t.Errorf("group status --json: %+v", list)
	}
	stop := still.follow()
	lines := strings.Split(strings.TrimSpace(cmd("group", "rekey", "sensors", "--watch", "--json")), "\n")
	if last := decode[admin.DeliveryInfo](t, lines[len(lines)-1]); last.Version != 2 || last.Percent != 100 {
		t.Errorf("rekey --watch --json ends with %+v", last)
	}

	// Who waits for one version waits for the one that takes its place.
	stop()
	if err := still.Close(); err != nil {
		t.Fatal(err)
	}
	watch := start(t, "group", "rekey", "sensors", "--watch", "--config", s.config)
	watch.says(`^version 3: `)
	s.rekey()
	watch.says(`^version 4 came meanwhile and takes the place of 3$`)
	watch.says(`^version 4: 1 of 2 members have it`)
	if got := watch.signal(syscall.SIGINT); got != 3 {
		t.Errorf("an interrupted watch ends with status %d", got)
	}
	watch = start(t, "group", "rekey", "sensors", "--watch", "--config", s.config)
	watch.says(`^version 5: `)
	cmd("group", "deactivate", "sensors")
	cmd("group", "delete", "sensors")
	if got := watch.wait(); got != 1 {
		t.Errorf("a watch of a group that was deleted ends with status %d", got)
	}
}
