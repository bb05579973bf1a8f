package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

func newLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	return logOn(t, cfg, storetest.Open(t, Migrations()))
}

func logOn(t *testing.T, cfg Config, st *store.Store) *Log {
	t.Helper()
	l := New(cfg, Deps{Store: st})
	if err := l.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Log) all(t *testing.T, q Query) []Record {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 10_000
	}
	list, err := l.Records(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func joined() groupcomm.Event {
	return groupcomm.Event{
		Group: "g", Node: "n0de", Version: 3, Subject: coap.Subject{Kind: coap.SubjectPoP, ID: "subject"},
		SenderID: groupcomm.SenderID{}, Roles: 6, Addr: "192.0.2.7:5684",
	}
}

func emit(t *testing.T, st *store.Store, kind string, e groupcomm.Event) {
	t.Helper()
	if err := st.Update(t.Context(), func(tx *store.Tx) error { return tx.Emit(kind, e.Group, e.Encode()) }); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, look func() bool) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.NewTimer(30*time.Second)
	defer tick.Stop()
	defer late.Stop()
	for !look() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// What happened is in the log once, in its order, after a power cut too.
func TestEvents(t *testing.T) {
	st := storetest.Open(t, Migrations())
	l := logOn(t, Config{}, st)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- l.Run(ctx) }()
	emit(t, st, groupcomm.EventJoined, joined())
	emit(t, st, groupcomm.EventTokenStored, groupcomm.Event{}) // none of ours
	emit(t, st, groupcomm.EventTokenExpired, groupcomm.Event{Expires: 7})
	emit(t, st, groupcomm.EventTokenExpired, groupcomm.Event{Expires: 7, Reason: "revoked"})
	emit(t, st, groupcomm.EventRekeyed, groupcomm.Event{Group: "g", Version: 4, Gid: groupcomm.Gid{0xab}, Reason: "leave"})
	l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "g", Reason: "disk is full"})
	eventually(t, "four records", func() bool { return len(l.all(t, Query{})) == 4 })
	l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "g", Reason: "the last words"})
	cancel()
	if err := <-over; err != nil {
		t.Errorf("Run: %v", err)
	}
	list := l.all(t, Query{})
	if len(list) != 5 || list[4].Kind != groupcomm.NoteRekeyFailed {
		t.Errorf("what was pending at the end is lost: %d records", len(list))
	}

	kinds := map[string]Record{}
	for _, r := range l.all(t, Query{Full: true}) {
		kinds[r.Kind] = r
	}
	j := kinds[groupcomm.EventJoined]
	if j.Group != "g" || j.Node != "n0de" || j.Peer != "192.0.2.7:5684" || j.Subject != "pop:7375626a656374" || j.SenderID == nil || *j.SenderID != "" ||
		strings.Join(j.Roles, ",") != "requester,responder" || *j.Version != 3 || time.Since(j.At) > time.Minute {
		t.Errorf("join: %+v", j)
	}
	if r := kinds[groupcomm.EventRekeyed]; r.Gid != "ab" || r.Reason != "leave" || *r.Version != 4 || r.SenderID != nil {
		t.Errorf("rekey: %+v", r)
	}
	if r := kinds[KindRevoked]; r.Reason != "revoked" {
		t.Errorf("revocation: %+v", r)
	}

	// Events that come again after a crash.
	crashed := storetest.Crash(t, st, Migrations())
	l = logOn(t, Config{}, crashed)
	before := len(l.all(t, Query{}))
	e := joined()
	again := []store.Event{{ID: 1, At: time.Now(), Kind: groupcomm.EventJoined, Data: e.Encode()}, {ID: 1000, At: time.Now(), Kind: groupcomm.EventLeft, Data: e.Encode()}}
	for range 2 {
		if err := l.writeEvents(t.Context(), again); err != nil {
			t.Fatal(err)
		}
	}
	if list := l.all(t, Query{}); len(list) != before+1 || list[before].Kind != groupcomm.EventLeft || list[before].ID <= list[before-1].ID {
		t.Errorf("%d records before, %d after", before, len(list))
	}
}

