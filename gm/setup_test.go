package gm

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

func TestSetupCompares(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	before := f.dump()
	try := func(groups ...groupcomm.GroupConfig) error {
		return New(Config{Groups: groups}, Deps{Store: f.st, Authority: f.auth}).Setup(t.Context())
	}
	other := groupConfig("g1")
	other.SignAlg, other.ECDHCrv, other.GidPrefix = cose.AlgES256, cose.CrvP256, []byte{0xb2}
	second := groupConfig("g2")
	second.GidPrefix = []byte{0xb3}
	err := try(other, second)
	var diff *DifferentError
	if !errors.As(err, &diff) || diff.Group != "g1" || len(diff.Fields) != 3 ||
		!strings.Contains(err.Error(), "sign_alg: declared -7, exists with -8") {
		t.Errorf("%v", err)
	}
	if f.dump() != before {
		t.Error("a refused declaration changed something")
	}
	// Policies follow the declaration; no declared prefix means any.
	same := groupConfig("g1")
	same.GidPrefix = nil
	same.BatchWindow, same.KeyLifetime, same.List = time.Minute, time.Hour, false
	if err := try(same); err != nil {
		t.Fatal(err)
	}
	f.cfg.Groups = nil // no longer declared: it stays as it is
	f.reopen(f.st)
	got, err := f.m.GroupConfigs(t.Context(), []string{"unknown", "g1"})
	same.GidPrefix = []byte{0xb1}
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], same) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestSetupRefuses(t *testing.T) {
	edit := func(fn func(*groupcomm.GroupConfig)) []groupcomm.GroupConfig {
		c := groupConfig("g1")
		fn(&c)
		return []groupcomm.GroupConfig{c}
	}
	for name, groups := range map[string][]groupcomm.GroupConfig{
		"twice":          {groupConfig("g1"), groupConfig("g1")},
		"one Gid space":  {groupConfig("g1"), groupConfig("g2")},
		"name":           edit(func(c *groupcomm.GroupConfig) { c.Name = "a/b" }),
		"no mode":        edit(func(c *groupcomm.GroupConfig) { c.SignAlg, c.GpEncAlg, c.Alg, c.ECDHAlg = 0, 0, 0, 0 }),
		"half a mode":    edit(func(c *groupcomm.GroupConfig) { c.SignAlg = 0 }),
		"other hash":     edit(func(c *groupcomm.GroupConfig) { c.HKDF = cose.AlgHMAC512 }),
		"algorithm":      edit(func(c *groupcomm.GroupConfig) { c.SignAlg = -999 }),
		"one stale set":  edit(func(c *groupcomm.GroupConfig) { c.MaxStaleSets = 1 }),
		"short lifetime": edit(func(c *groupcomm.GroupConfig) { c.KeyLifetime = time.Second }),
		"epoch":          edit(func(c *groupcomm.GroupConfig) { c.GidEpochBytes = 9 }),
	} {
		t.Run(name, func(t *testing.T) {
			st := storetest.Open(t, Migrations())
			m := New(Config{Groups: groups}, Deps{Store: st})
			if err := m.Setup(t.Context()); err == nil {
				t.Error("accepted")
			}
			if s, err := m.Groups(t.Context()); err != nil || len(s) != 0 {
				t.Errorf("%d groups were created, %v", len(s), err)
			}
		})
	}
}

