package oscore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// observeGet is a request that registers for notifications.
func observeGet(path string) *coap.Message {
	m := get(path)
	m.Options.SetUint(coap.ObserveOption, 0)
	return m
}

// notification is a response within an observation.
func notification(n uint32, payload string) *coap.Message {
	m := content(payload)
	m.Options.SetUint(coap.ObserveOption, n)
	return m
}

// TestGroupManyResponses: many servers answer one request, several times each, and
// each answer is taken once, from each.
//
// draft-ietf-core-oscore-groupcomm-28, Section 5.3.1.
func TestGroupManyResponses(t *testing.T) {
	s := newSite(t, bothModes)
	client := s.member("a", GroupConfig{})
	req, x := ask(t, client, GroupMode, "", get("/x"))
	type answer struct {
		from string
		m    *coap.Message
	}
	var answers []answer
	for _, id := range []string{"b", "c", "d"} {
		server := s.member(id, GroupConfig{})
		_, sx, err := server.UnprotectRequest(nil, req)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			mode := Mode(i % 2)
			answers = append(answers, answer{id, wire(t, must(sx.ProtectIn(t.Context(), nil, mode, content(id))))})
		}
	}
	// The network turns them around.
	for i := len(answers) - 1; i >= 0; i-- {
		a := answers[i]
		plain, who, err := x.Unprotect(nil, a.m)
		if err != nil {
			t.Fatalf("answer %d of %s: %v", i, a.from, err)
		}
		if string(plain.Payload) != a.from || string(who.KID) != a.from || !bytes.Equal(who.Credential, s.keys[a.from].Cred) {
			t.Errorf("answer of %s read as of %q", a.from, who.KID)
		}
		if who.Numbered != (i%3 != 0) {
			t.Errorf("answer %d: numbered is %v", i, who.Numbered)
		}
	}
	for _, a := range answers {
		_, _, err := x.Unprotect(nil, a.m)
		wantErr(t, "replayed answer of "+a.from, err, ErrReplay)
	}
	x.Close()
	_, sx, _ := s.member("e", GroupConfig{}).UnprotectRequest(nil, req)
	_, _, err := x.Unprotect(nil, must(sx.Protect(t.Context(), nil, content("late"))))
	wantErr(t, "after the end", err, ErrReplay)
}

// TestGroupUnicastExchange: a request for one server has one response, and only
// from that server.
func TestGroupUnicastExchange(t *testing.T) {
	s := newSite(t, bothModes)
	client, server, other := s.member("a", GroupConfig{}), s.member("b", GroupConfig{}), s.member("c", GroupConfig{})
	req, x := ask(t, client, PairwiseMode, "b", get("/x"))
	_, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	// The other server answers in group mode as if the request were its own.
	forged := &GroupRequest{
		g: other, mode: GroupMode, context: other.now, sender: other.now.sender, kid: sx.kid, piv: sx.piv,
		recipient: sx.recipient, state: &recipientState{window: new(Window)},
	}
	_, _, err = x.Unprotect(nil, must(forged.Protect(t.Context(), nil, content("mine"))))
	wantErr(t, "other server", err, ErrWrongServer)
	first, second := must(sx.Protect(t.Context(), nil, content("1"))), must(sx.Protect(t.Context(), nil, content("2")))
	if _, _, err := x.Unprotect(nil, first); err != nil {
		t.Fatal(err)
	}
	_, _, err = x.Unprotect(nil, second)
	wantErr(t, "second response", err, ErrReplay)
}

