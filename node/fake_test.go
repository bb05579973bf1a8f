package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// fakeGM is a small Group Manager for one group and one node, as a Transport:
// real messages, real proofs, and a hook that spoils any answer.
type fakeGM struct {
	t     testing.TB
	key   *cose.Key
	cred  []byte
	cfg   groupcomm.GroupConfig
	spoil func(req *coap.Request, resp *coap.Response) // may change the answer
	spoof func(kd *groupcomm.KeyDistribution)          // before the Join Response is encoded

	mu       sync.Mutex
	ns       []byte
	num      groupcomm.Version
	stale    []groupcomm.SenderID // answer to FETCH stale-sids; nil: empty body
	peers    []Peer
	member   bool
	requests []*coap.Request
	held     []groupcomm.Version // shown by ETags of plain GETs
	group    func(*coap.Response)
	node     func(*coap.Response)
	lost     bool
	closed   bool
	done     chan struct{}
	joins    int
	mgt      *groupcomm.MgtKeyMaterial
	want     chan struct{} // told at each registration of the group

	scope      []byte // of the latest Join Request
	clientCred []byte // of the latest update
	renew      []byte // N_S to ask a proof over at the next update
	activateIn uint64 // of the keying material, for a member with two phases
}

func newFakeGM(t testing.TB) *fakeGM {
	t.Helper()
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeGM{
		t: t, key: key, cred: cose.EncodeCCS("gm", key.Public()),
		cfg: groupcomm.DefaultGroupConfig("g1"), ns: []byte("challenge"), num: 5,
		stale: []groupcomm.SenderID{}, done: make(chan struct{}), want: make(chan struct{}, 16),
	}
}

func (g *fakeGM) transfer() *groupcomm.TokenTransferResponse {
	return &groupcomm.TokenTransferResponse{KDCChallenge: g.ns, SignInfo: []groupcomm.SignInfoEntry{g.cfg.SignInfo()}}
}

