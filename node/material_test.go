package node

import (
	"errors"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func sids(b ...byte) (ids []groupcomm.SenderID) {
	for _, x := range b {
		ids = append(ids, groupcomm.SenderID{x})
	}
	return ids
}

func peerIDs(s State) (ids []byte) {
	for _, p := range s.Peers {
		ids = append(ids, p.SenderID[0])
	}
	return ids
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3: what a member that holds
// version 5 does with an offer.
func TestRekeyRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		offer groupcomm.Version
		full  bool
		want  verdict
		after groupcomm.Version // version after take
		peers string
	}{
		{"next", 6, false, installed, 6, "\x52"},
		{"same", 5, false, ignored, 5, "\x52\x77"},
		{"older", 4, false, ignored, 5, "\x52\x77"},
		{"zero", 0, false, ignored, 5, "\x52\x77"},
		{"one missed", 7, false, waiting, 5, "\x52\x77"},
		{"many missed", 1 << 40, false, waiting, 5, "\x52\x77"},
		{"the last number", ^uint64(0), false, waiting, 5, "\x52\x77"},
		{"same, whole map", 5, true, ignored, 5, "\x52\x77"},
		{"next, whole map", 6, true, waiting, 5, "\x52\x77"}, // it lacks the stale Sender IDs
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			g.peer(0x77, groupcomm.Responder)
			m, _ := joinedMember(t, g, nil)
			body, decode := rekeyOf(c.offer, sids(0x77, 0x99)...), offerRekey
			if c.full {
				body, decode = g.full(c.offer).Encode(), offerFull
			}
			o, err := decode(body, ViaObserve)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.take(o); got != c.want {
				t.Errorf("verdict %d, want %d", got, c.want)
			}
			s := state(t, m)
			if s.Version != c.after || string(peerIDs(s)) != c.peers || !s.Installed {
				t.Errorf("version %d, peers %x", s.Version, peerIDs(s))
			}
			if c.want == installed && (string(s.MasterSecret.Bytes()) != string(secretOf(6)) || s.MasterSalt != nil || s.SenderID.String() != "25") {
				t.Errorf("material %+v", s)
			}
		})
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1: a rekey that joins caused
// tells of the newcomers; one may have the Sender ID that another gave up.
func TestRekeyTellsOfNewcomers(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	g.peer(0x52, groupcomm.Requester)
	g.peer(0x77, groupcomm.Responder)
	m, _ := joinedMember(t, g, nil)
	newcomer := g.peer(0x78, groupcomm.Requester).Cred
	r, err := groupcomm.DecodeRekeyMessage(rekeyOf(6, sids(0x77)...))
	if err != nil {
		t.Fatal(err)
	}
	r.Creds = [][]byte{newcomer, {0xa0}, newcomer}
	r.PeerRoles = []groupcomm.Roles{groupcomm.Requester, groupcomm.Requester, groupcomm.Responder}
	r.PeerIdentifiers = sids(0x77, 0x79, 0x52)
	o, err := offerRekey(r.Encode(), ViaObserve)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.take(o); got != installed {
		t.Fatalf("verdict %d", got)
	}
	s := state(t, m)
	if string(peerIDs(s)) != "\x77\x52" || !slices.Equal(s.Peers[0].Cred, newcomer) || s.Peers[0].Roles != groupcomm.Requester || s.Peers[0].Key == nil {
		t.Errorf("peers %x: %+v", peerIDs(s), s.Peers)
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 11.3: the old material is
// deleted, the new one not used before stale-sids answered.
func TestMissedRekey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		stale []groupcomm.SenderID
		peers string
	}{
		{"some stale", sids(0x52), "\x77"},
		{"none stale", []groupcomm.SenderID{}, "\x52\x77"},
		{"further back than the Group Manager remembers", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			g.peer(0x77, groupcomm.Responder)
			m, events := joinedMember(t, g, nil)
			g.num, g.stale = 8, c.stale
			// While stale-sids is asked for nothing is usable.
			g.spoil = func(req *coap.Request, _ *coap.Response) {
				if req.Code == coap.FETCH {
					if s := m.state; s.Installed || !s.MasterSecret.IsZero() || s.Version != 5 {
						t.Errorf("during the procedure: %+v", s)
					}
				}
			}
			if err := m.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := state(t, m)
			if s.Version != 8 || !s.Installed || string(s.MasterSecret.Bytes()) != string(secretOf(8)) || string(peerIDs(s)) != c.peers {
				t.Errorf("state %+v", s)
			}
			var kinds []string
			for _, e := range *events {
				kinds = append(kinds, e.Kind)
			}
			if !slices.Equal(kinds, []string{Joined, Missed, Rekeyed}) {
				t.Errorf("events %v", kinds)
			}
			// The Group Manager learns that version 8 is held.
			if g.held[len(g.held)-1] != 8 {
				t.Errorf("versions shown %v", g.held)
			}
		})
	}
}

// A failed stale-sids leaves the member without usable material, and the next
// poll completes.
func TestMissedRekeyRetries(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	g.num = 8
	for _, spoiled := range []*coap.Response{
		reply(coap.ServiceUnavailable, 0, nil),
		reply(coap.Content, coap.CBOR, []byte{0x81}),
		reply(coap.Content, coap.CBOR, []byte{0x81, 0x01}),
		reply(coap.Content, coap.CBOR, []byte{0xa0}),
	} {
		g.spoil = func(req *coap.Request, r *coap.Response) {
			if req.Code == coap.FETCH {
				*r = *spoiled
			}
		}
		if err := m.Poll(t.Context()); err == nil {
			t.Fatal("no error")
		}
		if s := state(t, m); s.Installed || s.Version != 5 || !s.MasterSecret.IsZero() {
			t.Errorf("state %+v", s)
		}
	}
	g.spoil = nil
	if err := m.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); !s.Installed || s.Version != 8 {
		t.Errorf("state %+v", s)
	}
}

// Every bad answer to a poll is refused with the state as it was.
func TestPollRefuses(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	good := g.full(6).Encode()
	for name, body := range map[string][]byte{
		"empty": nil, "truncated": good[:len(good)-1], "trailing": append(slices.Clone(good), 0), "rekey message": rekeyOf(6)[:20],
		"short secret": func() []byte { kd := g.full(6); kd.Key.MasterSecret = []byte("x"); return kd.Encode() }(),
	} {
		m, _ := joinedMember(t, g, nil)
		g.spoil = func(req *coap.Request, r *coap.Response) {
			if req.Code == coap.GET {
				*r = *reply(coap.Content, coap.ACEGroupcomm, body)
			}
		}
		if err := m.Poll(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		g.spoil = nil
		if s := state(t, m); s.Version != 5 || !s.Installed {
			t.Errorf("%s: state %+v", name, s)
		}
	}
}

func TestETag(t *testing.T) {
	t.Parallel()
	for v, want := range map[groupcomm.Version]string{0: "\x00", 1: "\x01", 255: "\xff", 256: "\x01\x00", 1 << 56: "\x01\x00\x00\x00\x00\x00\x00\x00"} {
		if got := string(etag(v)); got != want {
			t.Errorf("etag(%d) = %x, want %x", v, got, want)
		}
	}
}
