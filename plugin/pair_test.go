//go:build postgres

package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/rd/rdtest"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

// pair is two gateways on one PostgreSQL schema, each with a folder of its own
// and the keys that they have in common.
type pair struct {
	t    *testing.T
	dsn  string
	dirs [2]string
	make func() *config.Config
}

func newPair(t *testing.T, configure func() *config.Config) *pair {
	t.Helper()
	dir := t.TempDir()
	dsn, err := pgtest.DSN(dir)
	if err != nil {
		t.Fatal(err)
	}
	if dsn == "" {
		t.Fatalf("%s names no PostgreSQL server to test with", pgtest.Env)
	}
	return &pair{t: t, dsn: dsn, dirs: [2]string{filepath.Join(dir, "one"), filepath.Join(dir, "two")}, make: configure}
}

// share copies what gateways on one store have in common to the second folder.
func (p *pair) share() {
	p.t.Helper()
	if err := os.Mkdir(p.dirs[1], 0o700); err != nil {
		p.t.Fatal(err)
	}
	for _, name := range []string{"seal.key", config.IssuerKeyFile} {
		b, err := os.ReadFile(filepath.Join(p.dirs[0], name))
		if err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.dirs[1], name), b, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

// try runs the n-th gateway until stop, or gives the error of its start.
func (p *pair) try(n int, change func(*config.Config), opts ...Option) (g *Gateway, stop func() error, err error) {
	c := p.make()
	c.DataDir, c.Store = p.dirs[n], p.dsn
	c.Listen.HTTP, c.Listen.MQTT, c.Listen.CoAP = "", "", ""
	if change != nil {
		change(c)
	}
	g = gatewayOf(p.t, c, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- g.Run(ctx) }()
	select {
	case <-g.Ready():
	case err := <-over:
		cancel()
		return nil, nil, err
	}
	ended := false
	stop = func() error {
		cancel()
		if ended {
			return nil
		}
		ended = true
		return <-over
	}
	p.t.Cleanup(func() { _ = stop() })
	return g, stop, nil
}

func (p *pair) start(n int, change func(*config.Config), opts ...Option) (*Gateway, func() error) {
	p.t.Helper()
	g, stop, err := p.try(n, change, opts...)
	if err != nil {
		p.t.Fatal(err)
	}
	return g, stop
}

func managerOf(g *Gateway) *gm.Manager { return g.rooms.Load().groups.(*gm.Manager) }

func accessOf(g *Gateway) *ace.Server { return g.rooms.Load().access.(*ace.Server) }

func linksOf(t *testing.T, g *Gateway) string {
	t.Helper()
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(".well-known", "core")
	resp, err := g.ServeCoAP(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return string(resp.Payload)
}

// metricOf says whether a gateway shows a series.
func metricOf(t *testing.T, g *Gateway, name, label, value string) bool {
	t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetName() == label && l.GetValue() == value {
					return true
				}
			}
		}
	}
	return false
}

// player is a node with a credential that was enrolled.
type player struct {
	identity string
	key      cose.Secret
}

