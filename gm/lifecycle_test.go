package gm

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// remover is a Delivery that is told whom to forget; it delivers nothing.
type remover struct {
	held
	removed []string
}

func (r *remover) Remove(_ *store.Tx, group, node string) error {
	r.removed = append(r.removed, group+"/"+node)
	return nil
}

func (r *remover) RemoveAll(_ *store.Tx, group string, nodes []string) error {
	for _, node := range nodes {
		r.removed = append(r.removed, group+"/"+node)
	}
	return nil
}

func (f *fixture) delete(name string) {
	f.t.Helper()
	if err := f.m.SetActive(f.t.Context(), name, false); err != nil {
		f.t.Fatal(err)
	}
	if err := f.m.DeleteGroup(f.t.Context(), name); err != nil {
		f.t.Fatal(err)
	}
}

func TestCreateGroup(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	cfg := groupcomm.DefaultGroupConfig("g2")
	if err := f.m.CreateGroup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	j := f.joiner("n", "g2", both)
	d := f.join(j, "g2", both)
	if d.Num != 0 || d.Key.ContextID[0] == 0xb1 {
		t.Errorf("num %d, Gid %v", d.Num, d.Key.ContextID)
	}
	for what, tc := range map[string]struct {
		change func(*groupcomm.GroupConfig)
		want   coap.Code
	}{
		"a name in use":        {func(c *groupcomm.GroupConfig) { c.Name = "g1" }, coap.Conflict},
		"the other in use":     {func(*groupcomm.GroupConfig) {}, coap.Conflict},
		"a prefix in use":      {func(c *groupcomm.GroupConfig) { c.Name, c.GidPrefix = "g3", []byte{0xb1} }, coap.Conflict},
		"no usable name":       {func(c *groupcomm.GroupConfig) { c.Name = "a/b" }, coap.BadRequest},
		"half a mode":          {func(c *groupcomm.GroupConfig) { c.Name, c.GpEncAlg = "g3", 0 }, coap.BadRequest},
		"a lifetime too short": {func(c *groupcomm.GroupConfig) { c.Name, c.KeyLifetime = "g3", 1 }, coap.BadRequest},
	} {
		c := groupcomm.DefaultGroupConfig("g2")
		tc.change(&c)
		before := f.dump()
		if err := f.m.CreateGroup(t.Context(), c); coap.ErrorResponse(err).Code != tc.want {
			t.Errorf("%s: %v, want %v", what, err, tc.want)
		}
		if f.dump() != before {
			t.Errorf("%s: the state changed", what)
		}
	}
	// It is there after a restart, though nobody declares it.
	f.reopen(f.st)
	if r := f.do(j, coap.GET, nil, j.Path...); r.Code != coap.Content {
		t.Errorf("after a restart: %v", r.Code)
	}
}

