package plugin

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/rd"
)

// operator answers the admin API from several rooms: members are the Group
// Manager's, what they confirmed is the bridge's.
type operator struct {
	gm        *gm.Manager
	bridge    *bridge.Bridge
	ace       *ace.Server
	rd        *rd.Registrar // nil: no Resource Directory
	audit     *audit.Log
	delegates *delegate.Room
	log       *slog.Logger
	ready     <-chan struct{}
	trouble   *trouble
	tries     *tries

	certificate *x509.Certificate // of listen.coaps; nil: none

	// links are the associations that are open, and the handshakes that were made.
	links func(coap.Subject) ([]admin.Association, int)
	// contexts are its Security Contexts of OSCORE that are in use.
	contexts func(coap.Subject) []admin.Association
	refused  func(coap.Subject) (refusal, bool) // newest refused request
}

var (
	_ admin.Groups    = (*gm.Manager)(nil)
	_ admin.Moves     = (*gm.Manager)(nil)
	_ admin.Members   = (*operator)(nil)
	_ admin.Tokens    = (*operator)(nil)
	_ admin.Readiness = (*operator)(nil)
	_ admin.Nodes     = (*operator)(nil)
	_ admin.Audit     = (*operator)(nil)
)

// MemberStatus joins the members of a group with their deliveries.
func (o *operator) MemberStatus(ctx context.Context, group string) ([]admin.Member, error) {
	members, err := o.gm.Members(ctx, group)
	if err != nil {
		return nil, err
	}
	ledger, err := o.bridge.Ledger(ctx, group)
	if err != nil {
		return nil, err
	}
	byNode := make(map[string]bridge.LedgerEntry, len(ledger))
	for _, e := range ledger {
		byNode[e.Node] = e
	}
	out := make([]admin.Member, len(members))
	for i, m := range members {
		e := byNode[m.Node]
		state := e.State
		if m.Lapsed {
			state = bridge.StateLapsed
		}
		out[i] = admin.Member{
			Node: m.Node, SenderID: m.SenderID, Roles: m.Roles, Expires: m.Expires,
			Version: e.Confirmed, State: state, Channel: e.Channel, LastHeard: e.LastHeard,
			OSCORE: m.Subject.Kind == coap.SubjectOSCORE,
		}
	}
	return out, nil
}

// IssueToken issues an access token by hand, as the embedded Authorization
// Server would.
func (o *operator) IssueToken(ctx context.Context, req admin.TokenRequest) (*admin.Token, error) {
	ask := ace.IssueRequest{Audience: req.Audience, Scope: req.Scope, Lifetime: req.Lifetime, PublicKey: req.PublicKey}
	if req.OSCORE {
		ask.Profile = ace.ProfileOSCORE
	}
	t, err := o.ace.Issue(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("issuing a token: %w", err)
	}
	out := &admin.Token{AccessToken: t.Token, KID: t.KID, Key: t.Key.Bytes(), Expires: t.Expires}
	if t.Material != nil {
		out.Key, out.Material = nil, t.Material.Encode()
	}
	if t.ServerKey != nil {
		if out.ServerKey, err = t.ServerKey.SPKI(); err != nil {
			return nil, fmt.Errorf("issuing a token: %w", err)
		}
	}
	o.did(ctx, "operator.token-issued", 1, "")
	return out, nil
}

// RevokeTokens ends access tokens.
func (o *operator) RevokeTokens(ctx context.Context, list [][]byte) (int, error) {
	n, err := o.ace.RevokeTokens(ctx, list...)
	if errors.Is(err, ace.ErrNoToken) {
		return 0, admin.ErrNoToken
	}
	if err == nil {
		o.did(ctx, "operator.tokens-revoked", len(list), "")
	}
	return n, err
}

// Components tells whether the rooms are up.
func (o *operator) Components(context.Context) []admin.Component {
	up := false
	select {
	case <-o.ready:
		up = true
	default:
	}
	list := []admin.Component{{Name: "groups", Ready: up}, o.trouble.component()}
	if o.rd != nil {
		// A directory that is away is told, but keeps nobody from joining.
		list = append(list, admin.Component{Name: "resource_directory", Ready: true, Detail: o.rd.Status()})
	}
	return list
}

// Version is the version of the program as its build tells it.
func Version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}
