package gm

import (
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// reusing is a fixture whose only group has Gids b100 to b103 in turn.
func reusing(t *testing.T, edit func(*groupcomm.GroupConfig)) *fixture {
	t.Helper()
	c := groupConfig("g1")
	c.GidEpochBytes, c.GidReuse = 1, true
	if edit != nil {
		edit(&c)
	}
	f := &fixture{t: t, cfg: Config{Groups: []groupcomm.GroupConfig{c}, RenewalInterval: unlimited, epochs: 4}}
	f.auth = &gmtest.Authority{}
	f.deps = Deps{Authority: f.auth}
	f.reopen(storetest.Open(t, Migrations()))
	return f
}

// evictions lists the events of evictions as "node reason version".
func (f *fixture) evictions() map[string]groupcomm.Event {
	f.t.Helper()
	out := map[string]groupcomm.Event{}
	err := f.st.View(f.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.Query(`SELECT data FROM store_events WHERE kind = ?`, groupcomm.EventEvicted)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var b []byte
			if err := rows.Scan(&b); err != nil {
				return err
			}
			e, err := groupcomm.DecodeEvent(b)
			if err != nil {
				return err
			}
			out[e.Node] = *e
		}
		return rows.Err()
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11: who joined under a Gid is
// evicted before that Gid is used again; who joined later, or joined anew, stays.
func TestGidReuse(t *testing.T) {
	f := reusing(t, nil)
	elder, again := f.member("elder", "g1"), f.member("again", "g1") // at b100
	monitor := f.joiner("monitor", "g1", groupcomm.Monitor)
	f.join(monitor, "g1", groupcomm.Monitor)
	f.rekey("g1")
	young := f.member("young", "g1") // at b101
	f.join(again, "g1", both)        // its Birth Gid is b101 now
	for range 2 {
		f.rekey("g1")
	}
	if s := f.status(); s.Gid.String() != "b103" || s.Members != 4 {
		t.Fatalf("%+v", s)
	}
	before := f.do(elder, coap.GET, nil, "ace-group", "g1")
	if before.Code != coap.Content {
		t.Fatal(before.Code)
	}
	f.rekey("g1")
	s := f.status()
	if s.Gid.String() != "b100" || s.Version != 4 || s.Members != 2 {
		t.Fatalf("%+v", s)
	}
	for _, j := range []string{elder.Path[3], monitor.Path[3]} {
		if e := f.evictions()[j]; e.Reason != byGidReuse || e.Version != 3 || e.Subject.ID == "" {
			t.Errorf("event %+v", e)
		}
	}
	_, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	// The elder held the empty Sender ID; that of its re-joined neighbour went
	// stale before.
	if msg, err := groupcomm.DecodeRekeyMessage(body); err != nil || len(msg.Stale) != 1 || len(msg.Stale[0]) != 0 {
		t.Errorf("stale %v, %v", msg.Stale, err)
	}
	if r := f.do(elder, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
		t.Errorf("an elder reads the new keys: %v", r.Code)
	}
	for _, j := range [][]string{young.Path, again.Path} {
		if e, ok := f.evictions()[j[3]]; ok {
			t.Errorf("evicted: %+v", e)
		}
	}
	f.checkState()
	// After a restart the next round takes the others.
	f.reopen(storetest.Crash(t, f.st, Migrations()))
	f.rekey("g1")
	if s := f.status(); s.Gid.String() != "b101" || s.Members != 0 {
		t.Errorf("%+v", s)
	}
	f.checkState()
	// Reuse switched off: all Gids were used.
	f.cfg.Groups[0].GidReuse = false
	f.reopen(f.st)
	if _, err := f.m.Rekey(t.Context(), "g1", ""); err == nil {
		t.Error("a Gid was used again without gid.reuse")
	}
}

// An elder that joins again before the following rekey causes none, others do,
// and so does the elder afterwards.
func TestElderJoinsAgain(t *testing.T) {
	f := reusing(t, func(c *groupcomm.GroupConfig) { c.RekeyOnJoin, c.BatchWindow = true, 0 })
	elder, second := f.member("elder", "g1"), f.joiner("second", "g1", both)
	for range 3 {
		f.rekey("g1")
	}
	young := f.member("young", "g1") // by a rekey of its own, to b100: the elder goes
	if s := f.status(); s.Version != 4 || s.Gid.String() != "b100" || s.Members != 1 {
		t.Fatalf("%+v", s)
	}
	f.reopen(storetest.Crash(t, f.st, Migrations())) // remembered on disk
	if d := f.join(elder, "g1", both); d.Num != 4 {
		t.Errorf("the elder's join rekeyed to %d", d.Num)
	}
	if d := f.join(second, "g1", both); d.Num != 5 {
		t.Errorf("a newcomer joined at %d", d.Num)
	}
	f.leave(elder)
	if d := f.join(elder, "g1", both); d.Num != 6 { // for the leave
		t.Errorf("joined at %d", d.Num)
	}
	f.leave(young)
	f.rekey("g1")
	f.leave(elder)
	f.rekey("g1")
	if d := f.join(elder, "g1", both); d.Num != 9 {
		t.Errorf("joined at %d, no elder any more", d.Num)
	}
	f.checkState()
}

// The key renewal of an elder may be what starts the rekey: it does not get the
// keys from which that rekey shuts it out.
func TestElderRenews(t *testing.T) {
	f := reusing(t, nil)
	elder := f.member("elder", "g1")
	for range 3 {
		f.rekey("g1")
	}
	f.leave(f.member("leaver", "g1"))
	if r := f.do(elder, coap.POST, nil, elder.Path...); r.Code != coap.Forbidden {
		t.Errorf("%v %x", r.Code, r.Payload)
	}
	if s := f.status(); s.Version != 4 || s.Members != 0 {
		t.Errorf("%+v", s)
	}
}
