package plugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// delegatePeers adds to the Authorization Server what delegates need: the keys of the
// legacy nodes' associations, which give no right there, and for each delegate a client
// of the embedded server, with a key that nobody has and the rights that its groups
// take. Whoever writes the configuration decided about them.
func (g *Gateway) delegatePeers(out *ace.Config) error {
	c := g.cfg
	for _, d := range c.Delegates {
		if d.Auth.PSKIdentity != "" {
			out.PSK = append(out.PSK, ace.PSKPeer{Identity: []byte(d.Auth.PSKIdentity), Key: d.Auth.Key})
		}
		client, known := config.DelegateClient(d.Name), false
		for _, m := range d.Groups {
			group := c.Group(m.Name)
			if group.Upstream.AS != "" {
				continue
			}
			roles, err := groupcomm.ParseRoles(joined(m.Roles))
			if err != nil {
				return fmt.Errorf("delegate %s in %q: %w", d.Name, m.Name, err)
			}
			if !known {
				key := make([]byte, 32)
				rand.Read(key)
				out.PSK = append(out.PSK, ace.PSKPeer{Identity: []byte(client), Key: cose.NewSecret(key), MayToken: true})
				known = true
			}
			out.AS.Policies = append(out.AS.Policies, ace.Policy{
				Client: client, Audience: c.DelegateAudience(group), Lifetime: config.DelegateLifetime,
				Scope: groupcomm.Scope{{Group: m.Name, Roles: roles}},
			})
		}
	}
	return nil
}

// delegateConfig translates the section delegates.
func (g *Gateway) delegateConfig() (delegate.Config, error) {
	c := g.cfg
	out := delegate.Config{Groups: map[string]delegate.Group{}}
	for _, d := range c.Delegates {
		n := delegate.Node{
			Name: d.Name, Client: config.DelegateClient(d.Name), Sleepy: d.Sleepy, Awake: d.Awake, Hold: d.Hold, RPS: d.RPS, Topic: d.MQTTTopic,
		}
		switch a := d.Auth; {
		case a.PSKIdentity != "":
			n.Subject = coap.Subject{Kind: coap.SubjectPSK, ID: a.PSKIdentity}
		case a.CertSHA256 != "":
			sum, err := hex.DecodeString(a.CertSHA256)
			if err != nil {
				return out, err
			}
			n.Subject = coap.Subject{Kind: coap.SubjectKeyHash, ID: string(sum)}
		case a.InsecureAddress != "":
			at, err := netip.ParseAddrPort(a.InsecureAddress)
			if err != nil {
				return out, err
			}
			n.Insecure = at
		}
		for _, m := range d.Groups {
			membership, err := delegateMembership(m)
			if err != nil {
				return out, fmt.Errorf("delegate %s in %q: %w", d.Name, m.Name, err)
			}
			n.Groups = append(n.Groups, membership)
			if _, known := out.Groups[m.Name]; known {
				continue
			}
			if out.Groups[m.Name], err = delegateGroup(c, c.Group(m.Name)); err != nil {
				return out, err
			}
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

func delegateMembership(m config.DelegateGroup) (delegate.Membership, error) {
	roles, err := groupcomm.ParseRoles(joined(m.Roles))
	out := delegate.Membership{Group: m.Name, Roles: roles, Listen: m.Listen, Resources: map[string][]coap.Code{}}
	if m.SendPath != "" {
		out.SendPath = coap.PathOf(m.SendPath)
	}
	for _, r := range m.Resources {
		for _, name := range r.Methods {
			for code := coap.GET; code <= coap.IPATCH; code++ {
				if code.String() == name {
					out.Resources[r.Path] = append(out.Resources[r.Path], code)
				}
			}
		}
	}
	return out, err
}

func delegateGroup(c *config.Config, gr *config.Group) (delegate.Group, error) {
	out := delegate.Group{
		Name: gr.Name, Audience: c.DelegateAudience(gr),
		Interface: gr.Network.Interface, Leisure: gr.Network.Leisure, Collect: gr.Network.Collect,
	}
	if !gr.Local() {
		out = out.At(gr.GM)
	}
	if gr.Network.Multicast != "" {
		at, err := netip.ParseAddrPort(gr.Network.Multicast)
		if err != nil {
			return out, err
		}
		out.Multicast = at
	}
	if u := gr.Upstream; u.AS != "" {
		at, err := url.Parse(u.AS)
		if err != nil {
			return out, err
		}
		port := at.Port()
		if port == "" {
			port = "5684"
		}
		out.AS = &delegate.Server{Addr: net.JoinHostPort(at.Hostname(), port), Identity: u.Identity, Key: u.Key}
	}
	return out, nil
}

// forGroup says whether requests with a path are those of legacy nodes to a group.
func (g *Gateway) forGroup(path []string) bool {
	for _, d := range g.cfg.Delegates {
		for _, m := range d.Groups {
			if p := coap.PathOf(m.SendPath); m.SendPath != "" && len(path) >= len(p) && slices.Equal(path[:len(p)], p) {
				return true
			}
		}
	}
	return false
}

// delegates runs the room, and the sockets of insecure nodes.
func (b *built) delegates(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.delegate.Run(ctx) })
	for _, d := range b.g.cfg.Delegates {
		if d.Auth.Listen == "" {
			continue
		}
		conn, err := listenOn(ctx, d.Auth.Interface, d.Auth.Listen)
		if err != nil {
			g.Go(func() error { return fmt.Errorf("delegates: %s: auth.listen: %w", d.Name, err) })
			break
		}
		b.g.log.InfoContext(ctx, "insecure node is served", "delegate", d.Name, "interface", d.Auth.Interface, "addr", conn.LocalAddr())
		front := &insecureFront{gate: front{b.g}}
		at, _ := netip.ParseAddrPort(d.Auth.InsecureAddress) // validated
		front.server = serve.New(coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
			from := netip.AddrPortFrom(req.Peer.Addr.Addr().Unmap(), req.Peer.Addr.Port())
			if from != at {
				from = netip.AddrPort{} // another node's address proves nothing on this interface
			}
			return b.delegate.ServeInsecure(ctx, from, req)
		}), serve.Config{PerPeerRPS: d.RPS, Log: b.g.log.With("part", "delegate")})
		g.Go(func() error { return front.server.Run(ctx) })
		e := endpoint.New(endpoint.UDP(conn), endpoint.Config{Server: front, Context: b.g.stopped, MaxSessions: maxInsecure, Log: b.g.log.With("part", "delegate")})
		g.Go(func() error { return e.Run(ctx) })
	}
	return g.Wait()
}

