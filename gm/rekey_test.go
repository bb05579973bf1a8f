package gm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// The worked example of stale Sender IDs: three sets, of versions 3, 4 and 5,
// with [01], [02, 03] and nothing (draft-ietf-ace-key-groupcomm-oscore-21,
// Sections 7.1 and 11.3.1).
func TestStaleSIDs(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	reader := f.member("reader", "g1") // Sender ID: empty
	var nodes []*gmtest.Joiner
	for i := range 4 { // 00, 01, 02, 03
		nodes = append(nodes, f.member(fmt.Sprint("n", i), "g1"))
	}
	for f.status().Version < 3 {
		f.rekey("g1")
	}
	f.leave(nodes[1])
	f.rekey("g1")
	f.leave(nodes[2])
	f.leave(nodes[3])
	f.rekey("g1")
	for _, tc := range []struct {
		v    uint64
		code coap.Code
		want string
	}{
		{4, coap.Content, "8241024103"},
		{3, coap.Content, "83410141024103"},
		{2, coap.Content, ""},
		{0, coap.Content, ""},
		{5, coap.BadRequest, ""},
		{6, coap.BadRequest, ""},
		{1 << 60, coap.BadRequest, ""},
	} {
		r := f.do(reader, coap.FETCH, nil, "ace-group", "g1", "stale-sids")
		if r.Code != coap.BadRequest {
			t.Errorf("without a body: %v", r.Code)
		}
		req := reader.Request(coap.FETCH, groupcomm.EncodeNum(tc.v), "ace-group", "g1", "stale-sids")
		req.Options.SetContentFormat(coap.CBOR)
		r = gmtest.Serve(t.Context(), f.m, req)
		if r.Code != tc.code || tc.code == coap.Content && hex.EncodeToString(r.Payload) != tc.want {
			t.Errorf("fetch(%d): %v %x, want %v %s", tc.v, r.Code, r.Payload, tc.code, tc.want)
		}
	}
	// Nothing released since: an empty array, not an empty body.
	f.rekey("g1")
	req := reader.Request(coap.FETCH, groupcomm.EncodeNum(5), "ace-group", "g1", "stale-sids")
	req.Options.SetContentFormat(coap.CBOR)
	if r := gmtest.Serve(t.Context(), f.m, req); !bytes.Equal(r.Payload, []byte{0x80}) {
		t.Errorf("fetch(5) at 6: %v %x", r.Code, r.Payload)
	}
	// Fewer sets by configuration: the newest stay.
	f.cfg.Groups[0].MaxStaleSets = 2
	f.reopen(f.st)
	for v, want := range map[uint64]string{5: "80", 4: ""} {
		req := reader.Request(coap.FETCH, groupcomm.EncodeNum(v), "ace-group", "g1", "stale-sids")
		req.Options.SetContentFormat(coap.CBOR)
		if r := gmtest.Serve(t.Context(), f.m, req); hex.EncodeToString(r.Payload) != want {
			t.Errorf("fetch(%d) with two sets: %x, want %s", v, r.Payload, want)
		}
	}
}

func TestRekey(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a := f.joiner("a", "g1", both)
	first := f.join(a, "g1", both)
	f.leave(f.member("b", "g1"))
	if s := f.status(); !s.Due || s.Version != 0 {
		t.Errorf("after a leave: %+v", s)
	}
	if num := f.rekey("g1"); num != 1 {
		t.Errorf("num %d", num)
	}
	num, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil || num != 1 {
		t.Fatal(num, err)
	}
	msg, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(msg.MasterSecret, first.Key.MasterSecret) || bytes.Equal(msg.Salt, first.Key.Salt) || msg.ContextID.String() != "b100000001" {
		t.Error("the material is not new")
	}
	if msg.Num != 1 || len(msg.Stale) != 1 || msg.Stale[0].String() != "00" {
		t.Errorf("num %d, stale %v", msg.Num, msg.Stale)
	}
	r := f.do(a, coap.GET, nil, a.Path...)
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.Key.MasterSecret, msg.MasterSecret) || !bytes.Equal(d.Key.SenderID, first.Key.SenderID) || d.Num != 1 {
		t.Error("the member does not get the new material with its old Sender ID")
	}
	if s := f.status(); s.Due || s.Members != 1 || s.Version != 1 {
		t.Errorf("after the rekey: %+v", s)
	}
	// A restart changes nothing, and the same bytes are told.
	f.reopen(f.st)
	if _, again, err := f.m.RekeyMessage(t.Context(), "g1"); err != nil || !bytes.Equal(again, body) {
		t.Error("another message after a restart")
	}
	if _, err := f.m.Rekey(t.Context(), "nowhere", ""); !errors.Is(err, ErrNoGroup) {
		t.Errorf("unknown group: %v", err)
	}
}