// Personal fields are pseudonyms: equal for equal values, here only. Who wants
// to see more is recorded.
func TestRedaction(t *testing.T) {
	st := storetest.Open(t, Migrations())
	l := logOn(t, Config{}, st)
	first, second := joined(), joined()
	second.Addr = "192.0.2.7:9999" // the same node, associated anew
	third := joined()
	third.Node, third.SenderID, third.Addr, third.Subject.ID = "other", groupcomm.SenderID{1}, "192.0.2.8:1", "somebody"
	for i, e := range []groupcomm.Event{first, second, third} {
		if err := l.writeEvents(t.Context(), []store.Event{{ID: int64(i + 1), At: time.Now(), Kind: groupcomm.EventJoined, Data: e.Encode()}}); err != nil {
			t.Fatal(err)
		}
	}
	req := &coap.Request{Code: coap.POST, Peer: coap.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:1"), Subject: first.Subject}}
	req.Options.SetPath("ace-group", "g", "nodes", "n0de", "n0de")
	l.Refused(req, &coap.Response{Code: coap.Forbidden, Payload: []byte("n0de at 192.0.2.7 may not")})
	l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "g", Reason: "n0de is gone"})
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}

	redacted := l.all(t, Query{})
	text := string(must(json.Marshal(redacted)))
	for _, r := range redacted {
		text += r.Group + r.Node + r.Peer + r.Subject
	}
	for _, secret := range []string{"n0de", "192.0.2", "7375626a656374", "other"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is told: %s", secret, text)
		}
	}
	a, b, c, refusal := redacted[0], redacted[1], redacted[2], redacted[3]
	if a.Node != b.Node || a.Peer != b.Peer || a.Subject != b.Subject || *a.SenderID != *b.SenderID {
		t.Errorf("one node has two names: %+v, %+v", a, b)
	}
	if a.Node == c.Node || a.Peer == c.Peer || a.Subject == c.Subject || *a.SenderID == *c.SenderID || !strings.HasPrefix(a.Node, "~") || len(a.Node) != 13 {
		t.Errorf("two nodes have one name: %+v, %+v", a, c)
	}
	if refusal.Node != a.Node || refusal.Peer != a.Peer || refusal.Subject != a.Subject {
		t.Errorf("a refusal has another name: %+v", refusal)
	}
	if again := logOn(t, Config{}, storetest.Crash(t, st, Migrations())).all(t, Query{}); again[0].Node != a.Node {
		t.Error("another name after a restart")
	}
	elsewhere := newLog(t, Config{})
	if elsewhere.pseudonym("node", "g/n0de") == a.Node {
		t.Error("the same name in another installation")
	}

	full := l.all(t, Query{Full: true, Group: "g", Kinds: []string{groupcomm.EventJoined, KindRefused}})
	if len(full) != 4 || full[0].Node != "n0de" || full[3].Reason != "n0de at 192.0.2.7 may not" || full[3].Path != "/ace-group/{group}/nodes/{node}/{…}" {
		t.Errorf("full: %+v", full)
	}
	list := l.all(t, Query{Kinds: []string{KindFullRead}})
	if len(list) != 1 || list[0].Reason != "group g, kinds group.joined,request.refused" {
		t.Errorf("reading of full records: %+v", list)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What a peer chooses does not get into the log, whatever its length.
func TestRefused(t *testing.T) {
	l := newLog(t, Config{})
	problem := &coap.Response{Code: coap.Forbidden, Payload: (&coap.ProblemBody{ID: 2, Detail: strings.Repeat("x", 500) + "\n"}).Encode()}
	problem.Options.SetContentFormat(coap.ProblemDetails)
	for _, c := range []struct {
		path              []string
		want, group, node string
	}{
		{[]string{"ace-group", "g"}, "/ace-group/{group}", "g", ""},
		{[]string{"ace-group", "g", "nodes", "n", "cred"}, "/ace-group/{group}/nodes/{node}/cred", "g", "n"},
		{[]string{"ace-group", "../etc", "num"}, "/ace-group/{group}/num", "", ""},
		{[]string{"authz-info"}, "/authz-info", "", ""},
		{[]string{"secret", "token"}, "/{…}/token", "", ""},
		{strings.Split(strings.Repeat("a/", 500), "/"), "/{…}/{…}/{…}/{…}/{…}/{…}/…", "", ""},
		{nil, "", "", ""},
	} {
		req := &coap.Request{Code: coap.GET, Peer: coap.Peer{Addr: netip.MustParseAddrPort("[2001:db8::1]:1")}}
		req.Options.SetPath(c.path...)
		l.Refused(req, problem)
		if err := l.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		list := l.all(t, Query{Full: true, Kinds: []string{KindRefused}})
		r := list[len(list)-1]
		if r.Path != c.want || r.Group != c.group || r.Node != c.node || r.Code != "4.03" || *r.Error != 2 || r.Method != "GET" || len(r.Reason) > maxText {
			t.Errorf("%q: %+v", c.path, r)
		}
	}
}

// A flood costs a bounded number of records and is counted; those of others are
// still taken.
func TestFlood(t *testing.T) {
	l := newLog(t, Config{})
	request := func(addr string) *coap.Request {
		req := &coap.Request{Code: coap.GET, Peer: coap.Peer{Addr: netip.MustParseAddrPort(addr)}}
		req.Options.SetPath("ace-group", "g")
		return req
	}
	const flood = 100_000
	resp := &coap.Response{Code: coap.Unauthorized}
	started := time.Now()
	for range flood {
		l.Refused(request("192.0.2.1:1"), resp)
	}
	l.Refused(request("192.0.2.2:1"), resp)
	for i := range flood { // from everywhere
		l.Refused(request(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&0xff, i&0xff)), resp)
	}
	most := refusedBurst + int(time.Since(started).Seconds()+1)*refusedRate
	if len(l.peers) > maxPeers || len(l.pending) > maxPending {
		t.Errorf("%d addresses, %d records wait", len(l.peers), len(l.pending))
	}
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := l.all(t, Query{Full: true, Kinds: []string{KindRefused, KindSuppressed}})
	other, counted := false, 0
	for _, r := range list {
		other = other || strings.HasPrefix(r.Peer, "192.0.2.2:")
		counted += r.Count
	}
	if len(list) > most+1 || !other || counted+len(list)-1 != 2*flood+1 {
		t.Errorf("%d records, %d counted, the other peer's: %v", len(list), counted, other)
	}
}