// params are what a node learns from this Group Manager.
func (g *fakeGM) params(t testing.TB) *params {
	t.Helper()
	p, err := announced(g.cfg.Name, []groupcomm.SignInfoEntry{g.cfg.SignInfo()}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func secretOf(v groupcomm.Version) []byte {
	b := make([]byte, 16)
	copy(b, "secret of ")
	b[15] = byte(v)
	return b
}

func gidOf(v groupcomm.Version) groupcomm.Gid { return groupcomm.Gid{0xb1, 0, byte(v >> 8), byte(v)} }

func (g *fakeGM) full(v groupcomm.Version) *groupcomm.KeyDistribution {
	k := g.cfg.KeyParams()
	k.MasterSecret, k.ContextID, k.Salt = secretOf(v), gidOf(v), []byte("salt")
	kd := &groupcomm.KeyDistribution{Key: k, Num: v, Profile: 1, Exi: 3600, ActivateIn: g.activateIn}
	if g.mgt != nil {
		scheme := groupcomm.SchemeMQTT
		kd.RekeyingScheme, kd.MgtKeyMaterial = &scheme, g.mgt.Encode()
	}
	return kd
}

func rekeyOf(v groupcomm.Version, stale ...groupcomm.SenderID) []byte {
	return (&groupcomm.RekeyMessage{MasterSecret: secretOf(v), ContextID: gidOf(v), Num: v, Exi: 3600, Stale: stale}).Encode()
}

func reply(code coap.Code, format coap.Format, body []byte) *coap.Response {
	r := &coap.Response{Code: code, Payload: body}
	if body != nil {
		r.Options.SetContentFormat(format)
	}
	return r
}

func (g *fakeGM) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lost {
		return nil, ErrLost
	}
	g.requests = append(g.requests, req.Clone())
	resp := g.serve(req)
	if g.spoil != nil {
		g.spoil(req, resp)
	}
	return resp, nil
}

func (g *fakeGM) serve(req *coap.Request) *coap.Response {
	path := req.Path()
	if len(path) < 2 || path[0] != "ace-group" || path[1] != g.cfg.Name {
		return reply(coap.Forbidden, 0, nil)
	}
	below := path[2:]
	if len(below) == 0 && req.Code == coap.POST {
		return g.join(req)
	}
	if !g.member {
		return coap.ErrorResponse(groupcomm.ErrNotMember)
	}
	switch {
	case len(below) == 0 && req.Code == coap.GET:
		if tag, ok := req.Options.Get(coap.ETag); ok {
			if _, observe := req.Observe(); !observe {
				g.held = append(g.held, versionOf(tag))
				if slices.Equal(tag, etag(g.num)) {
					return reply(coap.Valid, 0, nil)
				}
			}
		}
		r := reply(coap.Content, coap.ACEGroupcomm, g.full(g.num).Encode())
		r.Options.Add(coap.ETag, etag(g.num))
		return r
	case slices.Equal(below, []string{"num"}):
		return reply(coap.Content, coap.CBOR, groupcomm.EncodeNum(g.num))
	case slices.Equal(below, []string{"creds"}):
		c := &groupcomm.CredsResponse{Num: g.num}
		for _, p := range g.peers {
			c.Creds, c.PeerRoles, c.PeerIdentifiers = append(c.Creds, p.Cred), append(c.PeerRoles, p.Roles), append(c.PeerIdentifiers, p.SenderID)
		}
		return reply(coap.Content, coap.ACEGroupcomm, c.Encode())
	case slices.Equal(below, []string{"stale-sids"}):
		v, err := groupcomm.DecodeNum(req.Payload)
		if err != nil || v >= g.num {
			return reply(coap.BadRequest, 0, nil)
		}
		if g.stale == nil {
			return reply(coap.Content, 0, nil)
		}
		return reply(coap.Content, coap.CBOR, groupcomm.EncodeStaleIDs(g.stale))
	case len(below) == 3 && below[2] == "cred" && req.Code == coap.POST:
		u, err := groupcomm.DecodeCredUpdate(req.Payload)
		if err != nil {
			g.t.Errorf("credential update: %v", err)
			return reply(coap.BadRequest, 0, nil)
		}
		if g.renew != nil {
			g.ns, g.renew = g.renew, nil
			return reply(coap.BadRequest, coap.ACEGroupcomm, (&groupcomm.InfoBody{KDCChallenge: g.ns}).Encode())
		}
		key, err := cose.DecodeCCS(u.ClientCred)
		if err != nil || key.CheckAlg(g.cfg.SignAlg) != nil {
			return coap.ErrorResponse(groupcomm.ErrCredential)
		}
		if key.Verify(groupcomm.ClientPoPInput(g.scope, g.ns, u.CNonce), u.ClientCredVerify) != nil {
			return coap.ErrorResponse(groupcomm.ErrPoP)
		}
		g.clientCred = u.ClientCred
		return reply(coap.Changed, 0, nil)
	case len(below) == 1 && below[0] == "active":
		return reply(coap.Content, coap.CBOR, groupcomm.EncodeActive(true))
	case len(below) == 2 && below[0] == "nodes" && req.Code == coap.DELETE:
		g.member = false
		return reply(coap.Deleted, 0, nil)
	}
	return reply(coap.NotFound, 0, nil)
}

func (g *fakeGM) info(ns []byte) *coap.Response {
	body := &groupcomm.InfoBody{SignInfo: []groupcomm.SignInfoEntry{g.cfg.SignInfo()}, KDCChallenge: ns}
	return reply(coap.BadRequest, coap.ACEGroupcomm, body.Encode())
}

func (g *fakeGM) join(req *coap.Request) *coap.Response {
	if len(req.Payload) == 0 {
		return g.info(nil)
	}
	j, err := groupcomm.DecodeJoinRequest(req.Payload)
	if err != nil {
		g.t.Errorf("join request: %v", err)
		return g.info(nil)
	}
	scope, err := groupcomm.DecodeScopeEntry(j.Scope)
	if err != nil || scope.Group != g.cfg.Name {
		g.t.Errorf("scope %v: %v", scope, err)
	}
	again := g.member && j.ClientCredVerify == nil
	if scope.Roles != groupcomm.Monitor && !again {
		key, err := cose.DecodeCCS(j.ClientCred)
		if err != nil {
			g.t.Errorf("client_cred: %v", err)
			return g.info(nil)
		}
		if key.Verify(groupcomm.ClientPoPInput(j.Scope, g.ns, j.CNonce), j.ClientCredVerify) != nil {
			return coap.ErrorResponse(groupcomm.ErrPoP)
		}
	}
	g.joins++
	g.scope = j.Scope
	kd := g.full(g.num)
	if scope.Roles != groupcomm.Monitor {
		kd.Key.SenderID = groupcomm.SenderID{byte(0x24 + g.joins)}
	}
	if j.GetCreds != nil {
		kd.Creds, kd.PeerRoles, kd.PeerIdentifiers = [][]byte{}, []groupcomm.Roles{}, []groupcomm.SenderID{}
		for _, p := range g.peers {
			kd.Creds, kd.PeerRoles, kd.PeerIdentifiers = append(kd.Creds, p.Cred), append(kd.PeerRoles, p.Roles), append(kd.PeerIdentifiers, p.SenderID)
		}
	}
	if j.Delivery != nil && g.mgt != nil {
		scheme := groupcomm.SchemeMQTT
		kd.RekeyingScheme, kd.MgtKeyMaterial = &scheme, g.mgt.Encode()
	}
	kd.KDCCred, kd.KDCNonce = g.cred, []byte("nonce of kdc")
	if kd.KDCCredVerify, err = g.key.Sign(groupcomm.KDCPoPInput(j.CNonce, kd.KDCNonce)); err != nil {
		g.t.Error(err)
	}
	if g.spoof != nil {
		g.spoof(kd)
	}
	r := reply(coap.Created, coap.ACEGroupcomm, kd.Encode())
	for _, s := range []string{"ace-group", g.cfg.Name, "nodes", "n7"} {
		r.Options.AddString(coap.LocationPath, s)
	}
	g.member = true
	return r
}

func versionOf(tag []byte) (v groupcomm.Version) {
	for _, b := range tag {
		v = v<<8 | uint64(b)
	}
	return v
}

func (g *fakeGM) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	resp, err := g.Do(ctx, req)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	toNode := slices.Contains(req.Path(), "nodes")
	if toNode {
		resp = reply(coap.Content, 0, nil)
	}
	if resp.Code.IsSuccess() {
		resp.Options.SetUint(coap.ObserveOption, 1)
	}
	if toNode {
		g.node = fn
	} else {
		g.group = fn
	}
	g.mu.Unlock()
	if !toNode || !silent(req) {
		fn(resp)
	}
	if !toNode {
		g.want <- struct{}{}
	}
	return func(context.Context) error { return nil }, nil
}

