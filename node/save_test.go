package node

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestSave: a membership goes on as it was after a restart, with peers, keys and an
// empty Sender ID; what is damaged, or is another membership, is an error that quotes
// nothing.
func TestSave(t *testing.T) {
	g := newFakeGM(t)
	other, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	g.peers = []Peer{{SenderID: groupcomm.SenderID{}, Roles: groupcomm.Responder, Cred: cose.EncodeCCS("p", other.Public())}}
	m, _ := joinedMember(t, g, nil)
	saved := m.Save()
	cfg := Config{Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder, Saved: saved}
	again, err := New(cfg, g)
	if err != nil {
		t.Fatal(err)
	}
	was, _ := m.State()
	is, ok := again.State()
	if !ok || was.Expires.Unix() != is.Expires.Unix() {
		t.Errorf("expires %v, was %v", is.Expires, was.Expires)
	}
	is.Expires = was.Expires
	if !is.MasterSecret.Equal(was.MasterSecret) {
		t.Error("another Master Secret")
	}
	is.MasterSecret = was.MasterSecret
	if string(is.Params.Encode()) != string(was.Params.Encode()) {
		t.Error("other algorithms")
	}
	is.Params = was.Params
	if len(is.Peers) != 1 || is.Peers[0].SenderID == nil || !is.Peers[0].Key.SamePublic(was.Peers[0].Key) {
		t.Fatalf("peers %+v", is.Peers)
	}
	is.Peers[0].Key = was.Peers[0].Key
	if got, want := fmt.Sprintf("%+v", is), fmt.Sprintf("%+v", was); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !again.Key().SamePublic(m.Key()) || string(again.Cred()) != string(m.Cred()) {
		t.Error("another key pair")
	}
	if err := again.Poll(t.Context()); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]Config{
		"other roles": {Group: "g1", Roles: groupcomm.Requester, Saved: saved},
		"other GM":    {Group: "g1", Roles: cfg.Roles, Saved: saved, KDCCred: []byte{1}},
	} {
		if _, err := New(c, g); err == nil {
			t.Errorf("%s: resumed", name)
		}
	}
	if _, err := New(Config{Group: "g1", Roles: cfg.Roles, Saved: saved, KDCCred: []byte{1}}, g); !errors.Is(err, ErrProof) {
		t.Errorf("other GM: %v", err)
	}
}

// FuzzSaved: whatever lies in the store, nothing panics, and what opens is whole.
func FuzzSaved(f *testing.F) {
	g := newFakeGM(f)
	m, _ := joinedMember(f, g, nil)
	f.Add(m.Save())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, saved []byte) {
		m, err := New(Config{Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder, Saved: saved}, g)
		if err != nil {
			_ = fmt.Sprint(err)
			return
		}
		if s, ok := m.State(); !ok && saved != nil || ok && (s.Node == "" || len(s.Gid) == 0) {
			t.Errorf("half a membership: %+v", s)
		}
	})
}