// docs/protocol.md, Section 3: a newcomer never gets material that somebody who left
// holds.
func TestJoinAfterLeave(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a, b := f.member("a", "g1"), f.member("b", "g1")
	f.leave(a)
	if d := f.join(b, "g1", both); d.Num != 0 {
		t.Error("a member that joins again knows the keys; it must not cause the rekey")
	}
	c := f.joiner("c", "g1", both)
	d := f.join(c, "g1", both)
	if d.Num != 1 {
		t.Errorf("the newcomer got version %d", d.Num)
	}
	// a's and b's first Sender IDs are free again, the shorter first.
	if len(d.Key.SenderID) != 0 {
		t.Errorf("Sender ID %x", d.Key.SenderID)
	}
	if f.status().Due {
		t.Error("the rekey is still due")
	}
	if r := f.do(a, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
		t.Errorf("who left gets %v", r.Code)
	}
}

// Gids are not used again; when they are used up, the group stops.
func TestGidExhausted(t *testing.T) {
	t.Parallel()
	c := groupConfig("g1")
	c.GidEpochBytes = 1
	f := newFixture(t, c)
	j := f.member("n", "g1")
	seen := map[string]bool{f.status().Gid.String(): true}
	for range 255 {
		f.rekey("g1")
		gid := f.status().Gid.String()
		if seen[gid] {
			t.Fatalf("Gid %s twice", gid)
		}
		seen[gid] = true
	}
	// The join that finds this out is told what later ones are told.
	f.leave(f.member("leaver", "g1"))
	newcomer := f.joiner("newcomer", "g1", both)
	for range 2 {
		msg, err := newcomer.JoinMessage("g1", both)
		if err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, newcomer.Send(t.Context(), f.m, "g1", msg), 9, false)
	}
	if _, err := f.m.Rekey(t.Context(), "g1", ""); !errors.Is(err, ErrGidExhausted) {
		t.Fatalf("rekey 256: %v", err)
	}
	if s := f.status(); s.Active || s.Version != 255 {
		t.Errorf("%+v", s)
	}
	if r := f.do(j, coap.GET, nil, "ace-group", "g1", "active"); !bytes.Equal(r.Payload, []byte{0xf4}) {
		t.Errorf("active %x", r.Payload)
	}
	if err := f.m.SetActive(t.Context(), "g1", true); !errors.Is(err, ErrGidExhausted) {
		t.Errorf("activate: %v", err)
	}
	f.leave(j) // still possible, and nothing is due that cannot be done
	if f.status().Due {
		t.Error("a rekey is due")
	}
}

// rendering is a Delivery that renders and stores like a real one.
type rendering struct {
	mu       sync.Mutex
	plans    []groupcomm.RekeyPlan
	during   func() // called in Prepare
	commits  int
	removed  []string
	enrolled []string
	fail     error
}

func (d *rendering) Enroll(_ context.Context, group, node string, want *groupcomm.Delivery) (func() []byte, func(*store.Tx) error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if want == nil {
		d.enrolled = append(d.enrolled, "-"+node)
		return nil, nil, nil
	}
	d.enrolled = append(d.enrolled, "+"+node)
	return func() []byte { return channelOf(node) }, func(*store.Tx) error { return nil }, nil
}