// notify sends a notification to the observer of the group.
func (g *fakeGM) notify(r *coap.Response) {
	g.mu.Lock()
	fn := g.group
	g.mu.Unlock()
	if r.Code.IsSuccess() {
		r.Options.SetUint(coap.ObserveOption, 2)
	}
	fn(r)
}

// rekey moves the group on and notifies.
func (g *fakeGM) rekey(v groupcomm.Version, stale ...groupcomm.SenderID) {
	g.mu.Lock()
	g.num = v
	g.mu.Unlock()
	g.notify(reply(coap.Content, coap.ACEGroupcomm, rekeyOf(v, stale...)))
}

func (g *fakeGM) lose() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = true
	close(g.done)
}

func (g *fakeGM) Done() <-chan struct{} { return g.done }

func (g *fakeGM) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return nil
}

func (g *fakeGM) peer(id byte, roles groupcomm.Roles) Peer {
	key, err := cose.GenerateKey(g.cfg.SignAlg)
	if err != nil {
		g.t.Fatal(err)
	}
	p := Peer{SenderID: groupcomm.SenderID{id}, Roles: roles, Cred: cose.EncodeCCS("peer", key.Public()), Key: key.Public()}
	g.peers = append(g.peers, p)
	return p
}

// joinedMember is a member of g with what events it told.
// maxTestEvents stops a test whose node tries again for ever: in fake time that
// costs no time, but all memory.
const maxTestEvents = 10_000

func joinedMember(t testing.TB, g *fakeGM, change func(*Config)) (*Member, *[]Event) {
	t.Helper()
	var mu sync.Mutex
	events := &[]Event{}
	cfg := Config{
		Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder, Transfer: g.transfer(), WantCreds: true,
		OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if *events = append(*events, e); len(*events) > maxTestEvents {
				panic(fmt.Sprintf("node: a test runs away: %+v", e))
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m, events
}

func state(t testing.TB, m *Member) State {
	t.Helper()
	s, ok := m.State()
	if !ok {
		t.Fatal("no state")
	}
	return s
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON(t testing.TB, file string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
