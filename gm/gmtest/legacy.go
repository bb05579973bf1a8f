package gmtest

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// LegacyRequest is Request under /group-oscore. A body gets Content-Format 60.
func (j *Joiner) LegacyRequest(code coap.Code, body []byte, path ...string) *coap.Request {
	r := j.Request(code, body, append([]string{"group-oscore"}, path...)...)
	if body != nil {
		r.Options.SetContentFormat(coap.CBOR)
	}
	return r
}

// LegacyJoinMessage makes a complete Joining Request of the dialect with a fresh
// N_C that asks for all public keys: a proof over NS unless the only role is
// monitor.
func (j *Joiner) LegacyJoinMessage(d groupcomm.Interface, group string, roles groupcomm.Roles) (*groupcomm.LegacyJoinRequest, error) {
	msg := &groupcomm.LegacyJoinRequest{
		Dialect:    d,
		Scope:      groupcomm.EncodeLegacyScope(d, groupcomm.ScopeEntry{Group: group, Roles: roles}),
		GetPubKeys: &groupcomm.GetCreds{All: true},
	}
	if roles.MonitorOnly() {
		return msg, nil
	}
	msg.CNonce = make([]byte, 8)
	rand.Read(msg.CNonce)
	msg.ClientCred = j.Key.Public().Encode()
	sig, err := j.Key.Sign(groupcomm.LegacyPoPInput(d, msg.Scope, j.NS, msg.CNonce))
	msg.ClientCredVerify = sig
	return msg, err
}

// LegacyJoin joins a group and returns the Joining Response. Any other answer is
// an error.
func (j *Joiner) LegacyJoin(ctx context.Context, h coap.Handler, d groupcomm.Interface, group string, roles groupcomm.Roles) (*groupcomm.LegacyKeyDistribution, error) {
	msg, err := j.LegacyJoinMessage(d, group, roles)
	if err != nil {
		return nil, err
	}
	r := Serve(ctx, h, j.LegacyRequest(coap.POST, msg.Encode(), group))
	if r.Code != coap.Created {
		return nil, fmt.Errorf("join answered with %v %x", r.Code, r.Payload)
	}
	if at := r.Options.Strings(coap.LocationPath); at != nil {
		j.Path = at
	}
	return groupcomm.DecodeLegacyKeyDistribution(d, r.Payload)
}
