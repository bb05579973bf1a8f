package gm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

var phrase = []byte("correct horse battery")

// elsewhere is another gateway that accepts the same tokens.
func (f *fixture) elsewhere(groups ...groupcomm.GroupConfig) *fixture {
	f.t.Helper()
	o := &fixture{t: f.t, auth: f.auth, cfg: Config{Groups: groups, RenewalInterval: unlimited}}
	o.deps = Deps{Authority: o.auth}
	o.reopen(storetest.Open(f.t, Migrations()))
	return o
}

// grown is a fixture with a history: at version 4, with releases in 2, 3 and 4.
func grown(t *testing.T) (f *fixture, member, monitor, gone *gmtest.Joiner) {
	f = newFixture(t, groupConfig("g1"))
	gone = f.member("gone", "g1")
	member = f.member("member", "g1")
	monitor = f.joiner("monitor", "g1", groupcomm.Monitor)
	f.join(monitor, "g1", groupcomm.Monitor)
	f.rekey("g1")
	f.rekey("g1")
	f.join(member, "g1", both) // in 2, 01 is stale
	f.leave(gone)
	f.rekey("g1")
	f.join(member, "g1", both) // in 3, 02
	f.rekey("g1")
	f.join(member, "g1", both) // in 4
	return f, member, monitor, gone
}

func (f *fixture) stale(j *gmtest.Joiner, v uint64) *coap.Response {
	req := j.Request(coap.FETCH, groupcomm.EncodeNum(v), "ace-group", "g1", "stale-sids")
	req.Options.SetContentFormat(coap.CBOR)
	return gmtest.Serve(f.t.Context(), f.m, req)
}

// A move: one version further, the next Gid, the same members, nothing of the old
// material; and the source is over.
func TestMove(t *testing.T) {
	f, member, monitor, gone := grown(t)
	before := f.status()
	old := f.do(member, coap.GET, nil, "ace-group", "g1")
	file, version, err := f.m.Export(t.Context(), "g1", true, phrase)
	if err != nil || version != 4 {
		t.Fatal(version, err)
	}
	// Nothing changes at the source any more.
	if s := f.status(); s.Active || s.Due {
		t.Errorf("%+v", s)
	}
	if _, err := f.m.Rekey(t.Context(), "g1", ""); !errors.Is(err, ErrMoved) {
		t.Errorf("rekey: %v", err)
	}
	if err := f.m.SetActive(t.Context(), "g1", true); !errors.Is(err, ErrMoved) {
		t.Errorf("activate: %v", err)
	}
	if _, err := f.m.Evict(t.Context(), "g1", []string{member.Path[3]}, nil); !errors.Is(err, ErrMoved) {
		t.Errorf("evict: %v", err)
	}
	if r := f.do(member, coap.DELETE, nil, member.Path...); r.Code != coap.ServiceUnavailable {
		t.Errorf("leave: %v", r.Code)
	}
	if _, err := member.Join(t.Context(), f.m, "g1", both); err == nil {
		t.Error("joined a group that was moved")
	}
	if _, _, err := f.m.Export(t.Context(), "g1", false, phrase); !errors.Is(err, ErrMoved) {
		t.Errorf("backup: %v", err)
	}
	again, _, err := f.m.Export(t.Context(), "g1", true, nil)
	if err != nil {
		t.Fatal(err)
	}

	o := f.elsewhere()
	for _, wrong := range [][]byte{nil, []byte("another passphrase")} {
		if _, _, err := o.m.Import(t.Context(), file, wrong); err == nil {
			t.Errorf("opened with %q", wrong)
		}
	}
	name, num, err := o.m.Import(t.Context(), file, phrase)
	if err != nil || name != "g1" || num != 5 {
		t.Fatal(name, num, err)
	}
	o.checkState()
	s := o.status()
	if s.Version != 5 || s.Gid.String() != "b100000005" || s.Members != before.Members || !s.Active {
		t.Errorf("%+v", s)
	}
	r := o.do(member, coap.GET, nil, member.Path...)
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil {
		t.Fatal(r.Code, err)
	}
	was, err := groupcomm.DecodeKeyDistribution(old.Payload)
	if err != nil || bytes.Equal(was.Key.MasterSecret, d.Key.MasterSecret) || d.Num != 5 {
		t.Error("the old material is served")
	}
	if r := o.do(gone, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
		t.Errorf("who left reads: %v", r.Code)
	}
	if r := o.do(monitor, coap.GET, nil, monitor.Path...); r.Code != coap.Content {
		t.Errorf("monitor: %v", r.Code)
	}
	// The stale sets of the versions that are kept, as a rekey at the source would
	// have left them.
	for v, want := range map[uint64][]byte{
		2: nil, 3: groupcomm.EncodeStaleIDs([]groupcomm.SenderID{{}, {1}}), 4: groupcomm.EncodeStaleIDs([]groupcomm.SenderID{{}}),
	} {
		if r := o.stale(member, v); r.Code != coap.Content || !bytes.Equal(r.Payload, want) {
			t.Errorf("stale since %d: %v %x, want %x", v, r.Code, r.Payload, want)
		}
	}
	// The Group Manager's credential is the same: Accept verifies the proof.
	o.join(member, "g1", both)
	o.rekey("g1")
	o.checkState()
	// Once only: neither this file nor its twin, even when the name is free.
	if err := o.st.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE gm_groups SET name = 'other'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	o.reopen(o.st)
	for _, b := range [][]byte{file, again} {
		p := phrase
		if bytes.Equal(b, again) {
			p = nil
		}
		if _, _, err := o.m.Import(t.Context(), b, p); err == nil || !strings.Contains(err.Error(), "imported before") {
			t.Errorf("imported twice: %v", err)
		}
	}
	o.reopen(storetest.Crash(t, o.st, Migrations()))
	o.rekey("other")
	o.checkState()
}

