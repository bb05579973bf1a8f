package audit

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// The newest end of a membership in each group, by name or by key, and nothing of
// others.
func TestDepartures(t *testing.T) {
	l := logOn(t, Config{}, storetest.Open(t, Migrations()))
	at := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	id := int64(0)
	write := func(kind, group, node, reason string) {
		t.Helper()
		id++
		e := joined()
		e.Group, e.Node, e.Reason, e.Subject.ID = group, node, reason, "key of "+node
		event := store.Event{ID: id, At: at.Add(time.Duration(id) * time.Second), Kind: kind, Data: e.Encode()}
		if err := l.writeEvents(t.Context(), []store.Event{event}); err != nil {
			t.Fatal(err)
		}
	}
	write(groupcomm.EventEvicted, "g", "n1", "operator")
	write(groupcomm.EventJoined, "g", "n1", "")
	write(groupcomm.EventLeft, "g", "n1", "")
	write(groupcomm.EventEvicted, "h", "n1", "token expiry")
	write(groupcomm.EventEvicted, "g", "n2", "operator")
	for name, is := range map[string]func(string, coap.Subject) bool{
		"by name": func(node string, _ coap.Subject) bool { return node == "n1" },
		"by key":  func(_ string, s coap.Subject) bool { return s == coap.Subject{Kind: coap.SubjectPoP, ID: "key of n1"} },
	} {
		got, err := l.Departures(t.Context(), is)
		g, h := got["g"], got["h"]
		if err != nil || len(got) != 2 || g.Evicted || g.Node != "n1" || !g.At.Equal(at.Add(3*time.Second)) || !h.Evicted || h.Reason != "token expiry" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if list := l.all(t, Query{Kinds: []string{KindFullRead}}); len(list) != 0 {
		t.Error("counted as a reading of full records")
	}
}
