package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// oscoreToken is a token of the OSCORE profile.
func (d *door) oscoreToken(edit ...func(*node.TokenRequest)) *node.Access {
	d.t.Helper()
	r := node.TokenRequest{Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}}, OSCORE: true}
	for _, e := range edit {
		e(&r)
	}
	a, err := node.RequestToken(soon(d.t), d.dial([]byte(d.client.Identity), d.client.Key.Bytes()), r)
	if err != nil {
		d.t.Fatal(err)
	}
	return a
}

// dialOSCORE posts a token and makes a Security Context of it.
func (d *door) dialOSCORE(a *node.Access) (node.Transport, *groupcomm.TokenTransferResponse) {
	d.t.Helper()
	tr, info, err := node.DialOSCORE(soon(d.t), d.coap, a)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = tr.Close() })
	return tr, info
}

// joinOSCORE takes a node all the way from token to membership.
func (d *door) joinOSCORE(edit ...func(*node.Config)) (*member, node.Transport) {
	d.t.Helper()
	a := d.oscoreToken()
	tr, info := d.dialOSCORE(a)
	cfg := d.config(a)
	cfg.Transfer = info
	cfg.Redial = func(ctx context.Context) (node.Transport, error) {
		tr, _, err := node.DialOSCORE(ctx, d.coap, a)
		return tr, err
	}
	for _, e := range edit {
		e(&cfg)
	}
	m, err := node.New(cfg, tr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = m.Close() })
	if err := m.Join(soon(d.t)); err != nil {
		d.t.Fatalf("join: %v", err)
	}
	return &member{Member: m, t: d.t, d: d, access: a}, tr
}

// current waits until the gateway knows that its only member has a version, by a
// channel.
func (g *gateway) current(version groupcomm.Version, channel string) {
	g.t.Helper()
	eventually(g.t, "the gateway knows who has the version", func() bool {
		for _, mb := range g.show().Members {
			if mb.State == "current" && mb.Version == version && mb.Channel == channel {
				return true
			}
		}
		return false
	})
}

// TestOSCORE: a member over OSCORE sees rekeys by observation, is known to have
// them only when it shows that, and learns of its eviction.
func TestOSCORE(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{config.EndpointOwn, config.EndpointStock} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			observeOSCORE(t, serve(t, func(c *config.Config) { c.Endpoint.Kind = kind }))
		})
	}
}

func observeOSCORE(t *testing.T, g *gateway) {
	m, _ := g.joinOSCORE()
	if _, err := m.Num(soon(t)); err != nil {
		t.Fatal(err)
	}
	m.follow()
	eventually(t, "the group is observed", func() bool { return g.show().Members[0].Channel == "observe" })
	for range 3 {
		version := g.rekey()
		m.reaches(version)
		g.current(version, "observe")
	}
	if _, err := g.admin.Evict(soon(t), group, []string{m.state().Node}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node knows that it is out", func() bool {
		_, ok := m.State()
		return !ok
	})
}

// TestOSCORELeave: a member leaves over OSCORE, and another joins by the same
// token.
func TestOSCORELeave(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m, tr := g.joinOSCORE()
	if err := m.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	if n := len(g.show().Members); n != 0 {
		t.Errorf("%d members", n)
	}
	if r := ask(t, tr, coap.GET, []string{"ace-group", group}, 0, nil); r.Code != coap.Forbidden {
		t.Errorf("%v", r.Code)
	}
}

// TestOSCOREExpires: when the token ends the observers are told, and the context
// with it.
func TestOSCOREExpires(t *testing.T) {
	t.Parallel()
	g := serve(t, func(c *config.Config) { c.AuthorizationServer.Policies[0].Lifetime = 4 * time.Second })
	m, tr := g.joinOSCORE()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.Follow(ctx); !errors.Is(err, node.ErrUnauthorized) {
		t.Errorf("follow: %v", err)
	}
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group)
	if r, err := tr.Do(soon(t), req); !errors.Is(err, node.ErrLost) {
		t.Errorf("with the context of a token that has expired: %v, %v", r, err)
	}
}

// TestOSCOREControlURI: requests of the gateway go the same way back, protected
// by the same context.
func TestOSCOREControlURI(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{config.EndpointOwn, config.EndpointStock} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			controlOSCORE(t, serve(t, func(c *config.Config) { c.Endpoint.Kind = kind }))
		})
	}
}

func controlOSCORE(t *testing.T, g *gateway) {
	m, _ := g.joinOSCORE(func(c *node.Config) { c.ControlURI = "coap://node.example/grp-rek" })
	for range 2 {
		version := g.rekey()
		m.reaches(version)
		g.current(version, "control")
	}
	if _, err := g.admin.Evict(soon(t), group, []string{m.state().Node}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node knows that it is out", func() bool {
		_, ok := m.State()
		return !ok
	})
}