func (d *rendering) Enrolled(_ context.Context, group, node string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, d.fail
	}
	for _, e := range slices.Backward(d.enrolled) {
		if e[1:] == node {
			if e[0] == '-' {
				break
			}
			return channelOf(node), nil
		}
	}
	return nil, nil
}

// channelOf is mgt_key_material of a node.
func channelOf(node string) []byte {
	return (&groupcomm.MgtKeyMaterial{
		KID: []byte("kid of m"), Key: []byte("K_m of a member."), Alg: cose.AlgAESCCM16_64_128, BaseIV: []byte("base iv of 13"),
		Broker: "mqtt://127.0.0.1:1", Topic: "gg/" + node + "/rekey",
	}).Encode()
}

func (d *rendering) Prepare(_ context.Context, p groupcomm.RekeyPlan) (func(*store.Tx) error, error) {
	if d.during != nil {
		d.during()
	}
	if _, err := p.Sign([]byte("message")); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.plans = append(d.plans, p)
	d.mu.Unlock()
	return func(*store.Tx) error { d.commits++; return d.fail }, nil
}

func (d *rendering) RemoveAll(_ *store.Tx, _ string, nodes []string) error {
	d.removed = append(d.removed, nodes...)
	return nil
}

func (d *rendering) Remove(_ *store.Tx, _, node string) error {
	d.removed = append(d.removed, node)
	return nil
}

// A rekey that the membership overtakes is prepared again, for those who are
// members then; after some attempts nothing overtakes it any more.
func TestRekeyOvertaken(t *testing.T) {
	d := &rendering{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), d, groupConfig("g1"))
	f.member("a", "g1")
	b := f.member("b", "g1")
	n := 0
	done := make(chan struct{})
	d.during = func() {
		switch n++; {
		case n < freeRekeys:
			f.member(fmt.Sprint("n", n), "g1")
		case n == freeRekeys:
			f.leave(b)
		case n == freeRekeys+1:
			// The gate is closed: this join ends after the rekey.
			go func() {
				defer close(done)
				f.join(f.joiner("late", "g1", both), "g1", both)
			}()
		}
	}
	f.rekey("g1")
	<-done
	last := d.plans[len(d.plans)-1]
	if d.commits != 1 || last.Num != 1 || len(d.plans) != freeRekeys+1 {
		t.Errorf("%d commits, %d plans, num %d", d.commits, len(d.plans), last.Num)
	}
	if len(last.Excluded) != 0 { // one that left is no member
		t.Errorf("%d members excluded", len(last.Excluded))
	}
	msg, err := groupcomm.DecodeRekeyMessage(last.Message)
	if err != nil || len(msg.Stale) != 1 {
		t.Errorf("stale %v, %v", msg, err)
	}
	_, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil || !bytes.Equal(body, last.Message) {
		t.Error("another message than the one that was committed")
	}
	if !slices.Equal(d.removed, []string{b.Path[3]}) {
		t.Errorf("removed %q", d.removed)
	}
}

// A delivery that cannot store its messages undoes the whole rekey.
func TestRekeyDeliveryFails(t *testing.T) {
	d := &rendering{fail: errors.New("disk full")}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), d, groupConfig("g1"))
	f.member("a", "g1")
	before := f.dump()
	if _, err := f.m.Rekey(t.Context(), "g1", ""); !errors.Is(err, d.fail) {
		t.Fatalf("%v", err)
	}
	if f.dump() != before {
		t.Error("half a rekey is on disk")
	}
}

