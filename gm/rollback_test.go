package gm

import (
	"math"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// docs/protocol.md, Section 10: after a rollback neither versions nor Gids repeat,
// whatever was given out between the backup and the end.
func TestRecover(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	member := f.member("member", "g1")
	gone := f.member("gone", "g1")
	backup := storetest.Crash(t, f.st, Migrations())
	later := f.member("later", "g1")
	f.leave(gone)
	for range 5 {
		f.rekey("g1")
	}
	last := f.status()

	f.reopen(backup)
	if err := f.m.Recover(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	s := f.status()
	if s.Version != 1<<20+1 || s.Gid.String() != "b100000008" || s.Version <= last.Version || s.Gid.String() <= last.Gid.String() {
		t.Errorf("%+v after %+v", s, last)
	}
	// The member comes from a version that is lost: it drops all it knows.
	for _, v := range []uint64{0, last.Version, s.Version - 1} {
		req := member.Request(coap.FETCH, groupcomm.EncodeNum(v), "ace-group", "g1", "stale-sids")
		req.Options.SetContentFormat(coap.CBOR)
		if r := gmtest.Serve(t.Context(), f.m, req); r.Code != coap.Content || len(r.Payload) != 0 {
			t.Errorf("stale since %d: %v %x", v, r.Code, r.Payload)
		}
	}
	if r := f.do(later, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
		t.Errorf("a membership came out of nothing: %v", r.Code)
	}
	f.checkState()
	f.join(later, "g1", both)
	f.rekey("g1")
	f.checkState()
	// More changes lost than versions: the leap is as long.
	if err := f.m.Recover(t.Context(), 1<<21); err != nil {
		t.Fatal(err)
	}
	if s := f.status(); s.Version != 1<<20+2+1<<21+1 {
		t.Errorf("%+v", s)
	}
}

// Where no Gid is known to be unused, the group stops; with reuse it goes on.
func TestRecoverExhausts(t *testing.T) {
	for _, lost := range []uint64{300, math.MaxUint64} {
		c, d := groupConfig("g1"), groupConfig("g2")
		c.GidEpochBytes, d.GidEpochBytes = 1, 1
		d.GidPrefix, d.GidReuse = []byte{0xb2}, true
		f := newFixture(t, c, d)
		if err := f.m.Recover(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		s, err := f.m.Groups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s[0].Active || s[0].Version != 0 {
			t.Errorf("%+v", s[0])
		}
		if !s[1].Active || s[1].Version <= 1<<20 {
			t.Errorf("%+v", s[1])
		}
		f.checkState()
		f.rekey("g2")
	}
}
