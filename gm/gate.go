package gm

import (
	"context"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// The gate is asked before any handler: who may use which method on which
// resource (RFC 9594, Section 4.1.2;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 8.5). Order:
// a valid token (4.01), the group in its scope (4.03, whether or not the group
// exists), the group and the resource exist (4.04), some type of client may
// use the method there (4.05), this client may (4.03 or the row's error). The table
// is in permitted.go.

// resource is a kind of resource under /ace-group.
type resource int

const (
	resNone resource = iota // no such resource
	resRoot                 // /ace-group
	resGroup
	resActive
	resVerifData
	resCreds
	resKDCCred
	resStaleSIDs
	resPolicies
	resNum
	resNode
	resNodeCred
)

var leafResources = map[string]resource{
	"active":     resActive,
	"verif-data": resVerifData,
	"creds":      resCreds,
	"kdc-cred":   resKDCCred,
	"stale-sids": resStaleSIDs,
	"policies":   resPolicies,
	"num":        resNum,
}

// target is a parsed path.
type target struct {
	res   resource
	group string
	node  string

	legacy bool     // under /group-oscore
	rest   []string // legacy: what follows the group's name; it depends on the dialect
}

// parsePath reads the path of a request under /ace-group or /group-oscore.
func parsePath(path []string) (target, bool) {
	if len(path) >= 2 && path[0] == legacyRoot {
		return target{group: path[1], legacy: true, rest: path[2:]}, true
	}
	if len(path) == 0 || path[0] != "ace-group" {
		return target{}, false
	}
	t := target{}
	switch len(path) {
	case 1:
		t.res = resRoot
		return t, true
	case 2:
		t.res = resGroup
	case 3:
		t.res = leafResources[path[2]]
	case 4:
		if path[2] == "nodes" {
			t.res, t.node = resNode, path[3]
		}
	case 5:
		if path[2] == "nodes" && path[4] == "cred" {
			t.res, t.node = resNodeCred, path[3]
		}
	}
	t.group = path[1]
	return t, true
}

// Failures without an error identifier.
var (
	errMethod    = coap.Errorf(coap.MethodNotAllowed, "")
	errForbidden = coap.Errorf(coap.Forbidden, "")
	errNotFound  = coap.Errorf(coap.NotFound, "")
)

// joinRoles are the roles with which a node can join: a signature verifier is
// no member (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.5.1).
const joinRoles = groupcomm.Requester | groupcomm.Responder | groupcomm.Monitor

// call is a request that passed the gate.
type call struct {
	req    *coap.Request
	grant  *groupcomm.Grant
	roles  groupcomm.Roles // that the token grants in the group
	target target
	g      *group
	row    *row      // as seen by the gate
	mat    *material // of row.num

	guessed bool // row and mat are what is probably there

	dialect groupcomm.Interface // Draft03 or Hackathon109 under /group-oscore, else Current
}

// ServeCoAP answers requests under /ace-group and /group-oscore.
func (m *Manager) ServeCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	c, err := m.gate(ctx, req)
	if c != nil && c.target.legacy {
		return m.serveLegacy(ctx, c, err)
	}
	if err != nil {
		return nil, err
	}
	switch c.target.res {
	case resRoot:
		return m.fetchGroups(ctx, c)
	case resGroup:
		if req.Code == coap.POST {
			return m.join(ctx, c)
		}
		return m.getGroup(ctx, c)
	case resActive:
		return m.getActive(c)
	case resCreds:
		return m.creds(ctx, c)
	case resVerifData:
		return m.verifData(c)
	case resKDCCred:
		if req.Code == coap.FETCH {
			return m.fetchKDCCred(c)
		}
		return m.getKDCCred(c)
	case resStaleSIDs:
		return m.staleSIDs(ctx, c)
	case resPolicies:
		return m.getPolicies(c)
	case resNum:
		return m.getNum(ctx, c)
	case resNode:
		switch req.Code {
		case coap.GET:
			return m.getNode(ctx, c)
		case coap.POST:
			return m.renew(ctx, c)
		case coap.DELETE:
			return m.leave(ctx, c)
		}
	case resNodeCred:
		return m.newCred(ctx, c)
	}
	return nil, fmt.Errorf("gm: internal error: the gate let %v through to resource %d", req.Code, c.target.res)
}

// gate decides whether a request may reach its handler. What it knows of the
// request it returns with an error as well.
func (m *Manager) gate(ctx context.Context, req *coap.Request) (*call, error) {
	t, ok := parsePath(req.Path())
	if !ok {
		return nil, errNotFound
	}
	c := &call{req: req, target: t}
	return c, m.pass(ctx, c)
}