// TestOSCOREAgain: posting a token again makes a context that replaces the one in
// use with its first request, and not before: anybody may post.
func TestOSCOREAgain(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m, tr := g.joinOSCORE()
	for range 6 {
		if _, _, err := node.SetUpOSCORE(soon(t), g.plain(), m.access); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Num(soon(t)); err != nil {
		t.Fatalf("after posts of a stranger: %v", err)
	}
	again, _ := g.dialOSCORE(m.access)
	if _, err := m.Num(soon(t)); err != nil {
		t.Fatalf("before the first request of the new context: %v", err)
	}
	// It is the same member, whatever context it speaks with.
	if r := ask(t, again, coap.GET, []string{"ace-group", group, "nodes", m.state().Node}, 0, nil); r.Code != coap.Content {
		t.Fatalf("%v", r.Code)
	}
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group, "num")
	if r, err := tr.Do(soon(t), req); !errors.Is(err, node.ErrLost) {
		t.Errorf("with the context of before: %v, %v", r, err)
	}
	if err := m.Reconnect(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Num(soon(t)); err != nil {
		t.Error(err)
	}
}

// TestOSCOREUpdate: new rights come in a token that names the material, posted
// with the context that was made of it, which stays.
func TestOSCOREUpdate(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m, tr := g.joinOSCORE()
	other := g.oscoreToken()
	update := func(of *node.Access, roles groupcomm.Roles) *node.Access {
		return g.oscoreToken(func(r *node.TokenRequest) {
			r.Update, r.Scope = of, groupcomm.Scope{{Group: group, Roles: roles}}
		})
	}
	var refused *node.Error
	if err := node.UpdateRights(soon(t), tr, update(other, both)); !errors.As(err, &refused) || refused.Code != coap.Unauthorized {
		t.Errorf("token for other material: %v", err)
	}
	if err := node.UpdateRights(soon(t), tr, other); !errors.As(err, &refused) || refused.Code != coap.Unauthorized {
		t.Errorf("token with other material: %v", err)
	}
	fewer := update(m.access, groupcomm.Requester)
	if err := node.UpdateRights(soon(t), tr, fewer); err != nil {
		t.Fatal(err)
	}
	// The roles that it has are more than it may have now.
	if err := m.Rejoin(soon(t)); !errors.As(err, &refused) || refused.Code != coap.Forbidden {
		t.Errorf("join with roles that were taken away: %v", err)
	}
	if err := node.UpdateRights(soon(t), tr, update(m.access, both)); err != nil {
		t.Fatal(err)
	}
	if err := m.Rejoin(soon(t)); err != nil {
		t.Error(err)
	}
}

// TestOSCOREInside: OSCORE works inside of DTLS as well, whoever's DTLS that is.
func TestOSCOREInside(t *testing.T) {
	t.Parallel()
	g := serve(t)
	a := g.oscoreToken()
	outer := g.as(g.posted())
	setup, _, err := node.SetUpOSCORE(soon(t), outer, a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := oscore.New(setup.ClientParams())
	if err != nil {
		t.Fatal(err)
	}
	m := &coap.Message{Code: coap.POST}
	m.Options.SetPath("ace-group", group)
	p, ex, err := c.ProtectRequest(t.Context(), nil, m)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := outer.Do(soon(t), &coap.Request{Code: p.Code, Options: p.Options, Payload: p.Payload})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := c.UnprotectResponse(nil, &ex, &coap.Message{Code: resp.Code, Options: resp.Options, Payload: resp.Payload})
	if err != nil {
		t.Fatal(err)
	}
	if f, _ := inner.Options.ContentFormat(); inner.Code != coap.BadRequest || f != coap.ACEGroupcomm {
		t.Errorf("an empty Join Request: %v in format %d", inner.Code, f)
	}
}

// posted is a token of the DTLS profile that was posted.
func (d *door) posted() *node.Access {
	d.t.Helper()
	a := d.token()
	d.post(a)
	return a
}

// TestOSCOREMethods: whatever a peer asks for, over OSCORE it is told the same as
// over DTLS.
func TestOSCOREMethods(t *testing.T) {
	t.Parallel()
	g := serve(t, func(c *config.Config) { c.Limits.PerPeerRPS = 1000 })
	a := g.join()
	b, protected := g.joinOSCORE()
	stranger := g.as(g.posted())
	strange, _ := g.dialOSCORE(g.oscoreToken())
	for _, p := range []struct {
		name           string
		dtls, oscore   node.Transport
		ownA, ownB     string
		othersA, other string
	}{
		{"member", a.wire, protected, a.state().Node, b.state().Node, b.state().Node, a.state().Node},
		{"other", stranger, strange, a.state().Node, b.state().Node, b.state().Node, a.state().Node},
	} {
		for _, path := range [][]string{
			{"ace-group"}, {"ace-group", "absent"}, {"ace-group", group}, {"ace-group", group, "creds"}, {"ace-group", group, "kdc-cred"},
			{"ace-group", group, "verif-data"}, {"ace-group", group, "policies"}, {"ace-group", group, "num"}, {"ace-group", group, "active"},
			{"ace-group", group, "stale-sids"}, {"ace-group", group, "nodes", "OWN"}, {"ace-group", group, "nodes", "OTHER"},
			{"ace-group", group, "nodes", "OWN", "cred"}, {"ace-group", group, "nodes", "absent"}, {"token"}, {"introspect"}, {"unknown"}, {"gw", "me"},
		} {
			for code := coap.GET; code <= coap.IPATCH; code++ {
				if code == coap.DELETE && slices.Contains(path, "OWN") && p.name == "member" {
					continue // it would leave
				}
				with := func(own, other string) []string {
					out := slices.Clone(path)
					for i := range out {
						switch out[i] {
						case "OWN":
							out[i] = own
						case "OTHER":
							out[i] = other
						}
					}
					return out
				}
				want := ask(t, p.dtls, code, with(p.ownA, p.othersA), 0, nil)
				got := ask(t, p.oscore, code, with(p.ownB, p.other), 0, nil)
				wantFormat, _ := want.Options.ContentFormat()
				gotFormat, _ := got.Options.ContentFormat()
				if got.Code != want.Code || gotFormat != wantFormat {
					t.Errorf("%s: %v %v: %v in format %d, over DTLS %v in format %d", p.name, code, path, got.Code, gotFormat, want.Code, wantFormat)
				}
			}
		}
	}
}

// TestOSCOREOutlives: observations under OSCORE, over plain UDP, go on after a stop and
// after a kill -9 of the gateway, though the node never asks: it would do so after an
// hour only.
func TestOSCOREOutlives(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	p := s.join("n1", "--oscore", "--poll", "1h")
	// Told of a rekey by its first look instead, it would not have to show the version.
	eventually(t, "the node observes", func() bool { return metric(t, s, "groupgate_serve_observations") == 2 })
	version := uint64(0)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGKILL} {
		version = s.rekey()
		p.holds(version)
		// A request that is under way when the gateway ends is lost, and the node makes
		// another context. Told of a rekey it shows the version; challenged for that, it
		// gives up its two observations and makes them anew: five requests.
		eventually(t, "the node asks no more", func() bool {
			return metric(t, s, `groupgate_oscore_requests_total{result="served"}`) >= 5 && metric(t, s, "groupgate_serve_observations") == 2
		})
		gw.signal(sig)
		gw = s.run()
	}
	version = s.rekey()
	p.holds(version)
	eventually(t, "the gateway knows who has the version", func() bool {
		i := s.show()
		return len(i.Members) == 1 && i.Members[0].Version == version
	})
	for _, e := range p.steps() {
		if e.Event == "reconnected" {
			t.Error("the node made another context")
		}
	}
}

// TestOSCORERestart: the gateway is killed, and keeps no observations; the node goes on
// with the same context, by Echo, and is told of rekeys again.
func TestOSCORERestart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.more = "endpoint: {persist_sessions: false}\n"
	s.configure()
	gw := s.run()
	p := s.join("n1", "--oscore", "--poll", "1s")
	run(t, 0, "group", "rekey", "sensors", "--config", s.config)
	p.holds(1)
	gw.signal(syscall.SIGKILL)
	s.run()
	// Only who is told anew observes again.
	p.event(func(e step) bool { return e.Error != "" })
	run(t, 0, "group", "rekey", "sensors", "--config", s.config)
	if e := p.holds(2); e.Gid == "" {
		t.Error("no Gid")
	}
	eventually(t, "the gateway knows who has the version", func() bool {
		i := s.show()
		return len(i.Members) == 1 && i.Members[0].Version == 2
	})
	for _, e := range p.steps() {
		if e.Event == "reconnected" {
			t.Error("the node made another context")
		}
	}
}

