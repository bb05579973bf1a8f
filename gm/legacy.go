package gm

import (
	"context"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// The dialects of 2019 and 2020, under /group-oscore, are a façade: they have
// resources, messages and error codes of their own, and the decisions, members,
// versions and rekeys of the rest of this package. See groupcomm.Interface, and
// docs/spec-map.md for what of them is served.

// legacyRoot is the first path segment of the legacy dialects.
const legacyRoot = "group-oscore"

// Resources and permitted methods of draft-03
// (draft-ietf-ace-key-groupcomm-oscore-03, Sections 4 to 11). It has no signature
// verifiers, and one error for all who may not, which serveLegacy makes 4.01.
var draft03Leaves = map[string]resource{
	"pub-key": resCreds, "policies": resPolicies, "ctx-num": resNum, "node": resNode,
}

var draft03Permitted = map[resource]map[coap.Code]methodRow{
	//                   member  monitor    verifier   other
	resGroup: {
		coap.GET:  {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)},
		coap.POST: {cells(allow, allow, allow, allow), answer{coap.Created, coap.CBOR, 0}},
	},
	resCreds: {
		coap.GET:  {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)},
		coap.POST: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)},
	},
	resNode: {
		coap.GET:  {cells(allow, wrongRole, forbidden, forbidden), content(coap.CBOR)}, // a new Sender ID
		coap.POST: {cells(allow, allow, forbidden, forbidden), content(noFormat)},      // leave
	},
	resPolicies: {coap.GET: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)}},
	resNum:      {coap.GET: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)}},
}

// Resources and permitted methods of hackathon-109
// (draft-ietf-ace-key-groupcomm-oscore-09, Section 5.5): nodes/NODENAME, its
// pub-key, and these.
var hackathonLeaves = map[string]resource{
	"pub-key": resCreds, "policies": resPolicies, "num": resNum, "active": resActive,
}

var hackathonPermitted = map[resource]map[coap.Code]methodRow{
	//                   member  monitor  verifier   other
	resGroup: {
		coap.GET:  {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)},
		coap.POST: {cells(allow, allow, allow, allow), answer{coap.Created, coap.CBOR, 0}},
	},
	resActive: {coap.GET: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)}},
	resCreds: {
		coap.GET:   {cells(allow, allow, allow, forbidden), content(coap.CBOR)},
		coap.FETCH: {cells(allow, allow, allow, forbidden), content(coap.CBOR)},
	},
	resPolicies: {coap.GET: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)}},
	resNum:      {coap.GET: {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)}},
	resNode: {
		coap.GET:    {cells(allow, allow, forbidden, forbidden), content(coap.CBOR)},
		coap.PUT:    {cells(allow, wrongRole, forbidden, forbidden), content(coap.CBOR)}, // a new Sender ID
		coap.DELETE: {cells(allow, allow, forbidden, forbidden), answer{coap.Deleted, noFormat, 0}},
	},
	resNodeCred: {coap.POST: {cells(allow, wrongRole, forbidden, forbidden), answer{coap.Changed, noFormat, 0}}},
}

// legacyTable finds the resource of a legacy path in the group's dialect.
func (c *call) legacyTable() map[resource]map[coap.Code]methodRow {
	t := &c.target
	c.dialect = c.g.cfg.Interface.Legacy()
	table, leaves := draft03Permitted, draft03Leaves
	switch c.dialect {
	case groupcomm.Current:
		return nil // the group is not served here
	case groupcomm.Hackathon109:
		table, leaves = hackathonPermitted, hackathonLeaves
	}
	switch {
	case len(t.rest) == 0:
		t.res = resGroup
	case len(t.rest) == 1:
		t.res = leaves[t.rest[0]]
	case len(t.rest) == 2 && t.rest[0] == "nodes" && c.dialect == groupcomm.Hackathon109:
		t.res, t.node = resNode, t.rest[1]
	case len(t.rest) == 3 && t.rest[0] == "nodes" && t.rest[2] == "pub-key" && c.dialect == groupcomm.Hackathon109:
		t.res, t.node = resNodeCred, t.rest[1]
	}
	return table
}

// serveLegacy answers a request under /group-oscore that the gate let through, or
// refused.
func (m *Manager) serveLegacy(ctx context.Context, c *call, refused error) (*coap.Response, error) {
	if refused != nil {
		return nil, c.legacyFailure(refused)
	}
	r, err := m.legacy(ctx, c)
	if err != nil {
		return nil, c.legacyFailure(err)
	}
	return r, nil
}