// precondition judges the conditions of a request that may be served (RFC 7252,
// Section 5.10.8): all resources are there, and those that have an entity tag have
// the version for it.
func (c *call) precondition() error {
	if !coap.Conditional(c.req.Options) {
		return nil
	}
	switch c.target.res {
	case resGroup, resNode, resNum:
		return coap.Precondition(c.req.Options, versionTag(c.row.num))
	}
	return coap.Precondition(c.req.Options)
}

func (m *Manager) pass(ctx context.Context, c *call) (err error) {
	req := c.req
	if c.grant, err = m.auth.Grant(ctx, req.Peer); err != nil {
		return err
	}
	if c.target.res == resRoot {
		row, ok := permitted[resRoot][req.Code]
		if !ok {
			return errMethod
		}
		if err := row.who[typeOther].err(); err != nil {
			return err
		}
		return c.precondition()
	}
	if c.roles = c.grant.Scope.RolesFor(c.target.group); c.roles == 0 {
		return errForbidden
	}
	if c.g, err = m.find(ctx, c.target.group); err != nil {
		return err
	}
	table := c.table()
	t := c.target
	if t.res == resNone {
		return errNotFound
	}
	row, ok := table[t.res][req.Code]
	if !ok {
		return errMethod
	}
	if t.res == resGroup && req.Code == coap.POST && c.roles&joinRoles != 0 && !coap.Conditional(req.Options) && c.g.guess(c) {
		return nil // every type of client may
	}
	if err := m.st.View(ctx, func(tx *store.Tx) error { return m.see(tx, c) }); err != nil {
		return err
	}
	// RFC 9594, Section 4.8: a node sub-resource is for its own node only,
	// whatever the roles.
	if mb := c.row.member; mb != nil && t.node != "" && mb.node != t.node {
		return errForbidden
	}
	v := row.who[clientTypeOf(c.row.member, c.roles)]
	if v == wrongRole && !c.row.active() {
		// draft-ietf-ace-key-groupcomm-oscore-21, Sections 9.2 and 9.4: that the
		// group is inactive is said before anything about roles.
		return groupcomm.ErrInactive
	}
	if err := v.err(); err != nil {
		return err
	}
	if t.res == resGroup && req.Code == coap.POST && c.roles&joinRoles == 0 {
		return errForbidden
	}
	// RFC 9594, Section 4.1.2: the rights are those of the token of now. A
	// member whose new token takes a role away can join anew or leave.
	if mb := c.row.member; mb != nil && mb.roles&^c.roles != 0 &&
		!c.leaving() && (t.res != resGroup || req.Code != coap.POST) {
		return errForbidden
	}
	if err := c.precondition(); err != nil {
		return err
	}
	m.reached(c)
	return nil
}

// table is the table of permitted methods for the interface that was called. It
// leaves resNone in the target when the group does not have that.
func (c *call) table() map[resource]map[coap.Code]methodRow {
	if c.target.legacy {
		return c.legacyTable()
	}
	if !c.g.cfg.Interface.SpeaksCurrent() {
		c.target.res = resNone
	}
	return permitted
}

// leaving says whether the request, which the table permits, is to leave.
func (c *call) leaving() bool {
	leave := coap.DELETE
	if c.dialect == groupcomm.Draft03 {
		leave = coap.POST
	}
	return c.target.res == resNode && c.req.Code == leave
}

// reached tells the delivery over which association a member can be reached, if
// it may want to know.
func (m *Manager) reached(c *call) {
	mb := c.row.member
	if mb == nil || c.leaving() {
		return
	}
	uri := mb.controlURI
	if c.target.legacy {
		uri = "" // the dialects have no such resource
	}
	register, observe := c.req.Observe()
	if uri == "" && !(observe && register) {
		return
	}
	if h, ok := m.deliver.(holder); ok {
		h.Reached(c.g.cfg.Name, mb.node, c.req.Peer, uri, observe && register)
	}
}

// see reads the group's row, the membership of the subject and the material.
func (m *Manager) see(tx *store.Tx, c *call) (err error) {
	if c.row, err = c.g.look(tx, subjectOf(c.grant.Subject)); err != nil {
		return err
	}
	c.mat, err = m.materialAt(tx, c.g, c.row.num)
	return err
}

func clientTypeOf(mb *member, token groupcomm.Roles) clientType {
	switch {
	case mb != nil && mb.roles.MonitorOnly():
		return typeMonitor
	case mb != nil:
		return typeMember
	case token&groupcomm.Verifier != 0:
		return typeVerifier
	}
	return typeOther
}