// A backup leaps, and tells of no stale set: its original may have gone on.
func TestBackup(t *testing.T) {
	f, member, _, _ := grown(t)
	file, _, err := f.m.Export(t.Context(), "g1", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.rekey("g1") // it is still alive
	o := f.elsewhere()
	if _, num, err := o.m.Import(t.Context(), file, nil); err != nil || num != 4+1<<20 {
		t.Fatal(num, err)
	}
	if s := o.status(); s.Gid.String() != "b100100004" {
		t.Errorf("%+v", s)
	}
	for _, v := range []uint64{0, 4, 5} {
		if r := o.stale(member, v); r.Code != coap.Content || len(r.Payload) != 0 {
			t.Errorf("stale since %d: %v %x", v, r.Code, r.Payload)
		}
	}
	o.checkState()
	o.rekey("g1")
	o.checkState()
}

// Where the next Gid is not known to be unused, another space is taken.
func TestImportElsewhereInGids(t *testing.T) {
	f, _, _, _ := grown(t)
	file, _, err := f.m.Export(t.Context(), "g1", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	g2 := groupConfig("g2") // with the prefix of g1
	o := f.elsewhere(g2)
	if _, _, err := o.m.Import(t.Context(), file, nil); err != nil {
		t.Fatal(err)
	}
	if s := o.status(); strings.HasPrefix(s.Gid.String(), "b1") {
		t.Errorf("%+v", s)
	}
	o.reopen(o.st)
	o.checkState()
}

// A member whose token is never seen at the new gateway lapses when it expires.
func TestImportedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, groupConfig("g1"))
		scope := groupcomm.Scope{{Group: "g1", Roles: both}}
		end := time.Now().Add(time.Hour)
		lost, known := f.joinerWith("lost", cose.AlgEdDSA, scope, end), f.joinerWith("known", cose.AlgEdDSA, scope, end)
		f.join(lost, "g1", both)
		f.join(known, "g1", both)
		file, _, err := f.m.Export(t.Context(), "g1", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.auth.Allow(known.Peer.Subject, scope, end.Add(10*time.Hour))
		o := f.elsewhere()
		if _, _, err := o.m.Import(t.Context(), file, nil); err != nil {
			t.Fatal(err)
		}
		stop := o.run()
		after(2 * time.Hour)
		members, err := o.m.Members(t.Context(), "g1")
		if err != nil || len(members) != 2 {
			t.Fatal(members, err)
		}
		for _, mb := range members {
			if mb.Lapsed != (mb.Subject.ID == "lost") {
				t.Errorf("%+v", mb)
			}
		}
		after(30 * time.Hour)
		if s := o.status(); s.Members != 1 {
			t.Errorf("%+v", s)
		}
		stop()
	})
}