func TestEnrollment(t *testing.T) {
	d := &rendering{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), d, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	msg.Delivery = &groupcomm.Delivery{Channel: "mqtt"}
	got, err := j.Accept(j.Send(t.Context(), f.m, "g1", msg))
	if err != nil {
		t.Fatal(err)
	}
	if got.RekeyingScheme == nil || *got.RekeyingScheme != groupcomm.SchemeMQTT || !bytes.Equal(got.MgtKeyMaterial, channelOf(j.Path[3])) {
		t.Error("labels 20 and 27")
	}
	// RFC 9594, Sections 4.3.2 and 4.8.1: told again, and to nobody else.
	other := f.member("other", "g1")
	for _, path := range [][]string{{"ace-group", "g1"}, j.Path} {
		again := f.keys(j, path...)
		if again.RekeyingScheme == nil || *again.RekeyingScheme != groupcomm.SchemeMQTT || !bytes.Equal(again.MgtKeyMaterial, channelOf(j.Path[3])) {
			t.Errorf("GET %v: labels 20 and 27", path)
		}
	}
	for _, path := range [][]string{{"ace-group", "g1"}, other.Path} {
		if d := f.keys(other, path...); d.RekeyingScheme != nil || d.MgtKeyMaterial != nil {
			t.Errorf("GET %v of another: labels 20 and 27", path)
		}
	}
	if got = f.join(j, "g1", both); got.RekeyingScheme != nil || got.MgtKeyMaterial != nil {
		t.Error("labels 20 and 27 without asking")
	}
	if again := f.keys(j, j.Path...); again.RekeyingScheme != nil || again.MgtKeyMaterial != nil {
		t.Error("GET: labels 20 and 27 after a join without asking")
	}
	if node := j.Path[3]; !slices.Equal(d.enrolled, []string{"+" + node, "-" + node}) {
		t.Errorf("enrolled %q", d.enrolled)
	}
}

// keys asks for keying material.
func (f *fixture) keys(c *gmtest.Joiner, path ...string) *groupcomm.KeyDistribution {
	f.t.Helper()
	r := f.do(c, coap.GET, nil, path...)
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		f.t.Fatalf("GET %v: %v, %v", path, r.Code, err)
	}
	return d
}

// In a group that uses the pairwise mode only, the credential that countersigns
// rekeys comes along, without a proof: there is no nonce to prove anything over.
func TestEnrollmentPairwiseOnly(t *testing.T) {
	d := &rendering{}
	f := newFixtureWith(t, storetest.Open(t, Migrations()), d, pairwiseConfig(cose.CrvX25519))
	j := f.dhJoiner("n", cose.CrvX25519, both)
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		t.Fatal(err)
	}
	msg.Delivery = &groupcomm.Delivery{Channel: "mqtt"}
	joined, err := j.Accept(j.Send(t.Context(), f.m, "g1", msg))
	if err != nil {
		t.Fatal(err)
	}
	first, err := groupcomm.DecodeMgtKeyMaterial(joined.MgtKeyMaterial)
	if err != nil || first.KDCCredVerify == nil {
		t.Fatalf("no proof in the Join Response: %v", err)
	}
	again, err := groupcomm.DecodeMgtKeyMaterial(f.keys(j, j.Path...).MgtKeyMaterial)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.KDCCred, first.KDCCred) || again.KDCNonce != nil || again.KDCCredVerify != nil {
		t.Error("the signing credential is not told again, or with a proof")
	}
	d.fail = errors.New("disk full")
	if r := f.do(j, coap.GET, nil, j.Path...); r.Code != coap.InternalServerError {
		t.Errorf("%v when the channel cannot be read", r.Code)
	}
}

func TestEvict(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a, b, c := f.member("a", "g1"), f.member("b", "g1"), f.member("c", "g1")
	before := f.dump()
	_, err := f.m.Evict(t.Context(), "g1", []string{a.Path[3], "nobody"}, [][]byte{{9}, {}, make([]byte, 9)})
	var unknown *UnknownMembersError
	if !errors.As(err, &unknown) || !slices.Equal(unknown.Names, []string{"nobody", "sender id 09", "sender id 000000000000000000"}) {
		t.Errorf("%v", err)
	}
	if f.dump() != before {
		t.Error("half an eviction is on disk")
	}
	got, err := f.m.Evict(t.Context(), "g1", []string{a.Path[3], a.Path[3]}, [][]byte{{}, {1}})
	if err != nil || !slices.Equal(got, []string{a.Path[3], c.Path[3]}) {
		t.Fatal(got, err)
	}
	for _, j := range []*gmtest.Joiner{a, c} {
		if r := f.do(j, coap.GET, nil, j.Path...); r.Code != coap.Forbidden {
			t.Errorf("an evicted node gets %v", r.Code)
		}
	}
	if r := f.do(b, coap.GET, nil, b.Path...); r.Code != coap.Content {
		t.Errorf("the remaining member gets %v", r.Code)
	}
	if s := f.status(); s.Members != 1 || !s.Due {
		t.Errorf("%+v", s)
	}
}