func (p *player) dial(t *testing.T, door string) node.Transport {
	t.Helper()
	tr, err := node.DialDTLS(t.Context(), door, []byte(p.identity), p.key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func ask(group string) node.TokenRequest {
	return node.TokenRequest{Audience: "rs2", Scope: groupcomm.Scope{{Group: group, Roles: groupcomm.Requester}}}
}

// join gets a token at one door and joins at another.
func (p *player) join(t *testing.T, as, door, group string) (*node.Access, *node.Member, node.Transport) {
	t.Helper()
	m, a, tr := p.ready(t, as, door, group)
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, m, tr
}

// ready is join up to the Join Request.
func (p *player) ready(t *testing.T, as, door, group string) (*node.Member, *node.Access, node.Transport) {
	t.Helper()
	a, err := node.RequestToken(t.Context(), p.dial(t, as), ask(group))
	if err != nil {
		t.Fatal(err)
	}
	info, err := node.PostToken(t.Context(), p.dial(t, door), a)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := node.DialDTLS(t.Context(), door, a.Identity(), a.Key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	m, err := node.New(node.Config{Group: group, Roles: groupcomm.Requester, Transfer: info}, tr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, a, tr
}

func enroll(t *testing.T, g *Gateway, identity string, groups ...string) *player {
	t.Helper()
	p := &player{identity, cose.NewSecret([]byte("0123456789abcdef"))}
	n := ace.Node{Identity: identity, Key: p.key}
	for _, name := range groups {
		n.Scope = append(n.Scope, groupcomm.ScopeEntry{Group: name, Roles: groupcomm.Requester})
	}
	if _, err := accessOf(g).Enroll(t.Context(), []ace.Node{n}, ace.EnrollOptions{Lifetime: time.Hour}); err != nil {
		t.Fatal(err)
	}
	return p
}

// observe collects what an observer of a path is sent.
func observe(t *testing.T, tr node.Transport, path ...string) func() []*coap.Response {
	t.Helper()
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(path...)
	got := make(chan *coap.Response, 32)
	if _, err := tr.Observe(t.Context(), req, func(r *coap.Response) { got <- r }); err != nil {
		t.Fatal(err)
	}
	var all []*coap.Response
	return func() []*coap.Response {
		for {
			select {
			case r := <-got:
				all = append(all, r)
			default:
				return all
			}
		}
	}
}

func shared(t *testing.T, dir *rdtest.Directory) func() *config.Config {
	at, _ := serveCoAP(t, "127.0.0.1:0", handles(dir.Do))
	group := config.DefaultGroup()
	group.Name = "g1"
	return func() *config.Config {
		c := authority(t)
		c.Groups = []config.Group{group}
		c.ResourceDirectory = config.ResourceDirectory{URI: "coap://" + at + "/rd", Endpoint: "gm", Lifetime: time.Hour}
		return c
	}
}

// Groups that one gateway creates, makes from a file, configures, deactivates
// and deletes: the other serves, lists, registers and counts them at once, and
// tells its observers.
func TestPairGroups(t *testing.T) {
	dir := &rdtest.Directory{}
	p := newPair(t, shared(t, dir))
	one, stopOne := p.start(0, func(c *config.Config) { c.ResourceDirectory = config.Default().ResourceDirectory })
	p.share()
	two, _ := p.start(1, nil)
	ctx := t.Context()
	eventually(t, "registered", func() bool { return strings.Contains(dir.Lookup(), "g1") })

	late := groupcomm.DefaultGroupConfig("late")
	late.List, late.KeyCheck = true, 100
	if err := managerOf(one).CreateGroup(ctx, late); err != nil {
		t.Fatal(err)
	}
	// Whoever asks for it by name need not wait at all.
	if found, err := managerOf(two).GroupConfigs(ctx, []string{"late", "never"}); err != nil || len(found) != 1 {
		t.Errorf("%d groups, %v", len(found), err)
	}
	eventually(t, "links of the new group", func() bool { return strings.Contains(linksOf(t, two), `sec-gp="late"`) })
	eventually(t, "links at the directory", func() bool { return strings.Contains(dir.Lookup(), `sec-gp="late"`) })
	if err := managerOf(two).CreateGroup(ctx, late); err == nil {
		t.Error("the name was given twice")
	}

	door, _ := serveGateway(t, "127.0.0.1:0", two)
	_, member, tr := enroll(t, one, "meter", "late", "g1").join(t, door, door, "late")
	active := observe(t, tr, "ace-group", "late", "active")
	whole := observe(t, tr, "ace-group", "late")
	last := func(of func() []*coap.Response) *coap.Response {
		if all := of(); len(all) > 0 {
			return all[len(all)-1]
		}
		return &coap.Response{}
	}
	state := func() bool {
		is, err := groupcomm.DecodeActive(last(active).Payload)
		return err == nil && is
	}
	eventually(t, "first state", state)
	if !metricOf(t, two, "groupgate_bridge_members", "group", "late") {
		t.Error("no metrics of the new group")
	}

	// The same group with other policies, in the configuration of the first.
	if err := stopOne(); err != nil {
		t.Fatal(err)
	}
	one, _ = p.start(0, func(c *config.Config) {
		c.ResourceDirectory = config.Default().ResourceDirectory
		c.Groups = append(c.Groups, config.DefaultGroup())
		c.Groups[1].Name, c.Groups[1].GroupPolicies.KeyCheck, c.Groups[1].List = "late", 777, false
	})
	eventually(t, "other policies", func() bool {
		found, err := managerOf(two).GroupConfigs(ctx, []string{"late"})
		return err == nil && len(found) == 1 && found[0].KeyCheck == 777
	})
	eventually(t, "unlisted", func() bool {
		return !strings.Contains(linksOf(t, two), "late") && !strings.Contains(dir.Lookup(), "late")
	})
	if _, err := member.Num(ctx); err != nil {
		t.Errorf("a member of a group that was configured: %v", err)
	}

	if err := managerOf(one).SetActive(ctx, "late", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "inactive", func() bool { return last(active).Code == coap.Content && !state() })
	if err := managerOf(one).DeleteGroup(ctx, "late"); err != nil {
		t.Fatal(err)
	}
	if _, err := member.Num(ctx); err == nil { // at once
		t.Error("a group that was deleted is served")
	}
	for what, of := range map[string]func() []*coap.Response{"active": active, "group": whole} {
		eventually(t, "the last notification of "+what, func() bool { return last(of).Code == coap.NotFound })
		if p, err := coap.DecodeProblem(last(of).Payload); err != nil || p.ID != groupcomm.ErrGroupDeleted.ID {
			t.Errorf("%s ends with %x, %v", what, last(of).Payload, err)
		}
	}
	eventually(t, "metrics of the deleted group", func() bool { return !metricOf(t, two, "groupgate_bridge_members", "group", "late") })
	if found, err := managerOf(two).GroupConfigs(ctx, []string{"late"}); err != nil || len(found) != 0 {
		t.Errorf("%d groups, %v", len(found), err)
	}

	// A name that comes again is another group.
	if err := managerOf(one).CreateGroup(ctx, late); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group of the same name", func() bool { return strings.Contains(linksOf(t, two), `sec-gp="late"`) })
	if _, err := member.Num(ctx); err == nil {
		t.Error("a member of the group before is one of the new group")
	}

	// From files.
	const fixture = `{"name": "fix", "gid": "fa00000001", "gid_epoch_bytes": 4, "num": 7, "ms": "000102030405060708090a0b0c0d0e0f"}`
	if _, _, err := managerOf(one).ImportFixture(ctx, []byte(fixture)); err != nil {
		t.Fatal(err)
	}
	if num, _, err := managerOf(two).RekeyMessage(ctx, "fix"); err != nil || num != 7 {
		t.Errorf("version %d, %v", num, err)
	}
	file, _, err := managerOf(two).Export(ctx, "fix", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := managerOf(one).Rekey(ctx, "fix", "test"); err == nil {
		t.Error("a group that was moved is rekeyed by the other gateway")
	}
	if err := managerOf(one).DeleteGroup(ctx, "fix"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := managerOf(two).Import(ctx, file, nil); err != nil {
		t.Fatal(err)
	}
	if num, _, err := managerOf(one).RekeyMessage(ctx, "fix"); err != nil || num != 8 {
		t.Errorf("version %d, %v", num, err)
	}
}

// Both gateways create groups at the same time: no two have one name or could
// come to one Gid.
func TestPairCreatesAtOnce(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	one, _ := p.start(0, nil)
	p.share()
	two, _ := p.start(1, nil)
	const n = 8
	errs := make(chan error, 2*n)
	for _, g := range []*Gateway{one, two} {
		for i := range n {
			go func() {
				errs <- managerOf(g).CreateGroup(t.Context(), groupcomm.DefaultGroupConfig(fmt.Sprint("g", 10+i)))
			}()
		}
	}
	created := 0
	for range 2 * n {
		if err := <-errs; err == nil {
			created++
		} else if !strings.Contains(err.Error(), gm.ErrExists.Error()) {
			t.Error(err)
		}
	}
	names := []string{"g1"}
	for i := range n {
		names = append(names, fmt.Sprint("g", 10+i))
	}
	for _, g := range []*Gateway{one, two} {
		found, err := managerOf(g).GroupConfigs(t.Context(), names)
		if err != nil || len(found) != n+1 || created != n {
			t.Fatalf("%d groups, %d were created, %v", len(found), created, err)
		}
		seen := map[string]bool{}
		for _, c := range found {
			seen[string(c.GidPrefix)] = true
		}
		if len(seen) != n+1 {
			t.Errorf("%d prefixes of %d groups", len(seen), n+1)
		}
	}
}

// What one gateway takes from a node the other does not give any more: at once,
// on associations that live.
func TestPairRights(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	one, _ := p.start(0, nil)
	p.share()
	two, _ := p.start(1, nil)
	ctx := t.Context()
	door, _ := serveGateway(t, "127.0.0.1:0", two)

	meter, lamp := enroll(t, one, "meter", "g1"), enroll(t, one, "lamp", "g1")
	_, mm, mtr := meter.join(t, door, door, "g1")
	la, lm, _ := lamp.join(t, door, door, "g1")
	alive := meter.dial(t, door) // its association with the Authorization Server
	if _, err := node.RequestToken(ctx, alive, ask("g1")); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*node.Member{mm, lm} {
		if _, err := m.Num(ctx); err != nil {
			t.Fatal(err)
		}
	}
	whole := observe(t, mtr, "ace-group", "g1")
	eventually(t, "first state", func() bool { return len(whole()) == 1 })

	if _, err := accessOf(one).DisableNodes(ctx, []string{"meter"}); err != nil {
		t.Fatal(err)
	}
	if _, err := mm.Num(ctx); err == nil {
		t.Error("a node that is disabled is served as a member")
	}
	if _, err := node.RequestToken(ctx, alive, ask("g1")); err == nil {
		t.Error("a node that is disabled gets a token")
	}
	if tr, err := node.DialDTLS(ctx, door, []byte(meter.identity), meter.key.Bytes()); err == nil {
		_ = tr.Close()
		t.Error("a node that is disabled shakes hands")
	}
	eventually(t, "the observation ends", func() bool {
		all := whole()
		return all[len(all)-1].Code == coap.Unauthorized
	})
	if _, err := accessOf(one).EnableNodes(ctx, []string{"meter"}); err != nil {
		t.Fatal(err)
	}
	if _, err := node.RequestToken(ctx, meter.dial(t, door), ask("g1")); err != nil {
		t.Errorf("a node that is enabled again: %v", err)
	}

	if err := accessOf(one).Revoke(ctx, cwt.Hash(la.Token)); err != nil {
		t.Fatal(err)
	}
	if _, err := lm.Num(ctx); err == nil {
		t.Error("a token that was revoked is good for requests")
	}
	if got := postTo(t, two, la.Token); got != coap.Unauthorized {
		t.Errorf("a token that was revoked is answered %v", got)
	}
	eventually(t, "evicted", func() bool {
		members, err := managerOf(two).Members(ctx, "g1")
		return err == nil && len(members) == 0
	})
}

// A database that was put back behind two gateways: both refuse it; one accepts
// it and rekeys every group so far on that nothing comes twice, whoever of the
// two gave it out; then the other starts as ever.
func TestPairRollback(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	one, stopOne := p.start(0, nil)
	p.share()
	two, stopTwo := p.start(1, nil)
	ctx := t.Context()
	door, _ := serveGateway(t, "127.0.0.1:0", two)
	meter := enroll(t, one, "meter", "g1")
	_, member, _ := meter.join(t, door, door, "g1")
	status := func(g *Gateway) groupcomm.GroupStatus {
		t.Helper()
		all, err := managerOf(g).Groups(ctx)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d groups, %v", len(all), err)
		}
		return all[0]
	}
	given, dir := map[string]bool{}, t.TempDir()
	if _, err := pgtest.DSN(dir); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.Copy(filepath.Dir(p.dirs[0]), dir); err != nil { // the backup
		t.Fatal(err)
	}
	rekey := func(g *Gateway) {
		t.Helper()
		if _, err := managerOf(g).Rekey(ctx, "g1", "test"); err != nil {
			t.Fatal(err)
		}
		given[status(g).Gid.String()] = true
	}
	rekey(one)
	if err := stopOne(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		rekey(two)
	}
	last := status(two)
	if err := stopTwo(); err != nil {
		t.Fatal(err)
	}

	var err error
	if p.dsn, err = pgtest.DSN(dir); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if _, _, err := p.try(n, nil); !errors.Is(err, store.ErrRolledBack) {
			t.Fatalf("gateway %d: %v", n, err)
		}
	}
	one, _ = p.start(0, nil, WithAcceptedRollback()) // which knows of one rekey only
	s := status(one)
	if s.Version <= last.Version+1<<19 || given[s.Gid.String()] {
		t.Errorf("%+v after %+v", s, last)
	}
	two, _ = p.start(1, nil)
	for range 8 {
		rekeyed := status(two)
		if given[rekeyed.Gid.String()] {
			t.Errorf("gid %s a second time", rekeyed.Gid)
		}
		if _, err := managerOf(two).Rekey(ctx, "g1", "test"); err != nil {
			t.Fatal(err)
		}
	}
	door, _ = serveGateway(t, "127.0.0.1:0", two)
	_, again, _ := meter.join(t, door, door, "g1")
	was, _ := member.State()
	is, _ := again.State()
	if is.Version <= last.Version || is.Version == was.Version {
		t.Errorf("version %d after %d", is.Version, last.Version)
	}
}

// A database that goes back while a gateway runs ends it: it would give things
// out twice.
func TestPairGoesBack(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	c := p.make()
	c.DataDir, c.Store = p.dirs[0], p.dsn
	c.Listen.HTTP, c.Listen.MQTT, c.Listen.CoAP = "", "", ""
	g := gatewayOf(t, c)
	over := make(chan error, 1)
	go func() { over <- g.Run(t.Context()) }()
	<-g.Ready()
	for range 3 {
		if _, err := managerOf(g).Rekey(t.Context(), "g1", "test"); err != nil {
			t.Fatal(err)
		}
	}
	db, err := pgx.Connect(t.Context(), p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	if _, err := db.Exec(t.Context(), `UPDATE store_mark SET seq = seq - 3`); err != nil {
		t.Fatal(err)
	}
	if _, err := managerOf(g).Rekey(t.Context(), "g1", "test"); err == nil { // or it has ended already
		t.Error("a version was given out twice")
	}
	if err := <-over; !errors.Is(err, store.ErrRolledBack) {
		t.Errorf("the gateway ends with %v", err)
	}
	if _, _, err := p.try(0, nil); !errors.Is(err, store.ErrRolledBack) {
		t.Errorf("the next start: %v", err)
	}
}

// A member's deliveries are with the gateway that has its newest association
// (docs/protocol.md, Section 10).
func TestPairLease(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	one, _ := p.start(0, nil)
	p.share()
	two, _ := p.start(1, nil)
	ctx := t.Context()
	doors := [2]string{}
	doors[0], _ = serveGateway(t, "127.0.0.1:0", one)
	doors[1], _ = serveGateway(t, "127.0.0.1:0", two)
	a, _, first := enroll(t, one, "meter", "g1").join(t, doors[0], doors[0], "g1")
	news := []func() []*coap.Response{observe(t, first, "ace-group", "g1")}
	gateways := [2]*Gateway{one, two}
	for turn := 1; turn < 4; turn++ { // to the second, back, and again
		here, there := gateways[turn%2], gateways[1-turn%2]
		was := len(news[turn-1]())
		tr, err := node.DialDTLS(ctx, doors[turn%2], a.Identity(), a.Key.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		news = append(news, observe(t, tr, "ace-group", "g1"))
		eventually(t, "let go by the other", func() bool { return len(there.server.Observers("gm/g1")) == 0 })
		if _, err := managerOf(there).Rekey(ctx, "g1", "test"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "told by the newest", func() bool { return len(news[turn]()) == 2 })
		if n := len(news[turn-1]()); n != was {
			t.Errorf("turn %d: the elder association got %d notifications more", turn, n-was)
		}
		if n := len(here.server.Observers("gm/g1")); n != 1 {
			t.Errorf("turn %d: %d observers", turn, n)
		}
	}
}

// Nodes that join at both gateways at once: the rekey that lets them in tells the
// members of all, whichever gateway does it.
func TestPairNewcomers(t *testing.T) {
	base := shared(t, &rdtest.Directory{})
	p := newPair(t, func() *config.Config {
		c := base()
		c.Groups = slices.Clone(c.Groups)
		c.Groups[0].Rekey.OnJoin = true
		return c
	})
	one, _ := p.start(0, nil)
	p.share()
	two, _ := p.start(1, nil)
	doors := [2]string{}
	doors[0], _ = serveGateway(t, "127.0.0.1:0", one)
	doors[1], _ = serveGateway(t, "127.0.0.1:0", two)
	_, first, tr := enroll(t, one, "first", "g1").join(t, doors[0], doors[0], "g1")
	news := observe(t, tr, "ace-group", "g1")
	eventually(t, "observes", func() bool { return len(news()) == 1 })

	var members [2]*node.Member
	for i := range members {
		members[i], _, _ = enroll(t, one, fmt.Sprint("late", i), "g1").ready(t, doors[i], doors[i], "g1")
	}
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() {
			if err := m.Join(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	was, _ := first.State()
	told := map[string]bool{}
	eventually(t, "told of both", func() bool {
		for _, r := range news()[1:] {
			msg, err := groupcomm.DecodeRekeyMessage(r.Payload)
			if err != nil {
				t.Fatal(err)
			}
			for i, cred := range msg.Creds {
				told[string(cred)+msg.PeerIdentifiers[i].String()] = true
			}
		}
		return len(told) > 1
	})
	for i, m := range members {
		s, _ := m.State()
		if s.Version <= was.Version {
			t.Errorf("late%d joined at version %d", i, s.Version)
		}
		if !told[string(m.Cred())+s.SenderID.String()] {
			t.Errorf("what was told of late%d is wrong", i)
		}
	}
}

// The whole state of a gateway on SQLite goes to PostgreSQL: its members go on
// there, and a second gateway with them; then back again.
func TestPairAfterMove(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	ctx := t.Context()
	onSQLite := func(c *config.Config) { c.Store = "sqlite:groupgate.db" }
	one, stop := p.start(0, onSQLite)
	door, _ := serveGateway(t, "127.0.0.1:0", one)
	meter, lamp := enroll(t, one, "meter", "g1"), enroll(t, one, "lamp", "g1")
	access, member, _ := meter.join(t, door, door, "g1")
	revoked, _, _ := lamp.join(t, door, door, "g1")
	if err := accessOf(one).Revoke(ctx, cwt.Hash(revoked.Token)); err != nil {
		t.Fatal(err)
	}
	if _, err := managerOf(one).Rekey(ctx, "g1", "test"); err != nil {
		t.Fatal(err)
	}
	if err := managerOf(one).CreateGroup(ctx, groupcomm.DefaultGroupConfig("gone")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(managerOf(one).SetActive(ctx, "gone", false), managerOf(one).DeleteGroup(ctx, "gone")); err != nil {
		t.Fatal(err)
	}
	state := func(g *Gateway) string {
		t.Helper()
		groups, err := managerOf(g).Groups(ctx)
		if err != nil {
			t.Fatal(err)
		}
		members, err := managerOf(g).Members(ctx, "g1")
		if err != nil {
			t.Fatal(err)
		}
		_, message, err := managerOf(g).RekeyMessage(ctx, "g1")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%+v %+v %x", groups, members, message)
	}
	eventually(t, "the revoked node is out", func() bool {
		groups, err := managerOf(one).Groups(ctx)
		return err == nil && groups[0].Members == 1 && !groups[0].Due
	})
	before, was := state(one), managerOf(one)
	_, body, _ := was.RekeyMessage(ctx, "g1")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	move := func(from func(*config.Config), to string) (*store.Moved, error) {
		c := p.make()
		c.DataDir, c.Store = p.dirs[0], p.dsn
		if from != nil {
			from(c)
		}
		return MoveStore(ctx, c, to, nil)
	}
	if m, err := move(onSQLite, p.dsn); err != nil || m.Rows == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, _, err := p.try(0, onSQLite); !errors.Is(err, store.ErrMoved) {
		t.Errorf("the database of before: %v", err)
	}
	one, stopOne := p.start(0, nil)
	p.share()
	two, stopTwo := p.start(1, nil)
	for _, g := range []*Gateway{one, two} {
		if after := state(g); after != before {
			t.Errorf("got\n%s\nwant\n%s", after, before)
		}
		if got := postTo(t, g, revoked.Token); got != coap.Unauthorized {
			t.Errorf("a token that was revoked before the move: %v", got)
		}
	}
	door, _ = serveGateway(t, "127.0.0.1:0", two)
	// The member comes with its key id, and is who it was.
	tr, err := node.DialDTLS(ctx, door, access.Identity(), access.Key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	news := observe(t, tr, "ace-group", "g1")
	old, _ := member.State()
	first, err := groupcomm.DecodeKeyDistribution(news()[0].Payload)
	if err != nil || first.Num <= old.Version {
		t.Fatalf("%v %+v", err, first)
	}
	num, err := managerOf(one).Rekey(ctx, "g1", "test")
	if err != nil || num != first.Num+1 {
		t.Errorf("version %d after %d, %v", num, first.Num, err)
	}
	eventually(t, "the rekey", func() bool { return len(news()) == 2 })
	if string(news()[1].Payload) == string(body) {
		t.Error("the keys of before come again")
	}
	if _, err := node.RequestToken(ctx, lamp.dial(t, door), ask("g1")); err != nil {
		t.Errorf("an enrolled node: %v", err)
	}
	if err := managerOf(two).CreateGroup(ctx, groupcomm.DefaultGroupConfig("next")); err != nil {
		t.Fatal(err)
	}

	// Back: not while a gateway runs on it, and to no file that is in use.
	if _, err := move(nil, "sqlite:back.db"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("beside running gateways: %v", err)
	}
	last := state(two)
	if err := errors.Join(stopOne(), stopTwo()); err != nil {
		t.Fatal(err)
	}
	if _, err := move(nil, "sqlite:groupgate.db"); !errors.Is(err, store.ErrMoved) && !errors.Is(err, store.ErrNotEmpty) {
		t.Errorf("onto the database of before: %v", err)
	}
	if _, err := move(nil, "sqlite:back.db"); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if _, _, err := p.try(n, nil); !errors.Is(err, store.ErrMoved) {
			t.Errorf("gateway %d: %v", n, err)
		}
	}
	back, _ := p.start(0, func(c *config.Config) { c.Store = "sqlite:back.db" })
	if after := state(back); after != last {
		t.Errorf("got\n%s\nwant\n%s", after, last)
	}
}

// TestPairReadsTogether: on a database that several gateways share, a rekey asks for the
// tokens of those who observe together, and for who is a member: neither is a way to the
// database for each.
func TestPairReadsTogether(t *testing.T) {
	p := newPair(t, shared(t, &rdtest.Directory{}))
	one, _ := p.start(0, nil)
	ctx := t.Context()
	door, _ := serveGateway(t, "127.0.0.1:0", one)
	const n = 80
	enrolled := make([]*player, n)
	for i := range n {
		enrolled[i] = enroll(t, one, fmt.Sprint("meter", i), "g1")
	}
	var got []func() []*coap.Response
	for _, meter := range enrolled {
		a, err := node.RequestToken(ctx, meter.dial(t, door), ask("g1"))
		if err != nil {
			t.Fatal(err)
		}
		tr, err := node.DialDTLS(ctx, door, a.Token, a.Key.Bytes()) // posts would be too many
		if err != nil {
			t.Fatal(err)
		}
		ns, err := node.Challenge(tr)
		if err != nil {
			t.Fatal(err)
		}
		m, err := node.New(node.Config{Group: "g1", Roles: groupcomm.Requester, Transfer: &groupcomm.TokenTransferResponse{
			KDCChallenge: ns, SignInfo: []groupcomm.SignInfoEntry{{Groups: []string{"g1"}, Alg: cose.AlgEdDSA,
				AlgParams: []int64{cose.KtyOKP}, KeyParams: []int64{cose.KtyOKP, cose.CrvEd25519}, CredFmt: 14}},
		}}, tr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		if err := m.Join(ctx); err != nil {
			t.Fatal(err)
		}
		got = append(got, observe(t, tr, "ace-group", "g1"))
	}
	all := func(n int) func() bool {
		return func() bool {
			return !slices.ContainsFunc(got, func(all func() []*coap.Response) bool { return len(all()) < n })
		}
	}
	eventually(t, "first state", all(1))
	before := valueOf(t, one, "groupgate_store_reads_total")
	if _, err := managerOf(one).Rekey(ctx, "g1", "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "rekey", all(2))
	if reads := valueOf(t, one, "groupgate_store_reads_total") - before; reads >= n {
		t.Errorf("a rekey of %d observers read the database %v times", n, reads) // some 40, for whatever number
	} else {
		t.Logf("%v reads for %d observers", reads, n)
	}
}

// valueOf is a metric without labels.
func valueOf(t *testing.T, g *Gateway, name string) float64 {
	t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