// TestGroupObserveAcrossRekeys: an observation goes on when the group is rekeyed,
// and when the client gets another Sender ID: both sides keep kid and kid context
// of the request. Notifications go forward only.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 5.1, 7.3 and 7.4.
func TestGroupObserveAcrossRekeys(t *testing.T) {
	for _, mode := range []Mode{GroupMode, PairwiseMode} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newSite(t, bothModes)
			client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
			req, x := ask(t, client, mode, "b", observeGet("/x"))
			if req.Code != coap.FETCH {
				t.Errorf("outer code %v", req.Code)
			}
			_, sx, err := server.UnprotectRequest(nil, req)
			if err != nil {
				t.Fatal(err)
			}
			n := uint32(0)
			notify := func(want error) *coap.Message {
				t.Helper()
				n++
				m := wire(t, must(sx.Protect(t.Context(), nil, notification(n, fmt.Sprint(n)))))
				if m.Code != coap.Content {
					t.Errorf("outer code %v", m.Code)
				}
				plain, who, err := x.Unprotect(nil, m)
				wantErr(t, fmt.Sprintf("notification %d", n), err, want)
				if err == nil && (string(plain.Payload) != fmt.Sprint(n) || who.Numbered != (n > 1)) {
					t.Errorf("notification %d: %q, %+v", n, plain.Payload, who)
				}
				return m
			}
			notify(nil)
			old := notify(nil)
			late := wire(t, must(sx.Protect(t.Context(), nil, notification(0, "late"))))
			notify(nil)
			_, _, err = x.Unprotect(nil, late)
			wantErr(t, "overtaken", err, ErrReplay)

			s.rekey(map[string]*Group{"a": client, "b": server})
			m := notify(nil)
			value, _ := m.Options.Get(coap.OSCOREOption)
			opt := must(DecodeOption(value))
			if !bytes.Equal(opt.KIDContext, s.material.Gid) || pivNumber(opt.PIV) != 0 || opt.PIV == nil {
				t.Errorf("first notification after the rekey: %+v", opt)
			}
			notify(nil)
			_, _, err = x.Unprotect(nil, old)
			wantErr(t, "from before the rekey", err, ErrDecrypt)

			// Another Sender ID for the client.
			next := s.sender("f")
			next.Key, next.Cred = s.keys["a"].Key, s.keys["a"].Cred
			s.sender("f")
			if err := client.SetSender(next); err != nil {
				t.Fatal(err)
			}
			notify(nil)
			s.rekey(map[string]*Group{"f": client, "b": server}, "a")
			notify(nil)

			// Section 5.1: who leaves ends its exchanges.
			client.Leave()
			notify(ErrContext)
			s.rekey(map[string]*Group{"f": client, "b": server})
			notify(ErrContext)
		})
	}
}

// TestGroupGrace: messages under the material before the newest are read for a
// short time; nothing is protected with it, and a response to one of them has a
// Partial IV of its own and the new Gid.
func TestGroupGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, bothModes)
		client, server := s.member("a", GroupConfig{Grace: time.Second}), s.member("b", GroupConfig{Grace: time.Second})
		before, x := ask(t, client, GroupMode, "", get("/1"))
		later, lx := ask(t, client, GroupMode, "", get("/2"))
		late, _ := ask(t, client, GroupMode, "", get("/3"))
		pair, px := ask(t, client, PairwiseMode, "b", get("/4"))
		bare := serve(t, server, later, GroupMode, "bare")
		oldGid := s.material.Gid
		s.rekey(map[string]*Group{"b": server})

		_, sx, err := server.UnprotectRequest(nil, before)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sx.Gid(), oldGid) {
			t.Errorf("Gid of the request: %x", sx.Gid())
		}
		resp := wire(t, must(sx.Protect(t.Context(), nil, content("x"))))
		value, _ := resp.Options.Get(coap.OSCOREOption)
		if o := must(DecodeOption(value)); o.PIV == nil || !bytes.Equal(o.KIDContext, s.material.Gid) || string(o.KID) != "b" {
			t.Errorf("response under new material: %+v", o)
		}
		_, _, err = x.Unprotect(nil, resp)
		wantErr(t, "the client has not followed", err, ErrContext)
		s.t = t
		if err := client.Install(s.material, s.sender("a"), nil, false); err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.Unprotect(nil, resp); err != nil {
			t.Error(err)
		}
		if _, _, err := lx.Unprotect(nil, bare); err != nil {
			t.Errorf("response under the old material, within the grace: %v", err)
		}
		_, psx, err := server.UnprotectRequest(nil, pair)
		if err != nil {
			t.Fatal(err)
		}
		if _, who, err := px.Unprotect(nil, wire(t, must(psx.Protect(t.Context(), nil, content("p"))))); err != nil || !who.Numbered {
			t.Errorf("pairwise response under new material: %v", err)
		}
		req, _ := ask(t, client, GroupMode, "", get("/5"))
		if value, _ := req.Options.Get(coap.OSCOREOption); !bytes.Contains(value, s.material.Gid) {
			t.Error("protected with the old material")
		}
		time.Sleep(time.Second)
		_, _, err = server.UnprotectRequest(nil, late)
		wantErr(t, "after the grace", err, ErrContext)
	})
}