// raw is a client that sends datagrams as they are.
type raw struct {
	t    *testing.T
	conn net.Conn
	id   uint16
}

// send sends a message and waits for its answer.
func (r *raw) send(m *coap.Message) *coap.Message {
	r.t.Helper()
	r.id++
	out := *m
	out.Type, out.ID = coap.Confirmable, r.id
	out.Token = binary.BigEndian.AppendUint16(nil, r.id)
	b, err := out.MarshalBinary()
	if err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for range 20 {
		if _, err := r.conn.Write(b); err != nil {
			r.t.Fatal(err)
		}
		if err := r.conn.SetReadDeadline(time.Now().Add(patience / 20)); err != nil {
			r.t.Fatal(err)
		}
		for {
			n, err := r.conn.Read(buf)
			if err != nil {
				break // once more
			}
			if got, err := coap.DecodeMessage(buf[:n]); err == nil && bytes.Equal(got.Token, out.Token) {
				return got.Clone()
			}
		}
	}
	r.t.Fatal("no answer")
	return nil
}

// TestOSCOREKilled: a gateway that is killed again and again protects no two
// messages with one nonce and serves no request twice.
func TestOSCOREKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	d := s.door()
	a := d.oscoreToken()
	setup, _, err := node.SetUpOSCORE(soon(t), d.plain(), a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := oscore.New(setup.ClientParams())
	if err != nil {
		t.Fatal(err)
	}
	nonces := map[string][]byte{}
	note := func(piv []byte, r *coap.Message) {
		v, ok := r.Options.Get(coap.OSCOREOption)
		if !ok {
			return
		}
		o, err := oscore.DecodeOption(v)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("own %x", o.PIV)
		if o.PIV == nil {
			key = fmt.Sprintf("of the request %x", piv)
		}
		if before, ok := nonces[key]; ok && !bytes.Equal(before, r.Payload) {
			t.Errorf("nonce %s protects two messages", key)
		}
		nonces[key] = bytes.Clone(r.Payload)
	}
	type caught struct {
		m   *coap.Message
		piv []byte
		ex  oscore.Exchange
	}
	var past []caught
	for life := range 3 {
		r := &raw{t: t, conn: udp(t, s.at["coap"])}
		for _, p := range past {
			answer := r.send(p.m)
			note(p.piv, answer)
			ex := p.ex
			inner, err := c.UnprotectResponse(nil, &ex, answer)
			if err == nil && (inner.Code != coap.Unauthorized || !inner.Options.Has(coap.Echo)) {
				t.Errorf("life %d: a request of before is answered %v", life, inner.Code)
			}
		}
		var echo []byte
		for i := range 5 {
			m := &coap.Message{Code: coap.POST}
			m.Options.SetPath("ace-group", group)
			if echo != nil {
				m.Options.Set(coap.Echo, echo)
			}
			p, ex, err := c.ProtectRequest(t.Context(), nil, m)
			if err != nil {
				t.Fatal(err)
			}
			p = p.Clone()
			v, _ := p.Options.Get(coap.OSCOREOption)
			o, err := oscore.DecodeOption(v)
			if err != nil {
				t.Fatal(err)
			}
			past = append(past, caught{p, bytes.Clone(o.PIV), ex})
			answer := r.send(p)
			note(o.PIV, answer)
			inner, err := c.UnprotectResponse(nil, &ex, answer)
			if err != nil {
				t.Fatalf("life %d, request %d: %v %v", life, i, answer.Code, err)
			}
			challenged := inner.Code == coap.Unauthorized
			if challenged != (life > 0 && i == 0) {
				t.Errorf("life %d, request %d: %v", life, i, inner.Code)
			}
			if challenged {
				echo, _ = inner.Options.Get(coap.Echo)
				echo = bytes.Clone(echo)
			}
		}
		gw.signal(syscall.SIGKILL)
		gw = s.run()
	}
	if len(nonces) < 15 {
		t.Errorf("%d nonces", len(nonces))
	}
}

