package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
)

// TestWhy: one answer says whether a node can read its group, on what that
// stands, and what to do.
func TestWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	d := s.door()
	m := d.join()
	name := m.state().Node
	why := func(args ...string) admin.WhyGroup {
		t.Helper()
		w := decode[admin.WhyInfo](t, run(t, 0, append([]string{"why", name, "--json", "--config", s.config}, args...)...).out.String())
		if w.Node != name || w.GatewayTime.IsZero() || w.ClockHint != "" || len(w.Groups) != 1 || w.Groups[0].Group != "sensors" {
			t.Fatalf("%+v", w)
		}
		return w.Groups[0]
	}
	g := why()
	if g.Reads != "unknown" || g.Member == nil || !g.Token.Valid || g.Token.Expires == nil || len(g.Token.Roles) != 2 ||
		len(g.Associations) != 1 || g.Associations[0].Via != "dtls-psk" || g.Held != nil || g.Delivery == nil || g.Refused != nil {
		t.Errorf("after the join: %+v", g)
	}
	ask(t, m.wire, coap.GET, []string{"ace-group", "nowhere"}, 0, nil) // refused
	version := s.rekey()
	g = why("sensors")
	if g.Reads != "no" || g.Version != version || len(g.Next) == 0 || g.Refused == nil || g.Refused.Code != "4.03" || g.Refused.Path != "/ace-group/nowhere" {
		t.Errorf("after a rekey: %+v, refused %+v", g, g.Refused)
	}
	for range 2 {
		if err := m.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it can read", func() bool {
		g := why()
		return g.Reads == "yes" && *g.Held == version && len(g.Next) == 0
	})
	text := run(t, 0, "why", name, "--config", s.config).out.String()
	for _, want := range []string{name + " can read sensors", "membership", "token", "association", "channel", "poll: confirmed", "refused"} {
		if !strings.Contains(text, want) {
			t.Errorf("why lacks %q:\n%s", want, text)
		}
	}
	// By the identity that an operator gave it, and the other way round.
	if g.Client != d.client.Identity {
		t.Errorf("client %q, want %q", g.Client, d.client.Identity)
	}
	byIdentity := func() *admin.WhyInfo {
		t.Helper()
		return decode[admin.WhyInfo](t, run(t, 0, "why", d.client.Identity, "--json", "--config", s.config).out.String())
	}
	if w := byIdentity(); w.Client == nil || !w.Client.Posted || w.Client.Handshake == nil || w.Client.Handshake.Result != "done" ||
		len(w.Groups) != 1 || w.Groups[0].Node != name || w.Groups[0].Reads != "yes" {
		t.Errorf("by identity: %+v", w)
	}
	run(t, 0, "group", "evict", "sensors", name, "--config", s.config)
	eventually(t, "the audit log tells of the eviction", func() bool { return why("sensors").Departed != nil })
	if g := why(); g.Reads != "no" || g.Member != nil || !g.Departed.Evicted || len(g.Next) == 0 {
		t.Errorf("after the eviction: %+v", g)
	}
	if w := byIdentity(); len(w.Groups) != 1 || w.Groups[0].Departed == nil || w.Groups[0].Node != name {
		t.Errorf("after the eviction, by identity: %+v", w)
	}
	nobody := run(t, 1, "why", "nobody", "--config", s.config)
	if !strings.Contains(nobody.err.String(), "no node") || !strings.Contains(nobody.err.String(), "hint:") {
		t.Errorf("of nobody: %s", &nobody.err)
	}
}

// TestWhyTwin: a node that lost its state and joins again is a second member. What it
// was is told apart from a node that is away, and how to end it; not where one is
// several members that have the newest keys.
func TestWhyTwin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	d := s.door()
	s.write("nodes.csv", fmt.Sprintf("identity,key,groups,roles\nmeter,%x,sensors,requester responder\n", d.client.Key.Bytes()))
	run(t, 0, "node", "enroll", "--csv", filepath.Join(s.dir, "nodes.csv"), "--config", s.config)
	d.client.Identity = "meter"
	before := d.join().state().Node
	again := d.join()
	show := func(m *member, version uint64) {
		t.Helper()
		for range 2 {
			if err := m.Poll(soon(t)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "it shows the version", func() bool { return row(s.show(), m.state().Node).State == "current" && s.show().Version == version })
	}
	show(again, s.rekey())
	why := func() admin.WhyGroup {
		t.Helper()
		return decode[admin.WhyInfo](t, run(t, 0, "why", before, "--json", "--config", s.config).out.String()).Groups[0]
	}
	name := again.state().Node
	if g := why(); g.Reads != "no" || g.Delivery.Twin != name || len(g.Next) != 1 || !strings.Contains(g.Next[0], name) || !strings.Contains(g.Next[0], "`gateway group evict sensors "+before+"`") {
		t.Errorf("%+v, delivery %+v", g, g.Delivery)
	}
	if text := run(t, 0, "group", "status", "sensors", "--config", s.config).out.String(); !strings.Contains(text, "joined again as "+name+"?") {
		t.Errorf("status:\n%s", text)
	}
	third := d.join()
	version := s.rekey()
	show(again, version)
	show(third, version)
	if g := why(); g.Delivery.Twin != "" {
		t.Errorf("of a client that is several members: %+v", g.Delivery)
	}
}

// TestWhyOSCORE: a member over OSCORE has a Security Context for an association.
func TestWhyOSCORE(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m, _ := g.joinOSCORE()
	w, err := g.admin.Why(soon(t), m.state().Node, group)
	if err != nil {
		t.Fatal(err)
	}
	if a := w.Groups[0].Associations; len(a) != 1 || a[0].Via != "oscore" || a[0].Peer == "" || a[0].LastHeard == nil {
		t.Errorf("associations: %+v", a)
	}
}