func (m *Manager) legacy(ctx context.Context, c *call) (*coap.Response, error) {
	if len(c.req.Payload) > maxBody {
		return nil, coap.Errorf(coap.RequestEntityTooLarge, "")
	}
	f, err := legacyFormat(c.req)
	if err != nil {
		return nil, err
	}
	switch c.target.res {
	case resGroup:
		if c.req.Code == coap.POST {
			return m.legacyJoin(ctx, c, f)
		}
		return m.legacyGroup(ctx, c, f)
	case resCreds:
		return m.legacyPubKeys(ctx, c, f)
	case resPolicies:
		return legacyAnswer(f, groupcomm.EncodeLegacyPolicies(c.dialect, policies(c.g))), nil
	case resNum:
		return m.legacyNum(ctx, c, f)
	case resActive:
		return legacyAnswer(f, groupcomm.EncodeActive(c.row.active())), nil
	case resNodeCred:
		return m.legacyNewKey(ctx, c)
	case resNode:
		c.target.node = c.row.member.node
		switch {
		case c.leaving():
			return m.legacyLeave(ctx, c)
		case c.dialect == groupcomm.Hackathon109 && c.req.Code == coap.GET:
			return m.legacyNode(ctx, c, f)
		}
		return m.legacyRenew(ctx, c, f)
	}
	return nil, fmt.Errorf("gm: internal error: the gate let %v through to legacy resource %d", c.req.Code, c.target.res)
}

// joining says whether the request, which the table permits, is to join.
func (c *call) joining() bool { return c.target.res == resGroup && c.req.Code == coap.POST }

// legacyFailure makes the answer of the dialects to a failure: those who may not
// get 4.01 (draft-ietf-ace-key-groupcomm-03, Section 4.1), a Joining Request that
// fails 4.00 with what the next needs
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.3), and nothing has an error
// identifier, which came later.
func (c *call) legacyFailure(err error) error {
	if !coap.Deliberate(err) {
		return err
	}
	was := coap.ErrorResponse(err)
	r := &coap.Response{Code: was.Code}
	format, _ := was.Options.ContentFormat()
	switch {
	case was.Code == coap.Unauthorized:
		return err // perhaps with AS Request Creation Hints
	case was.Code == coap.Forbidden:
		r.Code = coap.Unauthorized
	case was.Code == coap.BadRequest && c.dialect != groupcomm.Current && (c.joining() || c.target.res == resNodeCred):
		var ns []byte
		if format == coap.ACEGroupcomm {
			if i, err := groupcomm.DecodeInfoBody(was.Payload); err == nil {
				ns = i.KDCChallenge
			}
		}
		f, err := legacyFormat(c.req)
		if err != nil {
			f = groupcomm.LegacyFormats[0]
		}
		r.Payload = c.legacyInfo(ns).Encode()
		r.Options.SetContentFormat(f)
		r.Options.SetUint(coap.MaxAge, 0)
	default:
		if age, ok := was.Options.Uint(coap.MaxAge); ok {
			r.Options.SetUint(coap.MaxAge, age)
		}
	}
	return coap.Respond(r, err)
}

// legacyInfo tells a joining node the parameters of the group, and a new N_S when
// ns is given: a node that has none could not go on without it.
func (c *call) legacyInfo(ns []byte) *groupcomm.LegacyInfo {
	i := &groupcomm.LegacyInfo{
		Dialect: c.dialect, Challenge: ns, SignInfo: []groupcomm.LegacySignInfo{c.g.cfg.LegacySignInfo()},
	}
	if c.dialect == groupcomm.Draft03 {
		i.PubKeyEnc = groupcomm.PubKeyEncCOSEKey
	}
	return i
}

// legacyFormat checks the formats of a request and says which its answer has:
// what is accepted, else that of the request, else application/cbor.
func legacyFormat(req *coap.Request) (coap.Format, error) {
	f := groupcomm.LegacyFormats[0]
	if given, ok := req.Options.ContentFormat(); ok && len(req.Payload) > 0 {
		if !slices.Contains(groupcomm.LegacyFormats, given) {
			return 0, coap.Errorf(coap.UnsupportedContentFormat, "")
		}
		f = given
	}
	if a, ok := req.Options.Uint(coap.Accept); ok {
		if a > 0xffff || !slices.Contains(groupcomm.LegacyFormats, coap.Format(a)) {
			return 0, coap.Errorf(coap.NotAcceptable, "")
		}
		f = coap.Format(a)
	}
	return f, nil
}

// legacyAnswer makes a 2.05 that is not to be served again from a cache.
func legacyAnswer(f coap.Format, body []byte) *coap.Response {
	r := plain(f, body)
	r.Options.SetUint(coap.MaxAge, 0)
	return r
}
