package plugin

import (
	"context"
	"sync/atomic"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/proxy"
	"github.com/seed4911071e/groupgate/rd"
)

// Who serves whom. Rooms do not know each other: each declares the little that
// it needs, in types of the leaves, and here the needs meet.
var (
	_ gm.Authority    = (*ace.Server)(nil)    // gm asks ace: who is this, what may it do?
	_ gm.Delivery     = (*bridge.Bridge)(nil) // gm tells bridge: enrol, render, forget
	_ ace.GroupInfo   = (*gm.Manager)(nil)    // ace asks gm: which algorithms does the group use?
	_ bridge.Source   = (*gm.Manager)(nil)    // bridge asks gm: the newest rekey, and for whom?
	_ access          = (*ace.Server)(nil)    // the host adapter asks ace: whose key is this?
	_ bridge.Source   = (*lateManager)(nil)
	_ ace.GroupInfo   = (*lateManager)(nil)
	_ secure.Contexts = (*ace.Server)(nil) // OSCORE asks ace: whose context is this, and is it mine?
	_ rd.Client       = (*outbound)(nil)   // rd reaches the directory over the node's transport
	_ delegate.Home   = home{}             // delegates ask the gateway itself for tokens and keys
	_ delegate.Hub    = (*serve.Server)(nil)
	_ ace.Observer    = (*outbound)(nil) // and ace an Authorization Server elsewhere
	_ coap.Handler    = (*proxy.Proxy)(nil)
	_ belongs         = (*gm.Manager)(nil)
	_ grants          = (*ace.Server)(nil)
)

// access is what the host adapter asks about a DTLS peer.
type access interface {
	// PSK returns the pre-shared key of a psk_identity (RFC 9202, Section 3.3).
	PSK(ctx context.Context, identity []byte) ([]byte, error)
	// Subject tells what a finished handshake with that identity proved;
	// conveyed when the identity is itself an access token.
	Subject(identity []byte) (s coap.Subject, conveyed bool)
	// Holder tells whose token confirms a public key, a SubjectPublicKeyInfo in DER,
	// or the certificate that it is in (nil: none), and Proved the same of a finished
	// handshake (RFC 9202, Section 3.2).
	Holder(ctx context.Context, spki, leaf []byte) (coap.Subject, error)
	Proved(ctx context.Context, spki, leaf []byte) (coap.Subject, error)
	// Conveyed commits a token that came in psk_identity.
	Conveyed(ctx context.Context, token []byte, exporter func(label string, context []byte, n int) ([]byte, error)) (coap.Subject, error)
}

// lateManager breaks the ring of bridge and ace, which ask the Group Manager,
// and the Group Manager, which asks them: it is filled before the first
// question.
type lateManager struct {
	*gm.Manager
	directory atomic.Pointer[rd.Registrar] // which the Group Manager tells of changes; nil: there is none
}

// lateLayer breaks the ring of ace, which tells what contexts ended, and OSCORE,
// which asks it for them.
type lateLayer struct{ *secure.Layer }

func (l *lateLayer) drop(ids []coap.LinkID) { l.Drop(ids) }

// belongs tells the endpoint who is a member, when room is short.
type belongs interface {
	Belongs(ctx context.Context, s coap.Subject) (bool, error)
}

// grants tells it who holds a token that is in force.
type grants interface {
	Grant(ctx context.Context, p coap.Peer) (*groupcomm.Grant, error)
}

// groups is the view of the Group Manager that routing needs.
type groups interface {
	coap.Handler
	Links(ctx context.Context) []coap.WebLink
}

// rooms are the running rooms as requests see them.
type rooms struct {
	access      access
	rawKey      *dtls12.Key     // of this gateway, for handshakes
	certificate *dtls12.Key     // and with its certificate; nil: there is none
	pins        map[string]bool // public keys of peers of the proxy, by their SHA-256
	authzInfo   coap.Handler
	token       coap.Handler
	introspect  coap.Handler
	revoked     coap.Handler  // /revoke/trl
	secure      *secure.Layer // requests that OSCORE protects
	groups      groups
	belongs     belongs
	grants      grants
	me          coap.Handler    // /gw/me
	delegates   *delegate.Room  // for legacy nodes
	alive       func(coap.Peer) // told of every protected request
	proxy       *proxy.Proxy    // nil: nothing is forwarded
	tokenURIs   []string        // token endpoints, to be listed with the groups
}
