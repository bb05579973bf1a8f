package plugin

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/test/ports"
)

// revocations is a TRL endpoint behind a stock go-coap server: full queries
// with Observe (RFC 9770, Section 11).
type revocations struct {
	mu       sync.Mutex
	hashes   [][]byte
	observer mux.Conn
	token    message.Token
	seq      uint32
	queries  int
}

func (r *revocations) bodyLocked() []byte {
	set := r.hashes
	if set == nil {
		set = [][]byte{}
	}
	return cose.MustMarshal(map[int64]any{0: set})
}

func (r *revocations) ServeCOAP(w mux.ResponseWriter, req *mux.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if path, err := req.Path(); err != nil || path != "/revoke/trl" || req.Code() != codes.GET {
		_ = w.SetResponse(codes.NotFound, message.TextPlain, nil)
		return
	}
	r.queries++
	_ = w.SetResponse(codes.Content, message.MediaType(coap.ACETRL), bytes.NewReader(r.bodyLocked()))
	if obs, err := req.Options().Observe(); err == nil && obs == 0 {
		r.seq++
		w.Message().SetObserve(r.seq)
		r.observer, r.token = w.Conn(), bytes.Clone(req.Token())
	}
}

// revoke lists hashes and notifies the observer, if there is one.
func (r *revocations) revoke(t *testing.T, hashes ...[]byte) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hashes = append(r.hashes, hashes...)
	if r.observer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m := r.observer.AcquireMessage(ctx)
	defer r.observer.ReleaseMessage(m)
	m.SetCode(codes.Content)
	m.SetToken(r.token)
	r.seq++
	m.SetObserve(r.seq)
	m.SetContentFormat(message.MediaType(coap.ACETRL))
	m.SetBody(bytes.NewReader(r.bodyLocked()))
	if err := r.observer.WriteMessage(m); err != nil {
		t.Error(err)
	}
}

func (r *revocations) observed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.observer != nil
}

// deaf forgets the observer, as a server that restarted does.
func (r *revocations) deaf() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.observer = nil
}

// RFC 9770 over CoAPS: whoever is listed is no member any more, whoever was
// listed before it came does not come in.
func TestRevocationOverCoAPS(t *testing.T) {
	t.Parallel()
	list := &revocations{}
	for i := range 100 { // of other nodes: the list takes several blocks
		list.hashes = append(list.hashes, cwt.Hash([]byte{byte(i)}))
	}
	at, stopList := serveCoAPS(t, ports.Addr(t), "rs2", keyRS, list)
	c := authority(t)
	c.Tokens[0].Revocation = config.Revocation{
		URI: "coaps://" + at + "/revoke/trl", Identity: "rs2", KeyFile: keyFile(t, keyRS), Interval: time.Hour,
	}
	group := config.DefaultGroup()
	group.Name = "g1"
	c.Groups = []config.Group{group}
	rs, _ := running(t, c)
	door, _ := serveGateway(t, "127.0.0.1:0", rs)
	eventually(t, "the list is observed", list.observed)

	join := func() (*node.Access, *node.Member) {
		a := tokenOf(t, door)
		client, err := node.DialDTLS(t.Context(), door, []byte("clientF"), keyF)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		info, err := node.PostToken(t.Context(), client, a)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := node.DialDTLS(t.Context(), door, a.Identity(), a.Key.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		m, err := node.New(node.Config{Group: "g1", Roles: groupcomm.Requester, Transfer: info}, tr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		if err := m.Join(t.Context()); err != nil {
			t.Fatal(err)
		}
		return a, m
	}
	members := func() int {
		list, err := rs.rooms.Load().groups.(*gm.Manager).Members(t.Context(), "g1")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	bad, badMember := join()
	_, goodMember := join()
	unused := tokenOf(t, door)
	if n := members(); n != 2 {
		t.Fatalf("%d members", n)
	}
	list.revoke(t, cwt.Hash(bad.Token), cwt.Hash(unused.Token))
	eventually(t, "the member is evicted", func() bool { return members() == 1 })
	if _, err := badMember.Num(t.Context()); err == nil {
		t.Error("its requests are served")
	}
	if _, err := goodMember.Num(t.Context()); err != nil {
		t.Errorf("the other member: %v", err)
	}
	for _, a := range []*node.Access{bad, unused} {
		if got := postTo(t, rs, a.Token); got != coap.Unauthorized {
			t.Errorf("a listed token: %v", got)
		}
		if _, err := rs.psk(a.Token); err == nil {
			t.Error("a listed token in psk_identity is accepted")
		}
	}

	// The server goes away and comes back; what it listed meanwhile counts.
	third, _ := join()
	stopList()
	list.deaf()
	list.revoke(t, cwt.Hash(third.Token))
	serveCoAPS(t, at, "rs2", keyRS, list)
	eventually(t, "the third is evicted", func() bool { return members() == 1 })
	eventually(t, "the list is observed again", list.observed)
}

// The list of the embedded Authorization Server, followed by another gateway: a
// token that the operator revokes at the one admits nobody at the other.
func TestRevocationServed(t *testing.T) {
	t.Parallel()
	as, _ := running(t, authority(t))
	at, _ := serveGateway(t, "127.0.0.1:0", as)

	c := config.Default()
	c.Listen.CoAPS = ""
	c.AuthorizationServer.Enabled = false
	c.Tokens = []config.Token{{
		Issuer: "as1", Audience: "rs2", ASURI: "coaps://" + at + "/token",
		Introspect: config.Introspect{URI: "coaps://" + at + "/introspect", Identity: "rs2", KeyFile: keyFile(t, keyRS)},
		Revocation: config.Revocation{URI: "coaps://" + at + "/revoke/trl", Identity: "rs2", KeyFile: keyFile(t, keyRS), Interval: time.Hour},
	}}
	g := config.DefaultGroup()
	g.Name = "g1"
	c.Groups = []config.Group{g}
	rs, _ := running(t, c)
	eventually(t, "the list is observed", func() bool { return metricOfList(t, as, "full") })

	stored, unseen := tokenOf(t, at), tokenOf(t, at)
	if got := postTo(t, rs, stored.Token); got != coap.Created {
		t.Fatalf("a token of the AS: %v", got)
	}
	if _, err := as.rooms.Load().access.(*ace.Server).RevokeTokens(t.Context(), stored.Token, unseen.Token); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is ended", func() bool {
		_, err := rs.psk(stored.Identity())
		return err != nil
	})
	for _, a := range []*node.Access{stored, unseen} {
		if got := postTo(t, rs, a.Token); got != coap.Unauthorized {
			t.Errorf("a listed token: %v", got)
		}
	}
	// The client sees its own part as well.
	for identity, key := range map[string][]byte{"clientF": keyF, "rs2": keyRS} {
		tr, err := node.DialDTLS(t.Context(), at, []byte(identity), key)
		if err != nil {
			t.Fatal(err)
		}
		req := &coap.Request{Code: coap.GET}
		req.Options.SetPath("revoke", "trl")
		r, err := tr.Do(t.Context(), req)
		if err != nil || r.Code != coap.Content || bytes.Count(r.Payload, []byte{0x58, 0x21, 1}) != 2 {
			t.Errorf("%s: %v, %v", identity, r, err)
		}
		_ = tr.Close()
	}
}

// metricOfList says whether the list was asked for.
func metricOfList(t *testing.T, g *Gateway, kind string) bool {
	t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "groupgate_ace_trl_queries_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind && m.GetCounter().GetValue() > 0 {
				return true
			}
		}
	}
	return false
}