// maxInsecure bounds the addresses that the socket of an insecure node keeps state for.
const maxInsecure = 64

// insecureFront is what the socket of an insecure node leads to: nothing of the gateway
// but its delegate.
type insecureFront struct {
	gate   front
	server *serve.Server
}

var _ endpoint.Server = (*insecureFront)(nil)

// Handle answers one request.
func (f *insecureFront) Handle(ctx context.Context, link coap.Link, m *coap.Message) *coap.Message {
	release, ok := f.gate.g.gate.enter()
	if !ok {
		return &coap.Message{Code: coap.ServiceUnavailable, Token: m.Token}
	}
	defer release()
	return f.server.Handle(ctx, link, m)
}

// Cancel has nothing to end: nothing is observed here.
func (f *insecureFront) Cancel(id coap.LinkID, token []byte) { f.server.Cancel(id, token) }

// Closed forgets a link.
func (f *insecureFront) Closed(id coap.LinkID) { f.server.Closed(id) }

var _ admin.Delegates = (*operator)(nil)

// Delegates tells of all memberships for legacy nodes.
func (o *operator) Delegates(context.Context) ([]admin.DelegateInfo, error) {
	list := []admin.DelegateInfo{}
	for _, s := range o.delegates.List() {
		d := admin.DelegateInfo{
			Delegate: s.Delegate, Group: s.Group, GM: s.GM, State: s.State, Node: s.Node, Roles: admin.RoleNames(s.Roles), Version: uint64(s.Version),
			Gid: s.Gid.String(), TokenEnds: admin.TimeOrNil(s.TokenEnds), KeyEnds: admin.TimeOrNil(s.KeyEnds), LastHeard: admin.TimeOrNil(s.LastHeard),
			Connected: s.Connected, Listen: s.Listen, Error: s.Error, ErrorAt: admin.TimeOrNil(s.ErrorAt),
		}
		if d.GM == "" {
			d.GM = "local"
		}
		if s.SenderID != nil {
			id := s.SenderID.String()
			d.SenderID = &id
		}
		list = append(list, d)
	}
	return list, nil
}

// RejoinDelegate has a node join again.
func (o *operator) RejoinDelegate(ctx context.Context, name string) error {
	err := o.delegates.Rejoin(name)
	if err == nil {
		o.did(ctx, "operator.delegate-rejoined", 1, "")
	}
	return unknownDelegate(err)
}

// TrustGM takes the next credential that a group's Group Manager proves.
func (o *operator) TrustGM(ctx context.Context, group string) error {
	err := o.delegates.Trust(ctx, group)
	if err == nil {
		o.did(ctx, "operator.delegate-trusted", 1, group)
	}
	return unknownDelegate(err)
}

func unknownDelegate(err error) error {
	if errors.Is(err, delegate.ErrUnknown) {
		return &admin.Problem{Status: http.StatusNotFound, Detail: "no such delegate or group of one", Hint: "`gateway delegate list` shows them"}
	}
	return err
}
