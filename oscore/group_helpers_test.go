package oscore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// directory is a source of credentials: what the Group Manager would tell.
type directory struct {
	mu    sync.Mutex
	creds map[string][]byte // by Gid and Sender ID
}

func newDirectory() *directory { return &directory{creds: map[string][]byte{}} }

func (d *directory) Credential(gid, kid []byte) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cred, ok := d.creds[string(gid)+"/"+string(kid)]
	return cred, ok
}

func (d *directory) set(gid, kid, cred []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.creds[string(gid)+"/"+string(kid)] = cred
}

func (d *directory) forget(gid []byte, kid string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.creds, string(gid)+"/"+kid)
}

// site is a group with members that all use one directory.
type site struct {
	t        testing.TB
	material GroupMaterial
	creds    *directory
	keys     map[string]*GroupSender
}

// bothModes are the algorithms of most tests.
var bothModes = GroupAlgorithms{
	AEAD: cose.AlgAESCCM16_64_128, GroupEnc: cose.AlgAESCCM16_64_128,
	Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256,
}

func newSite(t testing.TB, algs GroupAlgorithms) *site {
	gm := must(cose.GenerateKey(cose.AlgEdDSA))
	return &site{
		t: t, creds: newDirectory(), keys: map[string]*GroupSender{},
		material: GroupMaterial{
			Gid: []byte{0xdd, 0x11}, Algorithms: algs, CredFormat: cose.HeaderKCCS,
			GMCred:       cose.EncodeCCS("gm", gm),
			MasterSecret: cose.NewSecret([]byte("master secret 01")), MasterSalt: []byte("salt"),
		},
	}
}

// sender makes the keys of a member, and tells the directory.
func (s *site) sender(id string) *GroupSender {
	k := s.keys[id]
	if k == nil {
		k = &GroupSender{ID: []byte(id)}
		if s.material.Algorithms.GroupEnc == 0 {
			k.Key = must(cose.GenerateDHKey(cose.CrvX25519))
		} else {
			k.Key = must(cose.GenerateKey(s.material.Algorithms.Sign))
		}
		k.Cred = cose.EncodeCCS("member "+id, k.Key)
		s.keys[id] = k
	}
	s.creds.set(s.material.Gid, k.ID, k.Cred)
	return k
}

// member makes a member with the newest material.
func (s *site) member(id string, cfg GroupConfig) *Group {
	s.t.Helper()
	cfg.Creds = s.creds
	g := must(NewGroup(cfg))
	if err := g.Install(s.material, s.sender(id), nil, false); err != nil {
		s.t.Fatal(err)
	}
	return g
}

// rekey makes new material, and installs it for the given members.
func (s *site) rekey(members map[string]*Group, stale ...string) {
	s.t.Helper()
	gid := bytes.Clone(s.material.Gid)
	gid[len(gid)-1]++
	s.material.Gid = gid
	s.material.MasterSecret = cose.NewSecret(append([]byte("master secret of "), gid...))
	var ids [][]byte
	for _, id := range stale {
		ids = append(ids, []byte(id))
	}
	for id, g := range members {
		if err := g.Install(s.material, s.sender(id), ids, false); err != nil {
			s.t.Fatal(err)
		}
	}
}

// get is a request for a path.
func get(path string) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, Code: coap.GET, ID: 1, Token: []byte{1, 2}}
	m.Options.SetPath(coap.PathOf(path)...)
	return m
}

// content is a response with a payload.
func content(payload string) *coap.Message {
	return &coap.Message{Type: coap.NonConfirmable, Code: coap.Content, ID: 2, Token: []byte{1, 2}, Payload: []byte(payload)}
}

// wire sends a message through its bytes.
func wire(t testing.TB, m *coap.Message) *coap.Message {
	t.Helper()
	return must(coap.DecodeMessage(must(m.MarshalBinary())))
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func sid(text string) []byte { return must(hex.DecodeString(text)) }

// ask protects a request in one of the modes.
func ask(t testing.TB, g *Group, mode Mode, to string, m *coap.Message) (*coap.Message, *GroupExchange) {
	t.Helper()
	var p *coap.Message
	var x *GroupExchange
	var err error
	if mode == GroupMode {
		p, x, err = g.ProtectRequest(t.Context(), nil, m)
	} else {
		p, x, err = g.ProtectRequestTo(t.Context(), nil, []byte(to), m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return wire(t, p), x
}

// serve reads a request and answers it in one of the modes.
func serve(t testing.TB, g *Group, req *coap.Message, mode Mode, answer string) *coap.Message {
	t.Helper()
	_, x, err := g.UnprotectRequest(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	return wire(t, must(x.ProtectIn(t.Context(), nil, mode, content(answer))))
}

// keystream derives the keystream of a countersignature: pivID is who generated piv.
func (s *groupSuite) keystream(key, pivID, gid, piv []byte, request bool) ([]byte, error) {
	k := keystreamKey{s, key}
	return k.stream(&hkdfScratch{}, &groupMessage{gid: gid, pivID: pivID, piv: piv, request: request}), nil
}
