package ace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

func scopeFor(group string, roles groupcomm.Roles) groupcomm.Scope {
	return groupcomm.Scope{{Group: group, Roles: roles}}
}

func nodeNamed(identity string) Node {
	return Node{identity, cose.NewSecret([]byte("key of " + identity + ", and more")), scopeFor("g1", 6)}
}

var dayLong = EnrollOptions{Lifetime: 24 * time.Hour}

func (b *bench) enroll(o EnrollOptions, nodes ...Node) *Enrolled {
	b.t.Helper()
	out, err := b.Enroll(b.t.Context(), nodes, o)
	if err != nil {
		b.t.Fatalf("enroll: %v", err)
	}
	return out
}

// associate does a handshake with the identity of a node.
func (b *bench) associate(n Node) (coap.Peer, error) {
	b.t.Helper()
	key, err := b.PSK(b.t.Context(), []byte(n.Identity))
	if err != nil {
		return coap.Peer{}, err
	}
	if !bytes.Equal(key, n.Key.Bytes()) {
		b.t.Fatalf("another key for %q", n.Identity)
	}
	subject, conveyed := b.Subject([]byte(n.Identity))
	if conveyed || subject.Kind != coap.SubjectPSK {
		b.t.Fatalf("subject of %q: kind %v, conveyed %v", n.Identity, subject.Kind, conveyed)
	}
	return inside(subject), nil
}

func (b *bench) mustAssociate(n Node) coap.Peer {
	b.t.Helper()
	peer, err := b.associate(n)
	if err != nil {
		b.t.Fatal(err)
	}
	return peer
}

func askAs(peer coap.Peer, fields map[int64]any) *coap.Request {
	req := tokenReq(fields)
	req.Peer = peer
	return req
}

func (b *bench) refusedAs(peer coap.Peer, code coap.Code, id oauthError) {
	b.t.Helper()
	_, err := b.Token().ServeCoAP(b.t.Context(), askAs(peer, map[int64]any{}))
	if c, got := oauth(err); c != code || oauthError(got) != id {
		b.t.Errorf("token request: %v %d (%v), want %v %d", c, got, err, code, id)
	}
}

// member is a node that has posted a token and proved its key.
func (b *bench) member(peer coap.Peer) (coap.Subject, answer) {
	b.t.Helper()
	a := b.ask(askAs(peer, map[int64]any{}))
	b.mustPost(outside(), a.token)
	return b.handshake(a.kid), a
}

// A node that is enrolled while the gateway runs is a client like a configured
// one, after a power cut too.
func TestEnroll(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("meter 7 ☼")
	if _, err := b.associate(n); !errors.Is(err, ErrIdentity) {
		t.Fatalf("before: %v", err)
	}
	if out := b.enroll(dayLong, n, nodeNamed("other")); out.Added != 2 || out.Replaced != 0 || out.Audience != "rs2" {
		t.Errorf("enrolled: %+v", out)
	}
	for range 2 {
		peer := b.mustAssociate(n)
		subject, a := b.member(peer)
		if a.expires != 86400 || b.grant(subject).Scope.RolesFor("g1") != 6 {
			t.Errorf("token expires in %d, grants %v", a.expires, b.grant(subject).Scope)
		}
		narrow := b.ask(askAs(peer, map[int64]any{5: "rs2", 9: wanted(groupcomm.ScopeEntry{Group: "g1", Roles: 14}, groupcomm.ScopeEntry{Group: "g2", Roles: 8})}))
		if len(narrow.scope) != 1 || narrow.scope[0].Roles != 6 {
			t.Errorf("more than it may have: %v", narrow.scope)
		}
		_, err := b.Token().ServeCoAP(t.Context(), askAs(peer, map[int64]any{5: "elsewhere"}))
		if c, id := oauth(err); c != coap.BadRequest || oauthError(id) != unauthorizedClient {
			t.Errorf("another audience: %v", err)
		}
		if _, err := b.Grant(t.Context(), peer); code(err) != coap.Unauthorized {
			t.Errorf("its identity grants something by itself: %v", err)
		}
		b = b.reopen()
	}
	// RFC 9202, Section 4: a new token for the key that it has.
	peer := b.mustAssociate(n)
	_, a := b.member(peer)
	again := b.ask(askAs(peer, map[int64]any{4: cose.Item(cose.MustMarshal(map[int64]any{3: a.kid}))}))
	if !bytes.Equal(again.kid, a.kid) {
		t.Error("a renewal has another key")
	}
	if list, err := b.Nodes(t.Context(), "", 10); err != nil || len(list) != 2 || list[0].Identity != n.Identity || list[0].State != "enabled" ||
		list[0].Lifetime != 24*time.Hour || list[0].Scope.RolesFor("g1") != 6 {
		t.Errorf("list: %+v, %v", list, err)
	}
}

