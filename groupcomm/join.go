package groupcomm

import (
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
)

func (g *GetCreds) item() any {
	if g.All {
		return nil
	}
	return []any{g.Inclusion, g.Roles, g.IDs}
}

// Encode gives the value of 'get_creds': null or
// [inclusion flag, role filter, identifier filter] (RFC 9594, Section 4.3.1).
func (g *GetCreds) Encode() []byte { return cose.MustMarshal(g.item()) }

// DecodeGetCreds reads the value of 'get_creds'.
func DecodeGetCreds(b []byte) (*GetCreds, error) {
	g, err := decodeGetCreds(b)
	if err != nil {
		return nil, fmt.Errorf("get_creds: %w", err)
	}
	return g, nil
}

func decodeGetCreds(b []byte) (*GetCreds, error) {
	if cose.IsNull(b) {
		return &GetCreds{All: true}, nil
	}
	items, err := cose.DecodeArray(b)
	if err != nil {
		return nil, errors.New("null or array expected")
	}
	if len(items) != 3 {
		return nil, errors.New("array of three elements expected")
	}
	var g GetCreds
	if g.Inclusion, err = cose.AsBool(items[0]); err != nil {
		return nil, err
	}
	if g.Roles, err = decodeArray(items[1], asRoles); err != nil {
		return nil, err
	}
	if g.IDs, err = decodeArray(items[2], asSenderID); err != nil {
		return nil, err
	}
	return &g, nil
}

// Select reports whether a filter covers a member with these roles and this
// Sender ID. A member has the roles of a filter element when it has all of its
// bits. RFC 9594, Section 4.4.1:
// with inclusion, a member matches by roles or by identifier; without, by roles
// and while not being listed; a lone role filter ignores the flag.
func (g *GetCreds) Select(roles Roles, id SenderID) bool {
	if g.All {
		return true
	}
	byRole, listed := false, false
	for _, want := range g.Roles {
		byRole = byRole || (want != 0 && roles.Has(want))
	}
	for _, x := range g.IDs {
		listed = listed || string(x) == string(id)
	}
	switch {
	case len(g.IDs) == 0:
		return byRole
	case g.Inclusion:
		return byRole || listed
	case len(g.Roles) == 0:
		return !listed
	}
	return byRole && !listed
}

// Empty reports whether nothing is filtered by: null or both filters empty,
// which FETCH on creds refuses.
func (g *GetCreds) Empty() bool { return g.All || len(g.Roles) == 0 && len(g.IDs) == 0 }

// Encode gives the map; absent fields are left out.
func (j *JoinRequest) Encode() []byte {
	m := map[int64]any{}
	putBytes(m, labelScope, j.Scope)
	if j.GetCreds != nil {
		m[labelGetCreds] = j.GetCreds.item()
	}
	putBytes(m, labelClientCred, j.ClientCred)
	putBytes(m, labelCNonce, j.CNonce)
	putBytes(m, labelClientCredVerify, j.ClientCredVerify)
	if j.ControlURI != "" {
		m[labelControlURI] = j.ControlURI
	}
	if j.Delivery != nil {
		m[labelDelivery] = j.Delivery.fields()
	}
	return cose.MustMarshal(m)
}

// Keys inside 'delivery'.
const (
	deliveryChannel int64 = 0
	deliveryPhases  int64 = 1
	deliveryTree    int64 = 2
)

// phased is the value of deliveryPhases.
const phased = "phased"

// DecodeJoinRequest reads the map. RFC 9594, Section 4.3.1: scope and cnonce
// are required; whether client_cred and client_cred_verify may be missing
// depends on the member, so that is not judged here.
func DecodeJoinRequest(b []byte) (*JoinRequest, error) {
	f := decodeFields("join request", b)
	f.need(labelScope, labelCNonce)
	j := &JoinRequest{
		Scope:            f.bytes(labelScope),
		ClientCred:       f.bytes(labelClientCred),
		CNonce:           f.bytes(labelCNonce),
		ClientCredVerify: f.bytes(labelClientCredVerify),
		ControlURI:       f.text(labelControlURI),
	}
	if f.m.Has(labelControlURI) && j.ControlURI == "" {
		f.failf("label %d: empty URI", labelControlURI)
	}
	if raw, ok := f.m[labelGetCreds]; ok {
		var err error
		if j.GetCreds, err = decodeGetCreds(raw); err != nil {
			f.failf("label %d: %w", labelGetCreds, err)
		}
	}
	if raw, ok := f.m[labelDelivery]; ok && f.err == nil {
		d, err := DecodeDelivery(raw)
		f.fail(err)
		if err == nil && *d != (Delivery{}) {
			j.Delivery = d
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return j, nil
}

func (d *Delivery) fields() map[int64]any {
	m := map[int64]any{}
	if d.Channel != "" {
		m[deliveryChannel] = d.Channel
	}
	if d.Phased {
		m[deliveryPhases] = phased
	}
	if d.Tree {
		m[deliveryTree] = true
	}
	return m
}

// Encode gives the value of 'delivery'.
func (d *Delivery) Encode() []byte { return cose.MustMarshal(d.fields()) }

// DecodeDelivery reads the value of 'delivery'. What it does not know it leaves
// out.
func DecodeDelivery(b []byte) (*Delivery, error) {
	f := decodeFields("delivery", b)
	d := &Delivery{Channel: f.text(deliveryChannel), Phased: f.text(deliveryPhases) == phased}
	tree, _, err := f.m.Bool(deliveryTree)
	f.fail(err)
	d.Tree = tree
	if f.err != nil {
		return nil, f.err
	}
	return d, nil
}

// CredUpdate is the body of POST on nodes/NODENAME/cred: a member's new
// credential and its proof (RFC 9594, Section 4.9.1).
type CredUpdate struct {
	ClientCred       []byte // 5
	CNonce           []byte // 6
	ClientCredVerify []byte // 24
}

// Encode gives the map.
func (c *CredUpdate) Encode() []byte {
	return cose.MustMarshal(map[int64]any{
		labelClientCred: c.ClientCred, labelCNonce: c.CNonce, labelClientCredVerify: c.ClientCredVerify,
	})
}

// DecodeCredUpdate reads the map; all three members are required.
func DecodeCredUpdate(b []byte) (*CredUpdate, error) {
	return decodeCredUpdate("credential update", b, labelClientCred, labelCNonce, labelClientCredVerify)
}

// decodeCredUpdate reads the map with the labels of a dialect.
func decodeCredUpdate(what string, b []byte, cred, cnonce, verify int64) (*CredUpdate, error) {
	f := decodeFields(what, b)
	f.need(cred, cnonce, verify)
	c := &CredUpdate{ClientCred: f.bytes(cred), CNonce: f.bytes(cnonce), ClientCredVerify: f.bytes(verify)}
	if f.err != nil {
		return nil, f.err
	}
	return c, nil
}