// TestGroupLeaver: who left reads nothing that is sent after the rekey, and nothing
// of it is read.
func TestGroupLeaver(t *testing.T) {
	s := newSite(t, bothModes)
	a, b, leaver := s.member("a", GroupConfig{}), s.member("b", GroupConfig{}), s.member("c", GroupConfig{})
	req, _ := ask(t, leaver, GroupMode, "", get("/x"))
	if _, _, err := b.UnprotectRequest(nil, req); err != nil {
		t.Fatal(err)
	}
	s.rekey(map[string]*Group{"a": a, "b": b}, "c")
	req, _ = ask(t, a, GroupMode, "", get("/x"))
	_, _, err := leaver.UnprotectRequest(nil, req)
	wantErr(t, "leaver reads", err, ErrContext)
	req, _ = ask(t, leaver, GroupMode, "", get("/x"))
	_, _, err = b.UnprotectRequest(nil, req)
	wantErr(t, "leaver is read", err, ErrContext)
	// Not even with the new Gid on it: the credential of a stale ID is gone.
	value, _ := req.Options.Get(coap.OSCOREOption)
	o := must(DecodeOption(value))
	o.KIDContext = s.material.Gid
	req.Options.Set(coap.OSCOREOption, must(o.Append(nil)))
	_, _, err = b.UnprotectRequest(nil, req)
	wantErr(t, "leaver under the new Gid", err, ErrUnknownPeer)
}

