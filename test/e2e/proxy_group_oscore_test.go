package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/peers"
)

// setUp makes what the two ends of a new Security Context with the gateway share.
func (d *door) setUp() oscore.Params {
	d.t.Helper()
	tr, err := node.DialUDP(soon(d.t), d.coap)
	if err != nil {
		d.t.Fatal(err)
	}
	s, _, err := node.SetUpOSCORE(soon(d.t), tr, d.oscoreToken())
	if err = errors.Join(err, tr.Close()); err != nil {
		d.t.Fatal(err)
	}
	return s.ClientParams()
}

// traffic joins n members, which do not follow the group.
func (d *door) traffic(n int) (all []*node.Traffic) {
	d.t.Helper()
	for range n {
		tr, err := node.NewTraffic(d.join().Member, node.TrafficConfig{})
		if err == nil {
			err = tr.Sync()
		}
		if err != nil {
			d.t.Fatal(err)
		}
		all = append(all, tr)
	}
	return all
}

// TestProxiedGroupOSCORE: a node that speaks OSCORE with the gateway over plain UDP, asks
// a group through it. Where it leads is protected on the way to the gateway, every
// response comes back protected, and what is inside is Group OSCORE from end to end: the
// gateway passes it on as it is (draft-ietf-core-groupcomm-proxy-07, Section 4, REQ2 and
// REQ3; draft-ietf-core-oscore-capable-proxies-07, Section 2).
func TestProxiedGroupOSCORE(t *testing.T) {
	t.Parallel()
	g := newGrouped(t)
	d := g.s.door()
	params := d.setUp()
	params.Hop = true
	hop, err := oscore.New(params)
	if err != nil {
		t.Fatal(err)
	}
	client := peers.DialUDP(t, d.coap)
	protect := func(m *coap.Message, token string) oscore.Exchange {
		p, ex, err := hop.ProtectRequest(t.Context(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range p.Options {
			if o.ID != coap.OSCOREOption && o.ID != coap.ObserveOption {
				t.Errorf("shows on the way: %v", p.Options)
			}
		}
		p.Type, p.Token = coap.Confirmable, []byte(token)
		client.Send(p.Clone())
		return ex
	}
	receive := func(ex *oscore.Exchange, token string) *coap.Message {
		m := client.Receive("a response to "+token, func(m *coap.Message) bool { return m.Code != coap.Empty && string(m.Token) == token })
		if m.Type == coap.Confirmable {
			client.Send(&coap.Message{Type: coap.Acknowledgement, ID: m.ID})
		}
		inner, err := hop.UnprotectResponse(nil, ex, m)
		if err != nil {
			t.Fatalf("%s: %v: %v %v", token, err, m.Code, m.Options)
		}
		return inner.Clone()
	}
	over := func(what string) {
		g.over(what)
		eventually(t, "nothing is kept of the request", func() bool { return metric(t, g.s, "groupgate_oscore_answering") == 0 })
	}

	// What the group says in clear.
	ex := protect(g.request("", 60), "all")
	var got []string
	for range 3 {
		m := receive(&ex, "all")
		if m.Code != coap.Content || !m.Options.Has(replyFrom) {
			t.Errorf("%v %v", m.Code, m.Options)
		}
		got = append(got, string(m.Payload))
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[lamp 0 is on lamp 1 is on lamp 2 is on]" {
		t.Errorf("%q", got)
	}
	if n := metric(t, g.s, "groupgate_oscore_answering"); n != 1 {
		t.Errorf("%v requests with responses to come", n)
	}
	stop := &coap.Message{Code: coap.GET}
	stop.Options.SetUint(multicastTimeout, 0)
	protect(stop, "all")
	over("an Early Stop")

	// Observed, and ended by a Reset.
	watch := g.request("", 1)
	watch.Options.SetUint(coap.ObserveOption, 0)
	ex = protect(watch, "watch")
	for range 3 {
		receive(&ex, "watch")
	}
	registered := g.newest()
	g.over("the time of the registration")
	var last *coap.Message
	for i := range 3 {
		g.servers.Say(i, g.state(registered, i, 2, "off"))
		last = client.Receive("a notification", func(m *coap.Message) bool { return string(m.Token) == "watch" })
		if m, err := hop.UnprotectResponse(nil, &ex, last); err != nil || string(m.Payload) != fmt.Sprintf("lamp %d is off", i) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	client.Send(&coap.Message{Type: coap.Reset, ID: last.ID})
	over("a Reset")

	// Group OSCORE inside.
	all := d.traffic(4)
	sender, members := all[3], all[:3]
	g.mu.Lock()
	g.reply = func(i int, m *coap.Message) *coap.Message {
		inner, x, err := members[i].ReadRequest(t.Context(), m)
		if err != nil {
			t.Errorf("member %d: %v", i, err)
			return &coap.Message{Type: coap.NonConfirmable, ID: uint16(i), Code: coap.BadRequest, Token: m.Token}
		}
		r := &coap.Message{Code: coap.Content, Payload: fmt.Appendf(nil, "member %d has /%s", i, inner.Options.Path())}
		p, err := x.Protect(t.Context(), nil, r)
		if err != nil {
			t.Errorf("member %d: %v", i, err)
			return nil
		}
		p = p.Clone()
		p.Type, p.ID, p.Token = coap.NonConfirmable, uint16(i), m.Token
		return p
	}
	g.mu.Unlock()
	ask := &coap.Message{Code: coap.GET}
	ask.Options.SetPath("lamp")
	m, x, err := sender.Request(t.Context(), nil, ask)
	if err != nil {
		t.Fatal(err)
	}
	m = m.Clone()
	m.Options.AddString(coap.ProxyUri, "coap://"+g.servers.At.String())
	m.Options.SetUint(multicastTimeout, 60)
	ex = protect(m, "secret")
	got = nil
	for range 3 {
		r := receive(&ex, "secret")
		if !r.Options.Has(replyFrom) {
			t.Errorf("%v", r.Options)
		}
		inner, _, err := sender.ReadResponse(t.Context(), x, r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(inner.Payload))
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[member 0 has /[lamp] member 1 has /[lamp] member 2 has /[lamp]]" {
		t.Errorf("%q", got)
	}

	// The gateway removes one layer for itself.
	second, err := oscore.New(d.setUp())
	if err != nil {
		t.Fatal(err)
	}
	own := &coap.Message{Code: coap.GET}
	own.Options.SetPath("ace-group", group)
	p, _, err := second.ProtectRequest(t.Context(), nil, own)
	if err != nil {
		t.Fatal(err)
	}
	ex = protect(p.Clone(), "twice")
	if r := receive(&ex, "twice"); r.Code != coap.Unauthorized || len(r.Payload) == 0 {
		t.Errorf("two layers for the gateway: %v %q", r.Code, r.Payload)
	}
}
