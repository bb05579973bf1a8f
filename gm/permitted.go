package gm

import (
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// The table of permitted methods (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 8.5). The gate decides by it, docs/spec-map.md shows it, and a test
// asks the Group Manager for every cell of it.

// clientType is a column of the table.
type clientType int

const (
	typeMember   clientType = iota // member with requester or responder
	typeMonitor                    // member, monitor only
	typeVerifier                   // not a member; the token has the role verifier
	typeOther                      // not a member; any other token for the group
	clientTypes
)

// verdict is a cell of the table.
type verdict int

const (
	never     verdict = iota // no type of client may: 4.05
	allow                    //
	forbidden                // 4.03 without an error identifier
	members                  // 4.03 error 0
	verifiers                // 4.03 error 8
	wrongRole                // 4.00 error 1
)

func (v verdict) err() error {
	switch v {
	case never:
		return errMethod
	case allow:
		return nil
	case forbidden:
		return errForbidden
	case members:
		return groupcomm.ErrNotMember
	case verifiers:
		return groupcomm.ErrVerifiersOnly
	case wrongRole:
		return groupcomm.ErrRoles
	}
	panic(fmt.Sprintf("gm: internal error: verdict %d", v))
}

// answer is what a request is answered with that is permitted and right.
type answer struct {
	code   coap.Code
	format coap.Format // noFormat: no payload
	joined coap.Code   // instead of code, to a client that was no member; 0: the same
}

const noFormat coap.Format = 0xffff

// methodRow is a row of the table.
type methodRow struct {
	who [clientTypes]verdict
	ok  answer
}

// permitted is the table. What is missing is 4.05.
var permitted = map[resource]map[coap.Code]methodRow{
	//                         member     monitor    verifier   other
	resRoot: {coap.FETCH: {cells(allow, allow, allow, allow), content(coap.ACEGroupcomm)}},
	resGroup: {
		coap.GET: {cells(allow, allow, members, members), content(coap.ACEGroupcomm)},
		// With a role to join with: see gate.
		coap.POST: {cells(allow, allow, allow, allow), answer{coap.Changed, coap.ACEGroupcomm, coap.Created}},
	},
	resActive:    {coap.GET: {cells(allow, allow, members, members), content(coap.CBOR)}},
	resVerifData: {coap.GET: {cells(verifiers, verifiers, allow, verifiers), content(coap.ACEGroupcomm)}},
	resCreds: {
		coap.GET:   {cells(allow, allow, allow, forbidden), content(coap.ACEGroupcomm)},
		coap.FETCH: {cells(allow, allow, allow, forbidden), content(coap.ACEGroupcomm)},
	},
	resKDCCred: {
		coap.GET:   {cells(allow, allow, members, members), content(coap.ACEGroupcomm)},
		coap.FETCH: {cells(verifiers, verifiers, allow, verifiers), content(coap.ACEGroupcomm)},
	},
	resStaleSIDs: {coap.FETCH: {cells(allow, allow, members, members), content(coap.CBOR)}},
	resPolicies:  {coap.GET: {cells(allow, allow, members, members), content(coap.ACEGroupcomm)}},
	resNum:       {coap.GET: {cells(allow, allow, members, members), content(coap.CBOR)}},
	resNode: {
		coap.GET:    {cells(allow, allow, members, members), content(coap.ACEGroupcomm)},
		coap.POST:   {cells(allow, wrongRole, members, members), answer{coap.Changed, coap.ACEGroupcomm, 0}},
		coap.DELETE: {cells(allow, allow, members, members), answer{coap.Deleted, noFormat, 0}},
	},
	resNodeCred: {coap.POST: {cells(allow, wrongRole, members, members), answer{coap.Changed, noFormat, 0}}},
}

func cells(member, monitor, verifier, other verdict) [clientTypes]verdict {
	return [clientTypes]verdict{member, monitor, verifier, other}
}

func content(f coap.Format) answer { return answer{code: coap.Content, format: f} }

// resourcePaths is how the table names resources, in its order; GROUP and NODE
// stand for names.
var resourcePaths = []struct {
	res  resource
	path string
}{
	{resRoot, "/ace-group"},
	{resGroup, "/ace-group/GROUP"},
	{resActive, "/ace-group/GROUP/active"},
	{resVerifData, "/ace-group/GROUP/verif-data"},
	{resCreds, "/ace-group/GROUP/creds"},
	{resKDCCred, "/ace-group/GROUP/kdc-cred"},
	{resStaleSIDs, "/ace-group/GROUP/stale-sids"},
	{resPolicies, "/ace-group/GROUP/policies"},
	{resNum, "/ace-group/GROUP/num"},
	{resNode, "/ace-group/GROUP/nodes/NODE"},
	{resNodeCred, "/ace-group/GROUP/nodes/NODE/cred"},
}