func TestExportedPrefixes(t *testing.T) {
	f, _, _, _ := grown(t)
	file, _, err := f.m.Export(t.Context(), "g1", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range file {
		if _, _, err := f.m.openExport(file[:n], nil); err == nil {
			t.Fatalf("%d bytes of %d open", n, len(file))
		}
	}
	e, _, err := f.m.openExport(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := e.encode()
	for n := range plain {
		if _, _, err := decodeExported(plain[:n]); err == nil {
			t.Fatalf("%d bytes of %d decode", n, len(plain))
		}
	}
	if s := fmt.Sprintf("%v %+v", e, e); s != cose.Redacted+" "+cose.Redacted {
		t.Error("an exported group prints")
	}
}

func FuzzExported(f *testing.F) {
	fix := newFixture(f, groupConfig("g1"))
	fix.member("a", "g1")
	var plain []byte
	if file, _, err := fix.m.Export(f.Context(), "g1", false, nil); err != nil {
		f.Fatal(err)
	} else if e, _, err := fix.m.openExport(file, nil); err != nil {
		f.Fatal(err)
	} else {
		plain = e.encode()
	}
	f.Add(plain)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, _, err := decodeExported(b); err == nil && !bytes.Equal(e.encode(), b) {
			t.Errorf("%x came back as %x", b, e.encode())
		}
	})
}

func FuzzExportFile(f *testing.F) {
	fix := newFixture(f, groupConfig("g1"))
	file, _, err := fix.m.Export(f.Context(), "g1", false, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(exportMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Seeds may come from another process, sealed under the same key.
		if e, _, err := fix.m.openExport(b, nil); err == nil {
			if _, _, err := decodeExported(e.encode()); err != nil {
				t.Errorf("%x opens: %v", b, err)
			}
		}
	})
}

// fixtureText is a group with a member at Sender ID 52 and a gap below it.
func fixtureText(t testing.TB) map[string]any {
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"name": "interop", "gid": "37cbf3210017a2d3", "num": 3, "ms": "0102030405060708090a0b0c0d0e0f10", "salt": "9e7ca92223786340",
		"members": []any{
			map[string]any{"sender_id": "52", "roles": []string{"requester", "responder"}, "cred": fmt.Sprintf("%x", cose.EncodeCCS("m", key.Public()))},
			map[string]any{"roles": []string{"monitor"}},
		},
	}
}

