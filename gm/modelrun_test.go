package gm

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// TestModel drives two groups and their models through the same random
// sequence and compares all that can be seen. The seed is in the name of the
// subtest.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(modelSeeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { runModel(t, seed, modelSteps) })
		})
	}
}

// modelRun is a Group Manager beside the models of its groups. Nothing works
// off what is due but work.
type modelRun struct {
	*fixture
	rnd    *rand.Rand
	models map[string]*model
	nodes  map[string]*gmtest.Joiner
	paths  map[string][]string // group/node → path of the node resource
	tokens map[string]bool     // nodes that have a token

	held map[string]string // group/version/Sender ID → node
	seen map[string]string // Gids and Master Secrets → group/version
	step int
	op   string
}

const modelNodes = 9

func runModel(t *testing.T, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := &modelRun{
		rnd: rnd, models: map[string]*model{}, nodes: map[string]*gmtest.Joiner{}, paths: map[string][]string{},
		tokens: map[string]bool{}, held: map[string]string{}, seen: map[string]string{},
	}
	var groups []groupcomm.GroupConfig
	epochs := uint64(2 + rnd.IntN(7))
	for i, name := range []string{"g1", "g2"} {
		c := groupConfig(name)
		c.GidPrefix, c.GidEpochBytes = []byte{0xb1 + byte(i)}, 1
		c.KeyLifetime = 100 * 365 * 24 * time.Hour // rekeys come from what happens here
		c.GidReuse = rnd.IntN(4) != 0
		c.RekeyOnJoin = rnd.IntN(2) == 0
		c.MaxStaleSets = 2 + rnd.IntN(3)
		if rnd.IntN(4) == 0 {
			c.ExpiryGrace = 0
		}
		if !c.GidReuse && rnd.IntN(2) == 0 {
			c.GidEpochBytes = 2
		}
		groups = append(groups, c)
	}
	if !groups[0].GidReuse && !groups[1].GidReuse {
		epochs = uint64(steps / 8) // a group that never reuses Gids ends some time
	}
	for _, c := range groups {
		r.models[c.Name] = newModel(c, epochs)
	}
	r.fixture = &fixture{t: t, auth: &gmtest.Authority{}}
	r.cfg = Config{Groups: groups, RenewalInterval: unlimited, epochs: epochs}
	r.deps = Deps{Authority: r.auth}
	r.reopen(storetest.Open(t, Migrations()))
	for i := range modelNodes {
		name := fmt.Sprint("n", i)
		j, err := gmtest.NewJoiner(name, groups[0].SignAlg)
		if err != nil {
			t.Fatal(err)
		}
		r.nodes[name] = j
		r.giveToken(name)
	}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d, step %d, %s", seed, r.step, r.op)
		}
	}()
	for r.step = range steps {
		r.act()
		for _, name := range []string{"g1", "g2"} {
			r.compare(name)
		}
	}
	r.checkState()
}

func (r *modelRun) giveToken(name string) {
	r.t.Helper()
	j := r.nodes[name]
	all := both | groupcomm.Monitor
	r.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: all}, {Group: "g2", Roles: all}}, time.Time{})
	ns, err := r.auth.NewChallenge(r.t.Context(), j.Peer.Subject)
	if err != nil {
		r.t.Fatal(err)
	}
	j.NS, r.tokens[name] = ns, true
}

