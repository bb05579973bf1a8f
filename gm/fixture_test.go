package gm

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

const (
	both      = groupcomm.Requester | groupcomm.Responder
	unlimited = -time.Second // a renewal interval without limit
)

// fixture is a Group Manager on a real store.
type fixture struct {
	t    testing.TB
	st   *store.Store
	auth *gmtest.Authority
	m    *Manager
	cfg  Config
	deps Deps
}

func groupConfig(name string) groupcomm.GroupConfig {
	c := groupcomm.DefaultGroupConfig(name)
	c.GidPrefix = []byte{0xb1}
	return c
}

func newFixture(t testing.TB, groups ...groupcomm.GroupConfig) *fixture {
	t.Helper()
	return newFixtureWith(t, storetest.Open(t, Migrations()), nil, groups...)
}

func newFixtureWith(t testing.TB, st *store.Store, d Delivery, groups ...groupcomm.GroupConfig) *fixture {
	t.Helper()
	f := &fixture{t: t, st: st, auth: &gmtest.Authority{}}
	f.cfg = Config{Groups: groups, RenewalInterval: unlimited}
	f.deps = Deps{Authority: f.auth, Delivery: d}
	f.reopen(st)
	return f
}

// reopen starts a new manager on a store, as after a restart.
func (f *fixture) reopen(st *store.Store) {
	f.t.Helper()
	f.st, f.deps.Store = st, st
	f.m = New(f.cfg, f.deps)
	if err := f.m.Setup(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// joiner makes a node whose token allows the given roles in a group.
func (f *fixture) joiner(name, group string, token groupcomm.Roles) *gmtest.Joiner {
	f.t.Helper()
	return f.joinerWith(name, cose.AlgEdDSA, groupcomm.Scope{{Group: group, Roles: token}}, time.Time{})
}

func (f *fixture) joinerWith(name string, alg int64, scope groupcomm.Scope, expires time.Time) *gmtest.Joiner {
	f.t.Helper()
	j, err := gmtest.NewJoiner(name, alg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.auth.Allow(j.Peer.Subject, scope, expires)
	if j.NS, err = f.auth.NewChallenge(f.t.Context(), j.Peer.Subject); err != nil {
		f.t.Fatal(err)
	}
	return j
}

// join joins a group and fails the test if it cannot.
func (f *fixture) join(j *gmtest.Joiner, group string, roles groupcomm.Roles) *groupcomm.KeyDistribution {
	f.t.Helper()
	d, err := j.Join(f.t.Context(), f.m, group, roles)
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// member is a joiner that has joined with requester and responder.
func (f *fixture) member(name, group string) *gmtest.Joiner {
	f.t.Helper()
	j := f.joiner(name, group, both)
	f.join(j, group, both)
	return j
}

func (f *fixture) do(j *gmtest.Joiner, code coap.Code, body []byte, path ...string) *coap.Response {
	return gmtest.Serve(f.t.Context(), f.m, j.Request(code, body, path...))
}

func (f *fixture) leave(j *gmtest.Joiner) {
	f.t.Helper()
	if r := f.do(j, coap.DELETE, nil, j.Path...); r.Code != coap.Deleted {
		f.t.Fatalf("leave answered with %v", r.Code)
	}
}

func (f *fixture) rekey(group string) uint64 {
	f.t.Helper()
	num, err := f.m.Rekey(f.t.Context(), group, "test")
	if err != nil {
		f.t.Fatal(err)
	}
	return num
}

// status is the state of the only group, or of the first by name.
func (f *fixture) status() groupcomm.GroupStatus {
	f.t.Helper()
	s, err := f.m.Groups(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return s[0]
}

// dump is the content of all tables of the Group Manager, and of the event
// log, as text.
func (f *fixture) dump() string {
	f.t.Helper()
	var b strings.Builder
	for _, q := range []string{
		`SELECT id, name, state, num, hex(gid), gid_epoch, exp, handed, changes, sid_next, sid_free, sid_from_free,
			stale_from, due_at, due_reasons FROM gm_groups ORDER BY id`,
		`SELECT group_id, config, hex(kdc_key), hex(kdc_cred) FROM gm_configs ORDER BY group_id`,
		`SELECT group_id, num, hex(master_secret), hex(salt), hex(message) FROM gm_material ORDER BY group_id`,
		`SELECT group_id, node, subject_kind, hex(subject_id), sid, roles, hex(cred), hex(scope), hex(cnonce), control_uri,
			hex(birth_gid), joined_num, expires, lapsed, lapsed_num FROM gm_members ORDER BY group_id, node`,
		`SELECT group_id, num, sid FROM gm_stale ORDER BY group_id, num, sid`,
		`SELECT group_id, sid FROM gm_free ORDER BY group_id, sid`,
		// A test that moves a group to a state and back has changed nothing.
		`SELECT kind, key FROM store_events WHERE kind <> 'group.state' ORDER BY id`,
	} {
		err := f.st.View(f.t.Context(), func(tx *store.Tx) error {
			rows, err := tx.Query(q)
			if err != nil {
				return err
			}
			defer rows.Close()
			n := strings.Count(q[:strings.Index(q, "FROM")], ",") + 1
			for rows.Next() {
				cells := make([]*string, n)
				dst := make([]any, n)
				for i := range cells {
					dst[i] = &cells[i]
				}
				if err := rows.Scan(dst...); err != nil {
					return err
				}
				for _, c := range cells {
					if c == nil {
						fmt.Fprint(&b, "NULL ")
					} else {
						fmt.Fprint(&b, *c, " ")
					}
				}
				fmt.Fprintln(&b)
			}
			return rows.Err()
		})
		if err != nil {
			f.t.Fatalf("%s: %v", q, err)
		}
	}
	return b.String()
}

// run runs the manager until the test (or the returned function) ends it.
func (f *fixture) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.m.Run(ctx) }()
	return func() {
		f.t.Helper()
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	}
}

// credsOf asks for credentials: GET without, FETCH with a filter.
func (f *fixture) credsOf(j *gmtest.Joiner, q *groupcomm.GetCreds) *coap.Response {
	if q == nil {
		return f.do(j, coap.GET, nil, "ace-group", "g1", "creds")
	}
	return f.do(j, coap.FETCH, groupcomm.EncodeCredsRequest(q), "ace-group", "g1", "creds")
}
