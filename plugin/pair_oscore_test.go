//go:build postgres

package plugin

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// TestPairOSCORE: a request that one gateway accepted is not served by the other,
// whichever owns the context, and no nonce protects two messages.
func TestPairOSCORE(t *testing.T) {
	p := newPair(t, settings)
	one, _ := p.start(0, nil)
	p.share()
	two, _ := p.start(1, nil)
	gates := []*Gateway{one, two}
	var links []*coaptest.Link
	for i, g := range gates {
		l := coaptest.NewLink(g.server, coap.Peer{Link: coap.LinkID(fmt.Sprint("plain ", i)), Via: coap.Plain}, coaptest.Options{})
		t.Cleanup(l.Close)
		links = append(links, l)
	}
	issued, err := accessOf(one).Issue(t.Context(), ace.IssueRequest{
		Profile: ace.ProfileOSCORE, Lifetime: time.Hour, Scope: groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester}},
	})
	if err != nil {
		t.Fatal(err)
	}
	post := &coap.Request{Code: coap.POST}
	post.Options.SetPath("authz-info")
	post.Options.SetContentFormat(coap.ACE)
	transfer := groupcomm.TokenTransfer{AccessToken: issued.Token, Nonce1: []byte("nonce 11"), ID1: []byte{7}}
	post.Payload = transfer.Encode()
	resp, err := links[1].Do(t.Context(), post)
	if err != nil || resp.Code != coap.Created {
		t.Fatalf("%+v, %v", resp, err)
	}
	answer, err := groupcomm.DecodeTokenTransferResponse(resp.Payload)
	if err != nil {
		t.Fatal(err)
	}
	setup := oscore.Setup{Material: *issued.Material, Nonce1: transfer.Nonce1, ID1: transfer.ID1, Nonce2: answer.Nonce2, ID2: answer.ID2}
	c, err := oscore.New(setup.ClientParams())
	if err != nil {
		t.Fatal(err)
	}

	nonces := map[string][]byte{}
	type caught struct {
		m   *coap.Message
		ex  oscore.Exchange
		piv string
	}
	var past []caught
	// send gives what was inside of the answer; nil: it was not protected, or none
	// for this client.
	send := func(i int, x caught) *coap.Message {
		t.Helper()
		r, err := links[i].Exchange(t.Context(), x.m.Clone())
		if err != nil {
			t.Fatal(err)
		}
		v, ok := r.Options.Get(coap.OSCOREOption)
		if !ok {
			if r.Code != coap.Unauthorized {
				t.Errorf("not protected: %v %s", r.Code, r.Payload)
			}
			return nil
		}
		o, err := oscore.DecodeOption(v)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("own %x", o.PIV)
		if o.PIV == nil {
			key = "of the request " + x.piv
		}
		if before, ok := nonces[key]; ok && !bytes.Equal(before, r.Payload) {
			t.Errorf("nonce %s protects two messages", key)
		}
		nonces[key] = bytes.Clone(r.Payload)
		ex := x.ex
		inner, err := c.UnprotectResponse(nil, &ex, r)
		if err != nil {
			t.Fatal(err)
		}
		return inner.Clone()
	}
	protect := func(m *coap.Message) caught {
		t.Helper()
		p, ex, err := c.ProtectRequest(t.Context(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		x := caught{m: p.Clone(), ex: ex, piv: fmt.Sprintf("%x", ex.PIV())}
		past = append(past, x)
		return x
	}
	ask := func(i int) (challenged bool) {
		t.Helper()
		m := &coap.Message{Code: coap.GET}
		m.Options.SetPath("ace-group", "sensors", "num")
		r := send(i, protect(m))
		if r == nil {
			t.Fatal("not protected")
		}
		if echo, ok := r.Options.Get(coap.Echo); ok && r.Code == coap.Unauthorized {
			challenged = true
			m.Options.Set(coap.Echo, echo)
			if r = send(i, protect(m)); r == nil {
				t.Fatal("not protected")
			}
		}
		if r.Code != coap.Forbidden { // it is no member
			t.Fatalf("gateway %d: %v, challenged %v", i, r.Code, challenged)
		}
		return challenged
	}
	for turn, x := range []struct {
		gate       int
		challenged bool
	}{{0, false}, {0, false}, {1, true}, {1, false}, {0, true}, {0, false}, {1, true}, {0, true}} {
		if got := ask(x.gate); got != x.challenged {
			t.Errorf("turn %d: challenged %v", turn, got)
		}
	}
	// The first takes it back after each.
	for i, x := range past {
		for gate := range gates {
			if r := send(gate, x); r != nil && (r.Code != coap.Unauthorized || !r.Options.Has(coap.Echo)) {
				t.Errorf("request %d was served again by gateway %d: %v", i, gate, r.Code)
			}
		}
	}
	if ask(0); ask(0) {
		t.Error("challenged without a reason")
	}
	// Revoked at one, it is of no use at the other.
	if err := accessOf(one).Revoke(t.Context(), cwt.Hash(issued.Token)); err != nil {
		t.Fatal(err)
	}
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath("ace-group", "sensors", "num")
	for gate := range gates {
		if r := send(gate, protect(m)); r != nil {
			t.Errorf("gateway %d serves a context whose token was revoked: %v", gate, r.Code)
		}
	}
}