// TestOSCORETokenByHand: a token of the OSCORE profile that an operator issued admits
// who has its input material, and the group shows by which profile members came.
func TestOSCORETokenByHand(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.run()
	c := run(t, 0, "token", "issue", "--oscore", "--json", "--scope", "sensors=requester,responder", "--config", s.config)
	info := decode[admin.TokenInfo](t, c.out.String())
	token, err1 := hex.DecodeString(info.AccessToken)
	encoded, err2 := hex.DecodeString(info.Material)
	if err1 != nil || err2 != nil || info.Key != "" {
		t.Fatalf("issued %s", &c.out)
	}
	material, err := oscore.DecodeMaterial(encoded)
	if err != nil || hex.EncodeToString(material.ID) != info.KID {
		t.Fatalf("material %x: %v", material.ID, err)
	}
	link, transfer, err := node.DialOSCORE(soon(t), s.at["coap"], &node.Access{Token: token, Material: material})
	if err != nil {
		t.Fatal(err)
	}
	m, err := node.New(node.Config{Group: "sensors", Roles: groupcomm.Requester | groupcomm.Responder, Transfer: transfer}, link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if err := m.Join(soon(t)); err != nil {
		t.Fatal(err)
	}
	s.join("over DTLS")
	vias := map[string]int{}
	for _, member := range s.show().Members {
		vias[member.Via]++
	}
	if len(vias) != 2 || vias["oscore"] != 1 || vias[""] != 1 {
		t.Errorf("members by profile: %v", vias)
	}
}