// Prefixes that the Group Manager chooses are apart, whatever else there is.
func TestGidPrefixes(t *testing.T) {
	var groups []groupcomm.GroupConfig
	for c := 'A'; c <= 'Z'; c++ {
		groups = append(groups, groupcomm.DefaultGroupConfig("g"+string(c)))
	}
	f := newFixture(t, groups...)
	status, err := f.m.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[byte]bool{}
	for _, s := range status {
		if len(s.Gid) != 5 || seen[s.Gid[0]] {
			t.Errorf("Gid %v", s.Gid)
		}
		seen[s.Gid[0]] = true
	}
	// When all prefixes of one byte are taken, longer ones are chosen.
	var taken []gidSpace
	for b := range 256 {
		taken = append(taken, gidSpace{prefix: []byte{byte(b)}, size: 1})
	}
	for range 20 {
		p, err := choosePrefix(taken, 1)
		if err != nil || len(p) != 2 {
			t.Fatal(p, err)
		}
		taken = append(taken, gidSpace{prefix: p, size: 1})
	}
	for i, a := range taken {
		for _, b := range taken[:i] {
			if a.meets(b) {
				t.Fatalf("%v and %v meet", a, b)
			}
		}
	}
}

// vectors/messages.json: 61,532 changes after b10000 comes b1f05c
// (draft-ietf-core-oscore-groupcomm-28, Appendix C).
func TestMakeGid(t *testing.T) {
	gid, err := makeGid([]byte{0xb1}, 61532, 2)
	if err != nil || gid.String() != "b1f05c" {
		t.Error(gid, err)
	}
	if _, err := makeGid([]byte{0xb1}, 1<<16, 2); !errors.Is(err, ErrGidExhausted) {
		t.Errorf("%v", err)
	}
}

func TestLinks(t *testing.T) {
	hidden := groupConfig("hidden")
	hidden.List, hidden.GidPrefix = false, []byte{0xb2}
	f := newFixture(t, groupConfig("g1"), hidden)
	doc, err := coap.EncodeLinks(f.m.Links(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	want := `</ace-group>;ct=261;if="ace.groups",` +
		`</ace-group/g1>;ct=261;rt="core.osc.gm";if="ace.group";obs;sec-gp="g1";hkdf=5;cred_fmt=14;gp_enc_alg=10;` +
		`sign_alg="-8";sign_alg_crv=6;alg=10;ecdh_alg="-27";ecdh_alg_crv=4`
	if string(doc) != want {
		t.Errorf("%s\nwant\n%s", doc, want)
	}
	f.cfg.Groups[0].List = false
	f.reopen(f.st)
	if links := f.m.Links(t.Context()); links != nil {
		t.Errorf("%v though nothing may be listed", links)
	}
}

// No request, however malformed, is answered with 5.00.
func FuzzRequest(f *testing.F) {
	fix := newFixture(f, groupConfig("g1"))
	j := fix.joiner("n", "g1", both|groupcomm.Monitor|groupcomm.Verifier)
	member := fix.member("member", "g1")
	msg, err := j.JoinMessage("g1", both)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(coap.POST), "ace-group/g1", msg.Encode(), false)
	f.Add(uint8(coap.FETCH), "ace-group", (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{1}}}).Encode(), true)
	f.Add(uint8(coap.FETCH), "ace-group/g1/creds", groupcomm.EncodeCredsRequest(&groupcomm.GetCreds{Inclusion: true, IDs: []groupcomm.SenderID{{}}}), true)
	f.Add(uint8(coap.FETCH), "ace-group/g1/stale-sids", []byte{0}, true)
	f.Add(uint8(coap.GET), strings.Join(member.Path, "/"), []byte{}, true)
	f.Fuzz(func(t *testing.T, code uint8, path string, body []byte, asMember bool) {
		who := j
		if asMember {
			who = member
		}
		r := gmtest.Serve(t.Context(), fix.m, who.Request(coap.Code(code&7), body, strings.Split(path, "/")...))
		if r.Code == coap.InternalServerError {
			t.Errorf("%v %s %x: %v", coap.Code(code), path, body, r.Code)
		}
	})
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter(time.Hour, 1, 16)
	for i := range 100 {
		if !l.allow(string(rune('a' + i))) {
			t.Error("the first is not allowed")
		}
	}
	if len(l.buckets) > 16 {
		t.Errorf("%d buckets", len(l.buckets))
	}
	if l.allow(string(rune('a' + 99))) {
		t.Error("the second is allowed")
	}
}
