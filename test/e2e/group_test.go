package e2e

import (
	"errors"
	"testing"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// TestGroupLife: a group that is not active lets nobody in and answers its
// members; a group that is deleted tells its observers, and comes back with the
// next start only as another group.
func TestGroupLife(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m := g.join()
	m.follow()
	gid := m.state().Gid

	if _, err := g.admin.SetActive(soon(t), group, false); err != nil {
		t.Fatal(err)
	}
	if active, err := m.Active(soon(t)); err != nil || active {
		t.Errorf("active %v, %v", active, err)
	}
	if _, err := m.Num(soon(t)); err != nil {
		t.Errorf("reading while inactive: %v", err)
	}
	a := g.token()
	cfg := g.config(a)
	cfg.Transfer = g.post(a)
	late, err := node.New(cfg, g.as(a))
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Join(soon(t)); !errors.Is(err, groupcomm.ErrInactive) {
		t.Errorf("join while inactive: %v", err)
	}
	if _, err := g.admin.SetActive(soon(t), group, true); err != nil {
		t.Fatal(err)
	}
	if err := late.Join(soon(t)); err != nil {
		t.Errorf("join after activation: %v", err)
	}

	if _, err := g.admin.DeleteGroup(soon(t), group); err == nil {
		t.Error("an active group was deleted")
	}
	if _, err := g.admin.SetActive(soon(t), group, false); err != nil {
		t.Fatal(err)
	}
	if _, err := g.admin.DeleteGroup(soon(t), group); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the observer knows that the group is gone", func() bool {
		_, _, err := m.StaleSIDs(soon(t))
		return errors.Is(err, node.ErrGroupDeleted)
	})

	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	g.start(t)
	info := g.show()
	if info.Gid == gid.String() || info.Gid[:2] == gid.String()[:2] || len(info.Members) != 0 || !info.Active {
		t.Errorf("after the start: %+v, the deleted group had the Gid %v", info, gid)
	}
}