// member picks a member of a group that has a token, "" if there is none.
func (r *modelRun) member(m *model, monitorToo bool) string {
	var names []string
	for name, mb := range m.members {
		if r.tokens[name] && (monitorToo || mb.sid != "-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return ""
	}
	return names[r.rnd.IntN(len(names))]
}

// act does one random operation to groups and models.
func (r *modelRun) act() {
	t, ctx := r.t, r.t.Context()
	t.Helper()
	group := []string{"g1", "g2"}[r.rnd.IntN(2)]
	mod := r.models[group]
	node := fmt.Sprint("n", r.rnd.IntN(modelNodes))
	subject := r.nodes[node].Peer.Subject
	now := time.Now()
	op := r.rnd.IntN(30)
	r.op = fmt.Sprintf("op %d, group %s, node %s", op, group, node)
	switch {
	case op < 9:
		// Elders that come back are rare: try them first.
		if elders := slices.Sorted(maps.Keys(mod.elders)); len(elders) > 0 && op < 4 {
			node = elders[r.rnd.IntN(len(elders))]
		}
		if r.tokens[node] {
			r.join(group, node)
		}
	case op < 12:
		if node = r.member(mod, false); node != "" {
			r.renew(group, node)
		}
	case op < 14:
		if node = r.member(mod, true); node != "" {
			j := r.nodes[node]
			if resp := r.do(j, coap.DELETE, nil, r.paths[group+node]...); resp.Code != coap.Deleted {
				t.Fatalf("%s: leave answered with %v", r.op, resp.Code)
			}
			mod.remove(node, byLeave, now.Add(mod.cfg.BatchWindow))
		}
	case op < 16:
		if mb := mod.members[node]; mb != nil { // with or without a token
			var sids [][]byte
			names := []string{r.paths[group+node][3]}
			if mb.sid != "-" && r.rnd.IntN(2) == 0 {
				names, sids = nil, [][]byte{unhex(mb.sid)}
			}
			if _, err := r.m.Evict(ctx, group, names, sids); err != nil {
				t.Fatalf("%s: %v", r.op, err)
			}
			mod.remove(node, byEviction, now.Add(mod.cfg.BatchWindow))
		}
	case op < 19:
		_, err := r.m.Rekey(ctx, group, "test")
		if ok := mod.state != stateStopped && mod.rekey(); ok != (err == nil) {
			t.Fatalf("%s: rekey %v, want success %v", r.op, err, ok)
		}
	case op < 21: // the token expires, or is revoked
		if r.tokens[node] {
			e := &groupcomm.Event{Subject: subject}
			if r.rnd.IntN(3) == 0 {
				e.Reason = "revoked"
			}
			r.auth.Revoke(subject)
			r.tokens[node] = false
			if err := r.m.tokenExpired(ctx, e); err != nil {
				t.Fatal(err)
			}
			for _, m := range r.models {
				m.lapse(node, e.Reason != "", now)
			}
		}
	case op < 24: // a new token restores the memberships that lapsed
		if !r.tokens[node] {
			r.giveToken(node)
			if err := r.m.tokenStored(ctx, &groupcomm.Event{Subject: subject}); err != nil {
				t.Fatal(err)
			}
			for _, m := range r.models {
				if mb := m.members[node]; mb != nil {
					mb.lapsed = false
				}
			}
		}
	case op < 26:
		time.Sleep([]time.Duration{time.Second, time.Minute, 2 * time.Hour, 25 * time.Hour}[r.rnd.IntN(4)])
		r.work()
	case op < 27:
		active := mod.state != stateActive
		err := r.m.SetActive(ctx, group, active)
		switch {
		case mod.state == stateStopped:
			if err == nil {
				t.Fatalf("%s: a stopped group was activated", r.op)
			}
		case err != nil:
			t.Fatal(err)
		case active:
			mod.state = stateActive
		default:
			mod.state = stateInactive
		}
	case op < 28:
		r.reopen(r.st)
	case op < 29:
		r.reopen(storetest.Crash(t, r.st, Migrations()))
	default:
		r.outsiders(group)
	}
}

func (r *modelRun) join(group, node string) {
	r.t.Helper()
	j, roles := r.nodes[node], both
	if r.rnd.IntN(5) == 0 {
		roles = groupcomm.Monitor
	}
	var err error
	if j.NS, err = r.auth.NewChallenge(r.t.Context(), j.Peer.Subject); err != nil {
		r.t.Fatal(err)
	}
	d, err := j.Join(r.t.Context(), r.m, group, roles)
	sid, ok := r.models[group].join(node, roles == groupcomm.Monitor)
	switch {
	case !ok && err != nil:
		return
	case !ok || err != nil:
		r.t.Fatalf("%s: join %v, want success %v", r.op, err, ok)
	}
	r.paths[group+node] = j.Path
	got := "-"
	if d.Key.SenderID != nil {
		got = d.Key.SenderID.String()
	}
	if mod := r.models[group]; got != sid || d.Num != mod.num || d.Key.ContextID.String() != mod.gid() {
		r.t.Fatalf("%s: Sender ID %q at %d under %v, want %q at %d under %s", r.op, got, d.Num, d.Key.ContextID, sid, mod.num, mod.gid())
	}
	r.unique(group, node, got, d)
}

// unique checks that no Sender ID is given to two under one use of a Gid, and
// that no secret, and without reuse no Gid, serves two versions or groups.
func (r *modelRun) unique(group, node, sid string, d *groupcomm.KeyDistribution) {
	r.t.Helper()
	version := fmt.Sprint(group, "/", d.Num)
	if sid != "-" {
		key := version + "/" + sid
		if who, ok := r.held[key]; ok {
			r.t.Fatalf("%s: Sender ID %s given to %s and again to %s", r.op, key, who, node)
		}
		r.held[key] = node
	}
	once := []string{string(d.Key.MasterSecret)}
	if !r.models[group].cfg.GidReuse {
		once = append(once, string(d.Key.ContextID))
	}
	for _, s := range once {
		if v, ok := r.seen[s]; ok && v != version {
			r.t.Fatalf("%s: a secret or Gid of %s and %s", r.op, v, version)
		}
		r.seen[s] = version
	}
}

func (r *modelRun) renew(group, node string) {
	r.t.Helper()
	mod := r.models[group]
	sid, byRekey, ok := mod.renew(node, time.Now())
	resp := r.do(r.nodes[node], coap.POST, nil, r.paths[group+node]...)
	switch {
	case !ok:
		if resp.Code == coap.Changed {
			r.t.Fatalf("%s: renewal of %s answered with %v", r.op, node, resp.Code)
		}
	case byRekey:
		if msg, err := groupcomm.DecodeRekeyMessage(resp.Payload); err != nil || msg.Num != mod.num {
			r.t.Fatalf("%s: renewal answered with %v, want the rekey message of %d", r.op, resp.Code, mod.num)
		}
	default:
		k, err := groupcomm.DecodeKeyRenewal(resp.Payload)
		if err != nil || k.SenderID.String() != sid {
			r.t.Fatalf("%s: renewal answered with %v %+v, want Sender ID %q", r.op, resp.Code, k, sid)
		}
		r.held[fmt.Sprint(group, "/", mod.num, "/", sid)] = node
	}
}

// work does what is due, as the schedule would.
func (r *modelRun) work() {
	ctx, now := r.t.Context(), time.Now()
	r.m.evictAfterGrace(ctx)
	for _, g := range r.m.byID() {
		for again := true; again; {
			before := r.models[g.cfg.Name]
			was := before.due
			t := r.m.workOff(ctx, g)
			again = was != 0 && !t.IsZero() && !t.After(now) && r.due(g.cfg.Name)
		}
	}
	for _, m := range r.models {
		m.work(now)
	}
}

// due says whether a rekey is due at this moment.
func (r *modelRun) due(group string) bool {
	g, _ := r.m.group(group)
	row, err := r.m.lookForDue(r.t.Context(), g)
	if err != nil {
		r.t.Fatal(err)
	}
	return row.dueAt != 0 && row.dueAt <= time.Now().UnixMilli()
}

// outsiders: who is no member, or has no token, reads nothing.
func (r *modelRun) outsiders(group string) {
	r.t.Helper()
	mod := r.models[group]
	for name, j := range r.nodes {
		want := coap.Unauthorized
		if r.tokens[name] {
			if mod.members[name] != nil {
				continue
			}
			want = coap.Forbidden
		}
		requests := []*coap.Request{j.Request(coap.GET, nil, "ace-group", group)}
		if path := r.paths[group+name]; path != nil {
			requests = append(requests, j.Request(coap.GET, nil, path...), j.Request(coap.POST, nil, path...))
		}
		for _, req := range requests {
			if resp := gmtest.Serve(r.t.Context(), r.m, req); resp.Code != want {
				r.t.Fatalf("%s: %v of %s, who is out, answered with %v", r.op, req.Code, name, resp.Code)
			}
		}
	}
}

// compare compares a group with its model.
func (r *modelRun) compare(group string) {
	r.t.Helper()
	ctx, mod := r.t.Context(), r.models[group]
	status, err := r.m.Groups(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	if status[0].Gid.String() == status[1].Gid.String() {
		r.t.Fatalf("%s: both groups have Gid %s", r.op, status[0].Gid)
	}
	s := status[0]
	if group == "g2" {
		s = status[1]
	}
	if s.Version != mod.num || s.Gid.String() != mod.gid() || s.Due != (mod.due != 0) || s.Active != (mod.state == stateActive) {
		r.t.Fatalf("%s: %s is %+v; model: version %d, Gid %s, due %v, %v", r.op, group, s, mod.num, mod.gid(), mod.due, mod.state)
	}
	members, err := r.m.Members(ctx, group)
	if err != nil {
		r.t.Fatal(err)
	}
	lapsed := 0
	for _, mb := range members {
		if mb.Lapsed {
			lapsed++
		}
	}
	if n, l, err := r.m.Count(ctx, group); err != nil || n != len(members) || l != lapsed {
		r.t.Fatalf("%s: %d members of %s are counted, %d lapsed, %v; there are %d and %d", r.op, n, group, l, err, len(members), lapsed)
	}
	roll, err := r.m.Roll(ctx, group)
	if err != nil || len(roll) != len(members)-lapsed {
		r.t.Fatalf("%s: %d members of %s are on the roll, %v", r.op, len(roll), group, err)
	}
	got, want := map[string]string{}, map[string]string{}
	for _, mb := range members {
		if node, ok := roll[mb.Subject]; ok == mb.Lapsed || ok && node != mb.Node {
			r.t.Fatalf("%s: %s of %s is %q on the roll, lapsed: %v", r.op, mb.Node, group, node, mb.Lapsed)
		}
		sid := "-"
		if mb.SenderID != nil {
			sid = mb.SenderID.String()
		}
		got[mb.Subject.ID] = fmt.Sprint(sid, mb.Lapsed)
	}
	for name, mb := range mod.members {
		want[name] = fmt.Sprint(mb.sid, mb.lapsed)
	}
	if !maps.Equal(got, want) {
		r.t.Fatalf("%s: members of %s are %v, want %v", r.op, group, got, want)
	}
	r.compareRekey(group)
	if name := r.member(mod, true); name != "" {
		r.compareStale(group, name)
	}
}

// compareRekey compares the newest rekey message.
func (r *modelRun) compareRekey(group string) {
	r.t.Helper()
	mod := r.models[group]
	num, body, err := r.m.RekeyMessage(r.t.Context(), group)
	if err != nil || num != mod.num {
		r.t.Fatalf("%s: rekey message of %s: %d, %v", r.op, group, num, err)
	}
	if num == 0 {
		return
	}
	msg, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		r.t.Fatal(err)
	}
	stale := map[string]bool{}
	for _, id := range msg.Stale {
		stale[id.String()] = true
	}
	if msg.Num != num || !maps.Equal(stale, mod.given) || len(msg.Stale) != len(mod.given) {
		r.t.Fatalf("%s: rekey of %s to %d (model %d) tells stale %v, want %v", r.op, group, num, mod.num, stale, mod.given)
	}
	told := map[string]string{}
	for i, id := range msg.PeerIdentifiers {
		for name, j := range r.nodes {
			if bytes.Equal(j.Cred, msg.Creds[i]) {
				told[id.String()] = name
			}
		}
	}
	if !maps.Equal(told, mod.told) {
		r.t.Fatalf("%s: rekey of %s to %d tells of newcomers %v, want %v", r.op, group, num, told, mod.told)
	}
}

// compareStale asks for the stale Sender IDs at every distance.
func (r *modelRun) compareStale(group, name string) {
	r.t.Helper()
	mod := r.models[group]
	first := uint64(0)
	if mod.num > 6 {
		first = mod.num - 6
	}
	for v := first; v <= mod.num+1; v++ {
		req := r.nodes[name].Request(coap.FETCH, groupcomm.EncodeNum(v), "ace-group", group, "stale-sids")
		req.Options.SetContentFormat(coap.CBOR)
		resp := gmtest.Serve(r.t.Context(), r.m, req)
		switch want := mod.staleSince(v); {
		case v >= mod.num:
			if resp.Code != coap.BadRequest {
				r.t.Fatalf("%s: fetch(%d) at %d: %v", r.op, v, mod.num, resp.Code)
			}
		case want == nil:
			if resp.Code != coap.Content || len(resp.Payload) != 0 {
				r.t.Fatalf("%s: fetch(%d) at %d: %v %x", r.op, v, mod.num, resp.Code, resp.Payload)
			}
		default:
			ids, err := groupcomm.DecodeStaleIDs(resp.Payload)
			if err != nil {
				r.t.Fatal(err)
			}
			got := []string{}
			for _, id := range ids {
				got = append(got, id.String())
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				r.t.Fatalf("%s: fetch(%d) at %d: %v, want %v", r.op, v, mod.num, got, want)
			}
		}
	}
}