// Who is evicted for its silence is so with that reason, whoever of the others went
// meanwhile.
func TestEvictSilent(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a, b := f.member("a", "g1"), f.member("b", "g1")
	before := f.dump()
	if err := f.m.EvictSilent(t.Context(), "g1", []string{"went"}); err != nil || f.dump() != before {
		t.Errorf("nobody is left to evict: %v, changed %v", err, f.dump() != before)
	}
	if err := f.m.EvictSilent(t.Context(), "g1", []string{"went", a.Path[3]}); err != nil {
		t.Fatal(err)
	}
	if r := f.do(b, coap.GET, nil, b.Path...); r.Code != coap.Content {
		t.Errorf("the remaining member gets %v", r.Code)
	}
	if got, want := f.events(), "group.evicted "+a.Path[3]+" 0 silence"; got[len(got)-1] != want || !f.status().Due {
		t.Errorf("events %q, want %q at last; %+v", got, want, f.status())
	}
}

// 64 nodes join at once, with a rekey among them. Every Sender ID is given out
// once under its Gid.
func TestConcurrentJoins(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	const n = 64
	type got struct{ gid, sid string }
	out := make([]got, n)
	joiners := make([]*gmtest.Joiner, n)
	for i := range joiners {
		joiners[i] = f.joiner(fmt.Sprint("n", i), "g1", both)
	}
	var wg sync.WaitGroup
	for i, j := range joiners {
		wg.Go(func() {
			d, err := j.Join(t.Context(), f.m, "g1", both)
			if err != nil {
				t.Error(err)
				return
			}
			out[i] = got{d.Key.ContextID.String(), d.Key.SenderID.String()}
		})
	}
	wg.Go(func() {
		if _, err := f.m.Rekey(t.Context(), "g1", "test"); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	seen := map[got]bool{}
	for _, g := range out {
		if seen[g] {
			t.Errorf("Sender ID %q twice under %s", g.sid, g.gid)
		}
		seen[g] = true
	}
	members, err := f.m.Members(t.Context(), "g1")
	if err != nil || len(members) != n {
		t.Fatalf("%d members, %v", len(members), err)
	}
	sids := map[string]bool{}
	for _, mb := range members {
		sids[mb.SenderID.String()] = true
	}
	if len(sids) != n {
		t.Errorf("%d Sender IDs for %d members", len(sids), n)
	}
	f.checkState()
}

// The same node on two requests at once is one member.
func TestConcurrentJoinsOfOneNode(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("n", "g1", both)
	var wg sync.WaitGroup
	for range 8 {
		twin := *j
		wg.Go(func() {
			if _, err := twin.Join(t.Context(), f.m, "g1", both); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := f.status(); s.Members != 1 {
		t.Errorf("%d members", s.Members)
	}
	f.rekey("g1")
	_, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := groupcomm.DecodeRekeyMessage(body); err != nil || len(msg.Stale) != 7 {
		t.Errorf("%d stale Sender IDs, want 7 (%v)", len(msg.Stale), err)
	}
}

// A key that has expired is not given to anybody, whether or not the schedule
// runs.
func TestJoinAfterKeyExpiry(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	g, _ := f.m.group("g1")
	if err := f.st.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE gm_groups SET exp = ?`, time.Now().Unix()-1)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	g.cur.Store(nil)
	if d := f.join(f.joiner("n", "g1", both), "g1", both); d.Num != 1 || d.Exi <= 0 {
		t.Errorf("num %d, exi %d", d.Num, d.Exi)
	}
}