// TestGroupTakeOver: credentials of members that stay are known after a rekey,
// those of stale Sender IDs are not, and with all nothing is.
func TestGroupTakeOver(t *testing.T) {
	s := newSite(t, bothModes)
	b := s.member("b", GroupConfig{})
	members := map[string]*Group{"b": b}
	for _, id := range []string{"a", "c", "d"} {
		members[id] = s.member(id, GroupConfig{})
		req, _ := ask(t, members[id], GroupMode, "", get("/x"))
		if _, _, err := b.UnprotectRequest(nil, req); err != nil {
			t.Fatal(err)
		}
	}
	check := func(known string) {
		t.Helper()
		clear(s.creds.creds)
		for _, id := range []string{"a", "c", "d"} {
			req, _ := ask(t, members[id], GroupMode, "", get("/x"))
			_, _, err := b.UnprotectRequest(nil, req)
			if want := bytes.Contains([]byte(known), []byte(id)); want == (err != nil) {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
	s.rekey(members, "c")
	check("ad")
	s.rekey(members)
	check("ad")
	s.rekey(map[string]*Group{"a": members["a"], "c": members["c"], "d": members["d"]})
	if err := b.Install(s.material, s.sender("b"), nil, true); err != nil {
		t.Fatal(err)
	}
	check("")
}

// TestGroupWindowAfterDeletion: a Recipient Context that was deleted comes back with
// an invalid Replay Window; the client proves freshness by echoing a challenge, by
// unicast and in pairwise mode. A rekey makes windows valid again.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1.2 and 9.
func TestGroupWindowAfterDeletion(t *testing.T) {
	s := newSite(t, bothModes)
	server := s.member("s", GroupConfig{MaxRecipients: 2})
	var clients []*Group
	for i := range 3 {
		c := s.member(fmt.Sprint(i), GroupConfig{})
		clients = append(clients, c)
		req, _ := ask(t, c, GroupMode, "", get("/x"))
		if _, _, err := server.UnprotectRequest(nil, req); err != nil {
			t.Fatal(err)
		}
	}
	// Client 0 was used longest ago, so it is gone.
	client := clients[0]
	req, x := ask(t, client, GroupMode, "", get("/x"))
	plain, sx, err := server.UnprotectRequest(nil, req)
	wantErr(t, "invalid window", err, ErrNotFresh)
	if plain != nil {
		t.Error("the request was delivered")
	}
	if server.ErrorResponse(err, false) != nil {
		t.Error("an unprotected answer to a challenge")
	}
	resp := wire(t, must(sx.Challenge(t.Context(), nil)))
	value, _ := resp.Options.Get(coap.OSCOREOption)
	if o := must(DecodeOption(value)); o.PIV == nil {
		t.Error("a challenge without a Partial IV of its own")
	}
	challenge, who, err := x.Unprotect(nil, resp)
	if err != nil {
		t.Fatal(err)
	}
	echo, ok := challenge.Options.Get(coap.Echo)
	if challenge.Code != coap.Unauthorized || !ok || len(challenge.Payload) != 0 || len(challenge.Options) != 1 {
		t.Errorf("challenge: %+v", challenge)
	}
	again := get("/x")
	again.Options.Set(coap.Echo, echo)
	if _, _, err := client.ProtectRequest(t.Context(), nil, again); err == nil {
		t.Error("an echo in group mode, where the group has the pairwise mode")
	}
	// A wrong value is another challenge, and the right one still counts.
	wrong := get("/x")
	wrong.Options.Set(coap.Echo, []byte("wrong"))
	req, _ = ask(t, client, PairwiseMode, string(who.KID), wrong)
	_, _, err = server.UnprotectRequest(nil, req)
	wantErr(t, "wrong echo", err, ErrNotFresh)
	older, _ := ask(t, client, PairwiseMode, string(who.KID), get("/older"))
	req, x = ask(t, client, PairwiseMode, string(who.KID), again)
	if plain, sx, err = server.UnprotectRequest(nil, req); err != nil || plain.Code != coap.GET {
		t.Fatal(err)
	}
	if _, _, err := x.Unprotect(nil, must(sx.Protect(t.Context(), nil, content("x")))); err != nil {
		t.Error(err)
	}
	for what, m := range map[string]*coap.Message{"replay": req, "before the echo": older} {
		_, _, err = server.UnprotectRequest(nil, m)
		wantErr(t, what, err, ErrReplay)
	}
	// Values belong to a Gid: after a rekey nothing is left, and windows are valid.
	server.Forget([]byte("1"))
	req, _ = ask(t, clients[1], GroupMode, "", get("/x"))
	_, _, err = server.UnprotectRequest(nil, req)
	wantErr(t, "forgotten", err, ErrNotFresh)
	s.rekey(map[string]*Group{"s": server, "0": client, "1": clients[1]})
	for _, c := range clients[:2] {
		req, _ = ask(t, c, GroupMode, "", get("/x"))
		if _, _, err := server.UnprotectRequest(nil, req); err != nil {
			t.Error(err)
		}
	}
}

// TestGroupEchoEnds: a challenge is good for a minute.
func TestGroupEchoEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, GroupAlgorithms{GroupEnc: cose.AlgAESCCM16_64_128, Sign: cose.AlgEdDSA})
		client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
		req, _ := ask(t, client, GroupMode, "", get("/x"))
		if _, _, err := server.UnprotectRequest(nil, req); err != nil {
			t.Fatal(err)
		}
		server.Forget([]byte("a"))
		for _, wait := range []time.Duration{groupEchoLife + time.Second, 0} {
			req, x := ask(t, client, GroupMode, "", get("/x"))
			_, sx, err := server.UnprotectRequest(nil, req)
			wantErr(t, "invalid window", err, ErrNotFresh)
			challenge, _, err := x.Unprotect(nil, must(sx.Challenge(t.Context(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			echo, _ := challenge.Options.Get(coap.Echo)
			time.Sleep(wait)
			// Without a pairwise mode the group mode is all there is.
			again := get("/x")
			again.Options.Set(coap.Echo, echo)
			req, _ = ask(t, client, GroupMode, "", again)
			_, _, err = server.UnprotectRequest(nil, req)
			if (err != nil) != (wait > 0) {
				t.Errorf("after %v: %v", wait, err)
			}
		}
	})
}

// TestGroupNewSenderID: a new Sender ID begins at 0 with other keys, an old one does
// not come back, and a server with a new one tells its clients.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.3.1 and 7.3.
func TestGroupNewSenderID(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	req, x := ask(t, client, PairwiseMode, "b", get("/x"))
	if _, _, err := x.Unprotect(nil, serve(t, server, req, PairwiseMode, "1")); err != nil {
		t.Fatal(err)
	}
	req, x = ask(t, client, PairwiseMode, "b", get("/x"))
	_, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	before := s.keys["b"]
	s.keys["B"] = &GroupSender{ID: []byte("B"), Key: before.Key, Cred: before.Cred}
	if err := server.SetSender(s.sender("B")); err != nil {
		t.Fatal(err)
	}
	s.creds.forget(s.material.Gid, "b")
	option := func(m *coap.Message) Option {
		value, _ := m.Options.Get(coap.OSCOREOption)
		return must(DecodeOption(value))
	}
	resp := wire(t, must(sx.Protect(t.Context(), nil, content("2"))))
	if o := option(resp); o.PIV == nil || string(o.KID) != "B" {
		t.Errorf("first response with the new Sender ID: %+v", o)
	}
	if _, who, err := x.Unprotect(nil, resp); err != nil || string(who.KID) != "B" {
		t.Errorf("new Sender ID: %v", err)
	}
	// The client may go on to write to the old one: only the credential counts.
	req, x = ask(t, client, PairwiseMode, "B", get("/x"))
	resp = serve(t, server, req, PairwiseMode, "3")
	if o := option(resp); o.KID != nil || o.PIV != nil {
		t.Errorf("once told: %+v", o)
	}
	if _, _, err := x.Unprotect(nil, resp); err != nil {
		t.Error(err)
	}
	wantErr(t, "back to the old Sender ID", server.SetSender(before), ErrReused)

	// Another credential under the same Sender ID: the numbers go on.
	other := must(cose.GenerateKey(cose.AlgEdDSA))
	used := server.now.sender.seq.Used()
	err = server.SetSender(&GroupSender{ID: []byte("B"), Key: other, Cred: cose.EncodeCCS("new", other)})
	if err != nil {
		t.Fatal(err)
	}
	if server.now.sender.seq.Used() != used {
		t.Error("sequence numbers began anew under the same Sender ID")
	}
	// Others learn it when a message does not verify with what they have.
	s.creds.set(s.material.Gid, []byte("B"), cose.EncodeCCS("new", other))
	req, x = ask(t, client, GroupMode, "", get("/x"))
	if _, who, err := x.Unprotect(nil, serve(t, server, req, GroupMode, "4")); err != nil || !bytes.Equal(who.Credential, cose.EncodeCCS("new", other)) {
		t.Errorf("replaced credential: %v", err)
	}
}

// TestGroupServerChangesIDWithinExchange: a server that changes its Sender ID cannot
// be ordered any more within an exchange.
//
// draft-ietf-core-oscore-groupcomm-28, Section 7.4.
func TestGroupServerChangesIDWithinExchange(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	req, x := ask(t, client, GroupMode, "", observeGet("/x"))
	_, sx, err := server.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.Unprotect(nil, must(sx.Protect(t.Context(), nil, notification(1, "1")))); err != nil {
		t.Fatal(err)
	}
	s.keys["B"] = &GroupSender{ID: []byte("B"), Key: s.keys["b"].Key, Cred: s.keys["b"].Cred}
	if err := server.SetSender(s.sender("B")); err != nil {
		t.Fatal(err)
	}
	_, _, err = x.Unprotect(nil, must(sx.Protect(t.Context(), nil, notification(2, "2"))))
	wantErr(t, "kid2 is not kid1", err, ErrWrongServer)
}

// TestGroupReinstall: keys that were used once are never begun anew.
func TestGroupReinstall(t *testing.T) {
	s := newSite(t, bothModes)
	g := s.member("a", GroupConfig{})
	first := s.material
	if err := g.Install(first, s.sender("a"), nil, false); err == nil {
		t.Error("installed twice")
	}
	s.rekey(map[string]*Group{"a": g})
	wantErr(t, "older material", g.Install(first, s.keys["a"], nil, false), ErrReused)
	g.Leave()
	wantErr(t, "after leaving", g.Install(first, s.keys["a"], nil, false), ErrReused)
	// With another Sender ID it is another Sender Context.
	s.material = first
	if err := g.Install(first, s.sender("n"), nil, false); err != nil {
		t.Error(err)
	}
}

// ledger is a durable store of sequence numbers.
type ledger struct {
	mu   sync.Mutex
	upTo map[string]uint64
	fail error
}

func (l *ledger) Open(name string) (uint64, Reserver, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upTo[name], ledgerEntry{l, name}, l.fail
}

type ledgerEntry struct {
	l    *ledger
	name string
}

func (e ledgerEntry) Reserve(_ context.Context, upTo uint64) error {
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	if e.l.fail != nil {
		return e.l.fail
	}
	e.l.upTo[e.name] = upTo
	return nil
}

// TestGroupRestart: a Sender Context that was used before a crash is never used
// again, wherever the crash was; a new Sender ID goes on at once.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.1.1.
func TestGroupRestart(t *testing.T) {
	s := newSite(t, bothModes)
	l := &ledger{upTo: map[string]uint64{}}
	start := func(id string) (*Group, error) {
		g := must(NewGroup(GroupConfig{Creds: s.creds, Sequences: l}))
		return g, g.Install(s.material, s.sender(id), nil, false)
	}
	if _, err := start("a"); err != nil {
		t.Fatal(err)
	}
	// Nothing left yet, so nothing is lost.
	g, err := start("a")
	if err != nil {
		t.Fatal(err)
	}
	l.fail = errors.New("disk full")
	_, _, err = g.ProtectRequest(t.Context(), nil, get("/x"))
	wantErr(t, "what is not durable does not leave", err, l.fail)
	l.fail = nil
	if _, _, err = g.ProtectRequest(t.Context(), nil, get("/x")); err != nil {
		t.Fatal(err)
	}
	_, err = start("a")
	wantErr(t, "restart", err, ErrContextLost)
	g, err = start("b")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.upTo) != 1 {
		t.Error("reserved before use")
	}
	l.fail = errors.New("disk full")
	wantErr(t, "store", g.SetSender(s.sender("c")), l.fail)
	l.fail = nil
	if err := g.SetSender(s.sender("c")); err != nil {
		t.Error(err)
	}
	for name := range l.upTo {
		if len(name) != 32 {
			t.Errorf("name %q", name)
		}
	}
}

// TestGroupExhausted: the end of the sequence numbers is an error that says what to
// do, and a new Sender ID does it.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.2.
func TestGroupExhausted(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{}), s.member("b", GroupConfig{})
	client.now.sender.seq = must(NewSequence(SequenceConfig{Start: maxSequence - 1}))
	last, _ := ask(t, client, GroupMode, "", get("/x"))
	if _, _, err := server.UnprotectRequest(nil, last); err != nil {
		t.Fatal(err)
	}
	_, _, err := client.ProtectRequest(t.Context(), nil, get("/x"))
	wantErr(t, "after the last", err, ErrExhausted)
	if !bytes.Contains([]byte(err.Error()), []byte("new Sender ID")) {
		t.Errorf("error %q", err)
	}
	next := &GroupSender{ID: []byte("n"), Key: s.keys["a"].Key, Cred: s.keys["a"].Cred}
	s.keys["n"] = next
	if err := client.SetSender(s.sender("n")); err != nil {
		t.Fatal(err)
	}
	req, _ := ask(t, client, GroupMode, "", get("/x"))
	if _, _, err := server.UnprotectRequest(nil, req); err != nil {
		t.Error(err)
	}
}

// TestGroupConcurrent: one member in many goroutines, while it is rekeyed.
func TestGroupConcurrent(t *testing.T) {
	s := newSite(t, bothModes)
	client, server := s.member("a", GroupConfig{Grace: time.Hour}), s.member("b", GroupConfig{Grace: time.Hour})
	var wg sync.WaitGroup
	var mu sync.Mutex
	nonces := map[string]bool{}
	for i := range 4 {
		wg.Go(func() {
			for j := range 20 {
				mode := Mode((i + j) % 2)
				var m *coap.Message
				var err error
				if mode == GroupMode {
					m, _, err = client.ProtectRequest(t.Context(), nil, get("/x"))
				} else {
					m, _, err = client.ProtectRequestTo(t.Context(), nil, []byte("b"), get("/x"))
				}
				if err != nil {
					t.Error(err)
					return
				}
				value, _ := m.Options.Get(coap.OSCOREOption)
				value = append([]byte{value[0] &^ flagGroup}, value[1:]...)
				mu.Lock()
				if nonces[string(value)] {
					t.Errorf("%x twice", value)
				}
				nonces[string(value)] = true
				mu.Unlock()
				_, x, err := server.UnprotectRequest(nil, wire(t, m))
				if err != nil {
					continue // sent before, read after two rekeys, or not yet rekeyed
				}
				if _, err := x.Protect(t.Context(), nil, content("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		s.rekey(map[string]*Group{"a": client, "b": server})
	}
	wg.Wait()
}