// Everything that is wrong is told at once, and then nothing is changed.
func TestEnrollFaults(t *testing.T) {
	b := newBench(t)
	b.enroll(dayLong, nodeNamed("taken"))
	key := cose.NewSecret([]byte("0123456789abcdef"))
	g1 := scopeFor("g1", 6)
	nodes := []Node{
		nodeNamed("good"),
		{"", key, g1},
		{strings.Repeat("x", 129), key, g1},
		{"line\nbreak", key, g1},
		{"\xff", key, g1},
		{" space", key, g1},
		{string(KIDIdentity([]byte("kid"))), key, g1},
		nodeNamed("good"),
		{"clientF", key, g1},
		{"short", cose.NewSecret([]byte("0123456789abcde")), g1},
		{"no group", key, nil},
		{"bad group", key, scopeFor("a/b", 6)},
		{"no role", key, scopeFor("g1", 0)},
		{"admin", key, scopeFor("g1", 3)},
		nodeNamed("taken"),
	}
	_, err := b.Enroll(t.Context(), nodes, dayLong)
	faults, ok := errors.AsType[NodeFaults](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	told := map[int]string{}
	for _, f := range faults {
		told[f.Index] = f.Text
		if strings.Contains(f.Text, "0123456789abcde") {
			t.Errorf("a fault quotes a key: %s", f.Text)
		}
	}
	for i := range nodes {
		if (told[i] == "") != (i == 0) {
			t.Errorf("node %d: %q", i, told[i])
		}
	}
	if !strings.Contains(told[8], "section psk") || !strings.Contains(told[14], "enrolled already") {
		t.Errorf("%q, %q", told[8], told[14])
	}
	if list, err := b.Nodes(t.Context(), "", 10); err != nil || len(list) != 1 {
		t.Errorf("%d nodes are stored, %v", len(list), err)
	}
	for want, o := range map[string]EnrollOptions{"lifetime": {}, "audience": {Lifetime: time.Hour, Audience: "elsewhere"}} {
		if _, err := b.Enroll(t.Context(), nodes[:1], o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	none := newBench(t, func(c *Config) { c.AS = nil })
	if _, err := none.Enroll(t.Context(), nodes[:1], dayLong); code(err) != coap.Conflict {
		t.Errorf("without AS: %v", err)
	}
	full := newBench(t, func(c *Config) { c.Limits.MaxNodes = 1 })
	full.enroll(dayLong, nodeNamed("a"))
	if _, err := full.Enroll(t.Context(), []Node{nodeNamed("b")}, dayLong); code(err) != coap.ServiceUnavailable {
		t.Errorf("one too many: %v", err)
	}
}

func TestEnrollDryRun(t *testing.T) {
	b := newBench(t)
	dry := dayLong
	dry.DryRun = true
	if out := b.enroll(dry, nodeNamed("a")); out.Added != 1 {
		t.Errorf("%+v", out)
	}
	if list, err := b.Nodes(t.Context(), "", 10); err != nil || len(list) != 0 {
		t.Errorf("a dry run stored %d nodes, %v", len(list), err)
	}
}

// A disabled node has no handshake, no token and no membership, at once.
func TestDisableNode(t *testing.T) {
	b := newBench(t)
	n, bystander := nodeNamed("n"), nodeNamed("bystander")
	b.enroll(dayLong, n, bystander)
	peer := b.mustAssociate(n)
	subject, a := b.member(peer)
	other, _ := b.member(b.mustAssociate(bystander))
	unposted := b.ask(askAs(peer, map[int64]any{}))
	before := b.ended(t)

	if changed, err := b.DisableNodes(t.Context(), []string{"n", "n"}); err != nil || changed != 1 {
		t.Fatalf("disable: %d, %v", changed, err)
	}
	if _, err := b.associate(n); !errors.Is(err, ErrIdentity) {
		t.Errorf("handshake: %v", err)
	}
	b.refusedAs(peer, coap.Unauthorized, invalidClient)
	if _, err := b.Grant(t.Context(), inside(subject)); code(err) != coap.Unauthorized {
		t.Errorf("its token still grants: %v", err)
	}
	for name, token := range map[string][]byte{"posted": a.token, "not yet posted": unposted.token} {
		if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
			t.Errorf("token that was %s before: %v", name, err)
		}
		if _, err := b.PSK(t.Context(), token); !errors.Is(err, ErrIdentity) {
			t.Errorf("token that was %s before, as identity: %v", name, err)
		}
	}
	after := b.ended(t)
	if len(after) != len(before)+1 || after[len(after)-1].Subject != subject || after[len(after)-1].Reason != "revoked" {
		t.Errorf("events: %+v", after[len(before):])
	}
	b.grant(other)

	if changed, err := b.DisableNodes(t.Context(), []string{"n"}); err != nil || changed != 0 {
		t.Errorf("again: %d, %v", changed, err)
	}
	b = b.reopen()
	if _, err := b.associate(n); !errors.Is(err, ErrIdentity) {
		t.Errorf("handshake after a power cut: %v", err)
	}
	if changed, err := b.EnableNodes(t.Context(), []string{"n"}); err != nil || changed != 1 {
		t.Fatalf("enable: %d, %v", changed, err)
	}
	peer = b.mustAssociate(n)
	if _, err := b.post(outside(), a.token); code(err) != coap.Unauthorized {
		t.Errorf("a token of before is back: %v", err)
	}
	_, err := b.Token().ServeCoAP(t.Context(), askAs(peer, map[int64]any{4: cose.Item(cose.MustMarshal(map[int64]any{3: a.kid}))}))
	if _, id := oauth(err); oauthError(id) != unsupportedPoPKey {
		t.Errorf("a blocked key is renewed: %v", err)
	}
	b.member(peer)

	for _, change := range []func(context.Context, []string) (int, error){b.DisableNodes, b.EnableNodes, b.RemoveNodes} {
		if _, err := change(t.Context(), []string{"n", "nobody", "none"}); code(err) != coap.NotFound || !strings.Contains(err.Error(), `"nobody", "none"`) {
			t.Errorf("an unknown node: %v", err)
		}
		if _, err := change(t.Context(), []string{"clientF"}); code(err) != coap.Conflict {
			t.Errorf("a configured peer: %v", err)
		}
	}
	b.mustAssociate(n)
	if changed, err := b.RemoveNodes(t.Context(), []string{"n"}); err != nil || changed != 1 {
		t.Fatalf("remove: %d, %v", changed, err)
	}
	b.refusedAs(peer, coap.Unauthorized, invalidClient)
	if list, err := b.Nodes(t.Context(), "", 10); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

// ended reads the events of ended tokens.
func (b *bench) ended(t *testing.T) (list []groupcomm.Event) {
	t.Helper()
	err := b.store.View(t.Context(), func(tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(`SELECT data FROM store_events WHERE kind = ? ORDER BY id`, groupcomm.EventTokenExpired)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var data []byte
			if err := rows.Scan(&data); err != nil {
				return err
			}
			e, err := groupcomm.DecodeEvent(data)
			if err != nil {
				return err
			}
			list = append(list, *e)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Enrolling again needs to be asked for; who had the old key has nothing then.
func TestReplaceNode(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("n")
	b.enroll(dayLong, n)
	old := b.mustAssociate(n)
	subject, _ := b.member(old)
	replace := dayLong
	replace.Replace = true

	// The same key and no fewer rights: nothing ends.
	wider := n
	wider.Scope = groupcomm.Scope{{Group: "g2", Roles: 2}, {Group: "g1", Roles: 2}, {Group: "g1", Roles: 4}}
	if out := b.enroll(replace, wider); out.Replaced != 1 || out.Revoked != 0 || out.Added != 0 {
		t.Errorf("wider: %+v", out)
	}
	b.grant(subject)
	if a := b.ask(askAs(old, map[int64]any{})); len(a.scope) != 2 {
		t.Errorf("new rights: %v", a.scope)
	}

	// Fewer rights: tokens end, the key stays.
	if out := b.enroll(replace, n); out.Revoked != 1 {
		t.Errorf("narrower: %+v", out)
	}
	if _, err := b.Grant(t.Context(), inside(subject)); code(err) != coap.Unauthorized {
		t.Errorf("narrower: %v", err)
	}
	b.member(old)

	// Another key: associations with the old one get nothing.
	other := n
	other.Key = cose.NewSecret([]byte("another key for it"))
	if out := b.enroll(replace, other); out.Revoked != 1 {
		t.Errorf("another key: %+v", out)
	}
	b.refusedAs(old, coap.Unauthorized, invalidClient)
	b.member(b.mustAssociate(other))

	// A disabled node stays disabled.
	if _, err := b.DisableNodes(t.Context(), []string{"n"}); err != nil {
		t.Fatal(err)
	}
	b.enroll(replace, n)
	if _, err := b.associate(n); !errors.Is(err, ErrIdentity) {
		t.Errorf("replacing enables: %v", err)
	}
}

// A configured peer wins over a node that was enrolled before.
func TestShadowedNode(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("n")
	b.enroll(dayLong, n)
	cfg := b.cfg
	configured := Node{"n", cose.NewSecret([]byte("configured key 16")), nil}
	cfg.PSK = append(cfg.PSK, PSKPeer{Identity: []byte("n"), Key: configured.Key, MayToken: false})
	s := New(cfg, Deps{Store: b.store, Groups: testGroups()})
	if err := s.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	b = &bench{Server: s, t: t}
	b.refusedAs(b.mustAssociate(configured), coap.Unauthorized, invalidClient)
	if list, err := b.Nodes(t.Context(), "", 10); err != nil || len(list) != 1 || list[0].State != "shadowed" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if _, err := b.DisableNodes(t.Context(), []string{"n"}); code(err) != coap.Conflict {
		t.Errorf("disable: %v", err)
	}
	if changed, err := b.RemoveNodes(t.Context(), []string{"n"}); err != nil || changed != 1 {
		t.Errorf("remove: %d, %v", changed, err)
	}
}

// A token that is being issued while its node is disabled does not come out.
func TestIssueRacesDisable(t *testing.T) {
	b := newBench(t)
	n := nodeNamed("n")
	b.enroll(dayLong, n)
	c, err := b.client(t.Context(), b.mustAssociate(n))
	if err != nil || c == nil {
		t.Fatal(err)
	}
	if _, err := b.DisableNodes(t.Context(), []string{"n"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.issueByPolicy(t.Context(), c, &tokenRequest{}); code(err) != coap.Unauthorized {
		t.Errorf("got %v", err)
	}
}

// Thousands at once, in one transaction; keys are sealed on disk.
func TestEnrollThousands(t *testing.T) {
	b := newBench(t)
	nodes := make([]Node, 5000)
	for i := range nodes {
		nodes[i] = nodeNamed(fmt.Sprintf("node-%04d", i))
	}
	started := time.Now()
	if out := b.enroll(dayLong, nodes...); out.Added != len(nodes) {
		t.Errorf("%+v", out)
	}
	t.Logf("%d nodes in %v", len(nodes), time.Since(started))
	b.member(b.mustAssociate(nodes[4999]))
	listed := 0
	for after := ""; ; {
		page, err := b.Nodes(t.Context(), after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if listed += len(page); len(page) < 1000 {
			break
		}
		after = page[len(page)-1].Identity
	}
	if listed != len(nodes) {
		t.Errorf("%d are listed", listed)
	}
	err := b.store.View(t.Context(), func(tx *store.Tx) error {
		var sealed []byte
		err := tx.QueryRow(`SELECT sealed FROM ace_nodes WHERE identity = ?`, "node-0000").Scan(&sealed)
		if bytes.Contains(sealed, []byte("key of")) {
			t.Error("a key is stored in clear")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Enroll(t.Context(), make([]Node, maxEnroll+1), dayLong); code(err) != coap.RequestEntityTooLarge {
		t.Errorf("too many at once: %v", err)
	}
}