func marshal(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGroupFixture(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	name, num, err := f.m.ImportFixture(t.Context(), marshal(t, fixtureText(t)))
	if err != nil || name != "interop" || num != 3 {
		t.Fatal(name, num, err)
	}
	f.checkState()
	j := f.joiner("live", "interop", both)
	d := f.join(j, "interop", both)
	if d.Num != 3 || fmt.Sprintf("%x", d.Key.MasterSecret) != "0102030405060708090a0b0c0d0e0f10" ||
		fmt.Sprintf("%x", d.Key.Salt) != "9e7ca92223786340" || d.Key.ContextID.String() != "37cbf3210017a2d3" {
		t.Errorf("%d %x %x %v", d.Num, d.Key.MasterSecret, d.Key.Salt, d.Key.ContextID)
	}
	cr, err := groupcomm.DecodeCredsResponse(f.do(j, coap.GET, nil, "ace-group", "interop", "creds").Payload)
	if err != nil || len(cr.Creds) != 2 {
		t.Errorf("%+v, %v", cr, err)
	}
	f.rekey("interop")
	f.reopen(f.st)
	f.checkState()
	if _, _, err := f.m.ImportFixture(t.Context(), marshal(t, fixtureText(t))); err == nil {
		t.Error("imported over an existing group")
	}
	for field, v := range map[string]any{
		"name": "a/b", "gid": "", "ms": "01", "salt": "x", "num": -1, "hkdf": "SHA-1", "unknown": 1, "gid_epoch_bytes": 9, "kdc_key": "a0",
		"members": []any{map[string]any{"sender_id": "00", "roles": []string{"monitor"}}},
	} {
		x := fixtureText(t)
		x[field] = v
		if _, err := decodeFixture(marshal(t, x)); err == nil {
			t.Errorf("%s: %v was accepted", field, v)
		}
	}
}

func FuzzGroupFixture(f *testing.F) {
	f.Add(marshal(f, fixtureText(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodeFixture(b); err == nil && p.mat.num != p.num {
			t.Error("material of another version")
		}
	})
}

// Whoever observes whether the group is active is told of a move, and the new
// gateway, its delivery and its audit log that a group came.
func TestMoveIsTold(t *testing.T) {
	for _, active := range []bool{true, false} {
		f := newFixture(t, groupConfig("g1"))
		f.member("n", "g1")
		if !active {
			if err := f.m.SetActive(t.Context(), "g1", false); err != nil {
				t.Fatal(err)
			}
		}
		var file []byte
		for range 3 { // the file may be lost, also by who has it from the second move
			var err error
			if file, _, err = f.m.Export(t.Context(), "g1", true, phrase); err != nil {
				t.Fatal(err)
			}
		}
		want := "group.state  1 moved"
		if !active {
			want = "group.state  2 moved"
		}
		if all := f.events(); all[len(all)-1] != want || all[len(all)-2] == want {
			t.Errorf("active %v: events %q", active, all)
		}
		o := f.elsewhere()
		if _, _, err := o.m.Import(t.Context(), file, phrase); err != nil {
			t.Fatal(err)
		}
		if s := o.status(); s.Active != active {
			t.Errorf("moved with active %v, and came with %v", active, s.Active)
		}
		if all := o.events(); len(all) != 2 || all[0] != "group.created  1 import" || all[1] != "group.rekeyed  1 import" {
			t.Errorf("events of the import: %q", all)
		}
	}
}

// TestExportedBefore: a file of the format before opens, and so does one with
// members of a key tree; one with places that no member has does not.
func TestExportedBefore(t *testing.T) {
	f, _, _, _ := grown(t)
	file, _, err := f.m.Export(t.Context(), "g1", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := f.m.openExport(file, nil)
	if err != nil || len(e.Branches) != 0 {
		t.Fatal(e.Branches, err)
	}
	now := e.encode()
	before := append([]byte{0x8c}, now[1:len(now)-1]...)
	old := append([]byte(exportMagic), 1, lockSealKey)
	old = append(old, f.st.Seal(exportContext, before)...)
	if got, _, err := f.m.openExport(old, nil); err != nil || !bytes.Equal(got.encode(), now) {
		t.Errorf("version 1: %v", err)
	}
	if _, _, err := f.m.openExport(append(old[:len(exportMagic):len(exportMagic)], file[len(exportMagic):]...), nil); err != nil {
		t.Errorf("version 2: %v", err)
	}
	node := e.Members[0].Node
	for what, c := range map[string]struct {
		branches []exportedBranch
		fails    bool
	}{
		"one":        {[]exportedBranch{{Node: node, Channel: "mqtt"}}, false},
		"a stranger": {[]exportedBranch{{Node: "nobody", Channel: "mqtt"}}, true},
		"twice":      {[]exportedBranch{{Node: node, Channel: "mqtt"}, {Node: node, Channel: "multicast"}}, true},
		"a channel":  {[]exportedBranch{{Node: node, Channel: "smoke"}}, true},
	} {
		e.Branches = c.branches
		if _, _, err := decodeExported(e.encode()); (err != nil) != c.fails {
			t.Errorf("%s: %v", what, err)
		}
	}
}