// A deleted group is gone with all that it had, and no group gets a Gid of it.
func TestDeleteGroup(t *testing.T) {
	r := &remover{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), r, groupConfig("g1"))
	member, leaver := f.member("n", "g1"), f.member("leaver", "g1")
	f.rekey("g1")
	f.leave(leaver)
	r.removed = nil
	if err := f.m.DeleteGroup(t.Context(), "g1"); !errors.Is(err, groupcomm.ErrActive) {
		t.Fatalf("an active group: %v, want error 10", err)
	}
	f.delete("g1")
	if len(r.removed) != 1 || r.removed[0] != "g1/"+member.Path[3] {
		t.Errorf("the delivery was told of %q", r.removed)
	}
	if d := f.dump(); strings.Contains(d, "g1 ") && !strings.Contains(d, groupcomm.EventDeleted) {
		t.Error("no event")
	}
	for _, table := range append([]string{"gm_groups"}, groupTables...) {
		err := f.st.View(t.Context(), func(tx *store.Tx) error {
			var n int
			if err := tx.QueryRow(`SELECT COUNT(*) FROM ` + table).Scan(&n); err != nil {
				return err
			}
			if n != 0 {
				t.Errorf("%s has %d rows", table, n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if r := f.do(member, coap.GET, nil, "ace-group", "g1"); r.Code != coap.NotFound {
		t.Errorf("GET on the deleted group: %v", r.Code)
	}
	if err := f.m.DeleteGroup(t.Context(), "g1"); !errors.Is(err, ErrNoGroup) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := f.m.Rekey(t.Context(), "g1", ""); !errors.Is(err, ErrNoGroup) {
		t.Errorf("rekey: %v", err)
	}
	gids := f.joiner("asker", "elsewhere", both)
	body := (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{0xb1, 0, 0, 0, 1}}}).Encode()
	if r := f.do(gids, coap.FETCH, body, "ace-group"); !bytes.Equal(r.Payload, []byte{0x40}) {
		t.Errorf("its Gid is known: %x", r.Payload)
	}
}

// A group that is declared comes back at the next start, as another group: new
// keys, no members, Gids that were never in use.
func TestDeletedGroupDeclared(t *testing.T) {
	for _, prefix := range []string{"auto", "declared"} {
		t.Run(prefix, func(t *testing.T) {
			cfg := groupConfig("g1")
			if prefix == "auto" {
				cfg.GidPrefix = nil
			}
			f := newFixture(t, cfg)
			member := f.member("n", "g1")
			before := f.join(member, "g1", both)
			f.rekey("g1")
			last := f.status().Gid
			f.delete("g1")
			f.reopen(f.st)
			s := f.status()
			if s.Members != 0 || s.Version != 0 || !s.Active {
				t.Errorf("%+v", s)
			}
			if prefix == "auto" && s.Gid[0] == last[0] {
				t.Errorf("Gid %v after %v: the prefix is used again", s.Gid, last)
			}
			if prefix == "declared" && bytes.Compare(s.Gid, last) <= 0 {
				t.Errorf("Gid %v after %v: not a later one", s.Gid, last)
			}
			if r := f.do(member, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
				t.Errorf("a member of the deleted group: %v", r.Code)
			}
			after := f.join(f.joiner("new", "g1", both), "g1", both)
			if bytes.Equal(after.KDCCred, before.KDCCred) || bytes.Equal(after.Key.MasterSecret, before.Key.MasterSecret) {
				t.Error("keys of the deleted group")
			}
		})
	}
}

// The Gid space of a deleted group is taken, for chosen and declared prefixes
// that would meet it.
func TestGidSpaceNeverReused(t *testing.T) {
	used := map[string]bool{}
	f := newFixture(t)
	for range 20 {
		c := groupcomm.DefaultGroupConfig("g")
		if err := f.m.CreateGroup(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		gid := f.status().Gid.String()
		if used[gid[:2]] {
			t.Fatalf("the prefix %s is used again", gid[:2])
		}
		used[gid[:2]] = true
		f.delete("g")
	}
	for p := range used {
		c := groupcomm.DefaultGroupConfig("g")
		c.GidPrefix, c.GidEpochBytes = append(unhex(p), 0), 3
		if err := f.m.CreateGroup(t.Context(), c); coap.ErrorResponse(err).Code != coap.Conflict {
			t.Errorf("a prefix inside the space of a deleted group: %v", err)
		}
	}
}

// A deletion in the middle of things: whoever found the group before gets a
// clear answer, and nothing of the group comes back.
func TestDeleteUnderLoad(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	stop := f.run()
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	const workers = 4
	for w := range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := 0; ctx.Err() == nil; i++ {
				j := f.joiner(strings.Repeat("x", w+1)+strings.Repeat("y", i%50), "g1", both)
				msg, err := j.JoinMessage("g1", both)
				if err != nil {
					t.Error(err)
					return
				}
				switch r := j.Send(ctx, f.m, "g1", msg); r.Code {
				case coap.Created, coap.Changed:
				case coap.NotFound, coap.ServiceUnavailable:
					if _, ok := f.m.group("g1"); !ok {
						return
					}
				default:
					t.Errorf("join answered with %v %s", r.Code, r.Payload)
					return
				}
				_, err = f.m.Rekey(ctx, "g1", "load")
				if err != nil && !errors.Is(err, ErrNoGroup) && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	for f.status().Members < 10 {
		_ = f.m.settle(t.Context())
	}
	f.delete("g1")
	for range workers {
		<-done
	}
	if s, err := f.m.Groups(t.Context()); err != nil || len(s) != 0 {
		t.Errorf("%v %v", s, err)
	}
}
