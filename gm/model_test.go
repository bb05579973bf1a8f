package gm

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// model is a group as the specification describes it, in the simplest form: the
// set of Sender IDs that may not be given out is kept as a set
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.3 and 7.1).
type model struct {
	num     uint64
	members map[string]string          // node → Sender ID in hex; "-" for a monitor
	used    map[string]bool            // Sender IDs not assignable under this Gid
	stale   map[uint64]map[string]bool // by version
	due     bool                       // somebody who left holds the keys
}

func newModel() *model {
	return &model{
		members: map[string]string{}, used: map[string]bool{},
		stale: map[uint64]map[string]bool{0: {}},
	}
}

// assign gives out the shortest Sender ID, the smallest of its length.
func (m *model) assign() string {
	for p := sidPlace(0); ; p++ {
		if s := p.id().String(); !m.used[s] {
			m.used[s] = true
			return s
		}
	}
}

func (m *model) release(sid string) {
	if sid != "-" {
		m.stale[m.num][sid] = true
	}
}

func (m *model) join(node string, monitor bool) string {
	if old, ok := m.members[node]; ok {
		m.release(old)
	} else if m.due {
		m.rekey()
	}
	sid := "-"
	if !monitor {
		sid = m.assign()
	}
	m.members[node] = sid
	return sid
}

func (m *model) remove(node string) {
	m.release(m.members[node])
	delete(m.members, node)
	m.due = true
}

func (m *model) rekey() {
	m.num++
	m.due = false
	m.stale[m.num] = map[string]bool{}
	if len(m.stale) > 3 {
		delete(m.stale, m.num-3)
	}
	clear(m.used)
	for _, sid := range m.members {
		if sid != "-" {
			m.used[sid] = true
		}
	}
}

// staleSince is what FETCH stale-sids answers; nil means everything.
func (m *model) staleSince(v uint64) []string {
	if _, ok := m.stale[v]; !ok {
		return nil
	}
	out := map[string]bool{}
	for n := v; n <= m.num; n++ {
		maps.Copy(out, m.stale[n])
	}
	return append([]string{}, slices.Sorted(maps.Keys(out))...)
}