// While nothing can be written, what happens waits, up to a bound.
func TestWriteFails(t *testing.T) {
	l := newLog(t, Config{})
	broken := storetest.Open(t, Migrations())
	good := l.st
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	l.st = broken
	for range maxPending + 10 {
		l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "g"})
	}
	if err := l.flush(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("got %v", err)
	}
	l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "late"})
	if len(l.pending) != maxPending || l.suppressed != 11 {
		t.Errorf("%d wait, %d are counted", len(l.pending), l.suppressed)
	}
	if err := l.Operator(t.Context(), "operator.test", 1, ""); err == nil {
		t.Error("an operator's act is recorded nowhere")
	}
	if _, err := l.Records(t.Context(), Query{Full: true}); err == nil {
		t.Error("full records are shown without a record of it")
	}
	l.st = good
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(l.all(t, Query{})); n != maxPending+1 {
		t.Errorf("%d records", n)
	}
}

// Old records go, then the oldest; refusals push nothing else out.
func TestRetention(t *testing.T) {
	l := newLog(t, Config{Retention: time.Hour, MaxRecords: 400})
	now := time.Now()
	var list []Record
	for i := range 600 {
		r := Record{At: now.Add(-time.Minute), Kind: KindRefused, Count: i}
		if i%2 == 0 {
			r.Kind = "group.joined"
		}
		if i < 20 {
			r.At = now.Add(-2 * time.Hour)
		}
		list = append(list, r)
	}
	if err := l.write(t.Context(), list, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.trim(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	events, refusals := l.all(t, Query{Kinds: []string{"group.joined"}}), l.all(t, Query{Kinds: []string{KindRefused}})
	if len(events) != 290 || len(refusals) != 100 || refusals[99].Count != 599 || events[0].Count != 20 {
		t.Errorf("%d events from %d, %d refusals", len(events), events[0].Count, len(refusals))
	}
	if since := l.all(t, Query{Since: now}); len(since) != 0 {
		t.Errorf("%d records are of the future", len(since))
	}
	page := l.all(t, Query{After: events[0].ID, Limit: 2, Kinds: []string{"group.joined"}})
	if len(page) != 2 || page[0].ID != events[1].ID {
		t.Errorf("page: %+v", page)
	}
}

// Records that cannot be written are told of once a minute, not with every try.
func TestNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		st := storetest.Open(t, Migrations())
		l := New(Config{}, Deps{Store: st, Log: slog.New(slog.NewTextHandler(&text, nil))})
		if err := l.Setup(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Note(groupcomm.NoteRekeyFailed, groupcomm.Event{Group: "g", Reason: "disk is full"})
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- l.Run(ctx) }()
		time.Sleep(90 * time.Second)
		cancel()
		<-over // with the error that the last records are lost
		if n := strings.Count(text.String(), "not written"); n != 2 || !strings.Contains(text.String(), "n=6") {
			t.Errorf("%d lines in 90 s:\n%s", n, &text)
		}
	})
}