// TestModel drives a group and its model through the same random sequence and
// compares all that can be seen.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { runModel(t, seed, 150) })
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := newFixture(t, groupConfig("g1"))
	mod := newModel()
	nodes := map[string]*gmtest.Joiner{}
	in := map[string]string{} // name → node name at the Group Manager
	given := map[string]string{}
	secrets := map[string]uint64{}

	// see checks a Join Response, and that no Sender ID is given twice under a
	// Gid, no Gid and no Master Secret serve two versions.
	see := func(name string, d *groupcomm.KeyDistribution, want string) {
		t.Helper()
		got := "-"
		if d.Key.SenderID != nil {
			got = d.Key.SenderID.String()
			key := d.Key.ContextID.String() + "/" + got
			if who, ok := given[key]; ok {
				t.Fatalf("Sender ID %s given to %s and %s", key, who, name)
			}
			given[key] = name
		}
		if got != want || d.Num != mod.num {
			t.Fatalf("%s got Sender ID %q at %d, want %q at %d", name, got, d.Num, want, mod.num)
		}
		for _, s := range []string{string(d.Key.MasterSecret), string(d.Key.ContextID)} {
			if num, ok := secrets[s]; ok && num != d.Num {
				t.Fatalf("a secret or Gid of versions %d and %d", num, d.Num)
			}
			secrets[s] = d.Num
		}
	}
	rekeyed := func(stale map[string]bool) {
		t.Helper()
		num, body, err := f.m.RekeyMessage(t.Context(), "g1")
		if err != nil {
			t.Fatal(err)
		}
		msg, err := groupcomm.DecodeRekeyMessage(body)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, id := range msg.Stale {
			got[id.String()] = true
		}
		if num != mod.num || msg.Num != num || !maps.Equal(got, stale) || len(msg.Stale) != len(stale) {
			t.Fatalf("rekey to %d (model %d) with stale %v, want %v", num, mod.num, got, stale)
		}
	}
	pick := func() string {
		names := slices.Sorted(maps.Keys(in))
		if len(names) == 0 {
			return ""
		}
		return names[rnd.IntN(len(names))]
	}

	for step := range steps {
		before, version := maps.Clone(mod.stale[mod.num]), mod.num
		op := rnd.IntN(20)
		name := pick()
		if name == "" && op > 5 {
			op = 0
		}
		switch {
		case op < 6:
			name = fmt.Sprint("n", step)
			monitor := rnd.IntN(6) == 0
			roles := both
			if monitor {
				roles = groupcomm.Monitor
			}
			nodes[name] = f.joiner(name, "g1", both|groupcomm.Monitor)
			d := f.join(nodes[name], "g1", roles)
			in[name] = nodes[name].Path[3]
			see(name, d, mod.join(in[name], monitor))
		case op < 9:
			monitor := rnd.IntN(4) == 0
			roles := both
			if monitor {
				roles = groupcomm.Monitor
			}
			see(name, f.join(nodes[name], "g1", roles), mod.join(in[name], monitor))
		case op < 11 && mod.members[in[name]] != "-":
			if mod.due { // the rekey answers
				mod.rekey()
			} else {
				mod.release(mod.members[in[name]])
				mod.members[in[name]] = mod.assign()
			}
			if r := f.do(nodes[name], coap.POST, nil, nodes[name].Path...); r.Code != coap.Changed {
				t.Fatalf("renewal: %v", r.Code)
			}
		case op < 13:
			f.leave(nodes[name])
			mod.remove(in[name])
			delete(in, name)
			if r := f.do(nodes[name], coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
				t.Fatalf("who left gets %v", r.Code)
			}
		case op < 15:
			var sids [][]byte
			var names []string
			if sid := mod.members[in[name]]; sid != "-" && rnd.IntN(2) == 0 {
				sids = append(sids, unhex(sid))
			} else {
				names = append(names, in[name])
			}
			if _, err := f.m.Evict(t.Context(), "g1", names, sids); err != nil {
				t.Fatal(err)
			}
			mod.remove(in[name])
			delete(in, name)
		case op < 17:
			f.rekey("g1")
			mod.rekey()
		case op < 18:
			f.reopen(f.st)
		case op < 19:
			f.reopen(storetest.Crash(t, f.st, Migrations()))
		default:
			v := uint64(rnd.IntN(int(mod.num) + 2))
			req := nodes[name].Request(coap.FETCH, groupcomm.EncodeNum(v), "ace-group", "g1", "stale-sids")
			req.Options.SetContentFormat(coap.CBOR)
			r := gmtest.Serve(t.Context(), f.m, req)
			switch want := mod.staleSince(v); {
			case v >= mod.num:
				if r.Code != coap.BadRequest {
					t.Fatalf("fetch(%d) at %d: %v", v, mod.num, r.Code)
				}
			case want == nil:
				if r.Code != coap.Content || len(r.Payload) != 0 {
					t.Fatalf("fetch(%d) at %d: %v %x", v, mod.num, r.Code, r.Payload)
				}
			default:
				ids, err := groupcomm.DecodeStaleIDs(r.Payload)
				if err != nil {
					t.Fatal(err)
				}
				got := []string{}
				for _, id := range ids {
					got = append(got, id.String())
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Fatalf("fetch(%d) at %d: %v, want %v", v, mod.num, got, want)
				}
			}
		}
		if mod.num != version {
			rekeyed(before)
		}
		s := f.status()
		if s.Version != mod.num || s.Due != mod.due || s.Members != len(mod.members) {
			t.Fatalf("step %d, op %d: %+v; model: version %d, due %v, %d members", step, op, s, mod.num, mod.due, len(mod.members))
		}
	}
	f.checkState()
	// All that is left is what the model says, and every member reads it.
	members, err := f.m.Members(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, mb := range members {
		got[mb.Node] = "-"
		if mb.SenderID != nil {
			got[mb.Node] = mb.SenderID.String()
		}
	}
	if !maps.Equal(got, mod.members) {
		t.Errorf("members %v, want %v", got, mod.members)
	}
	for name, node := range in {
		d, err := groupcomm.DecodeKeyDistribution(f.do(nodes[name], coap.GET, nil, nodes[name].Path...).Payload)
		if err != nil {
			t.Fatal(err)
		}
		sid := mod.members[node]
		if sid == "-" && d.Key.SenderID != nil || sid != "-" && !bytes.Equal(d.Key.SenderID, unhex(sid)) {
			t.Errorf("%s reads Sender ID %x, want %s", name, d.Key.SenderID, sid)
		}
	}
}

func TestSenderIDPlaces(t *testing.T) {
	want := map[sidPlace]string{0: "", 1: "00", 2: "01", 256: "ff", 257: "0000", 257 + 65535: "ffff", 257 + 65536: "000000"}
	for p, s := range want {
		if got := p.id().String(); got != s {
			t.Errorf("place %d: %s, want %s", p, got, s)
		}
	}
	if noSID.id() != nil {
		t.Error("a monitor has an ID")
	}
	if n := places(1); n != 257 {
		t.Errorf("%d IDs of at most one byte", n)
	}
	if last := sidPlace(places(7) - 1).id().String(); last != "ffffffffffffff" {
		t.Errorf("last place: %s", last)
	}
	if _, ok := placeOf(make([]byte, 8)); ok {
		t.Error("an ID of 8 bytes has a place")
	}
}

func FuzzSenderIDPlaces(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, id []byte) {
		p, ok := placeOf(id)
		if ok != (len(id) <= 7) {
			t.Fatal("place or no place")
		}
		if ok && !bytes.Equal(p.id(), id) {
			t.Errorf("%x came back as %x", id, p.id())
		}
	})
}
