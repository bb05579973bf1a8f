// Package coap is the vocabulary that every room of the gateway shares: codes,
// options and messages of RFC 7252, the one-method handler contract, the
// notifications of RFC 7641 and the problem details of RFC 9290.
//
// Start at [Handler]. A handler returns a response, it never writes one:
// retransmission, deduplication, blockwise transfer, observation and the
// conversion of errors to responses belong to the server core, package serve,
// which works the same over every kind of [Link].
package coap

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"
)

// Handler answers one request.
//
// The request is valid until ServeCoAP returns; [Request.Clone] keeps it. An
// error becomes a response by [ErrorResponse]: rows of a registry and errors
// made on purpose reach the peer, everything else is an empty 5.00.
type Handler interface {
	ServeCoAP(ctx context.Context, req *Request) (*Response, error)
}

// HandlerFunc makes a function a [Handler].
type HandlerFunc func(ctx context.Context, req *Request) (*Response, error)

// ServeCoAP calls f.
func (f HandlerFunc) ServeCoAP(ctx context.Context, req *Request) (*Response, error) {
	return f(ctx, req)
}

// Request is one whole request: blockwise transfer and protection are undone.
type Request struct {
	Code    Code
	Options Options
	Payload []byte
	Peer    Peer
}

// Response is what a handler answers.
type Response struct {
	Code    Code
	Options Options
	Payload []byte

	// MaxBlock bounds the blocks in which the payload goes out, in bytes: a power of
	// two from 16. 0 means as large as the server core allows.
	MaxBlock int

	// Observe says what state this response shows. It is ignored unless the
	// request asked for observation and Code is 2.xx.
	Observe *Observation

	// More produces further responses to the same request, for instance to a
	// group request that went through the proxy. nil means there are none.
	More func(ctx context.Context, send func(*Response) error) error
	// Lasting says that More goes on for as long as the client wants: what it
	// sends are notifications. Otherwise it has minutes.
	Lasting bool
}

// Observation names the state that a response shows. When the Hub already
// knows a newer version of the topic the newer is sent at once, so nothing is
// lost between reading and registering.
type Observation struct {
	Topic   string // for example "gm/sensors": chosen by the handler, not the URI
	Version uint64
}

// Hub reaches peers unasked: rekeys, eviction notices, relayed observations.
// It keeps a one-slot mailbox per (link, topic): a newer notification replaces
// one not yet sent.
type Hub interface {
	// Publish sends n to every observer of topic.
	Publish(topic string, n Notification)
	// Drop ends the observation of topic by link, telling it last when that is
	// not nil. A zero link means all observers of the topic.
	Drop(topic string, link LinkID, last *Response)
	// Do sends a request to the peer at link and waits for its response.
	Do(ctx context.Context, link LinkID, req *Request) (*Response, error)
}

// Notification is one new state of a topic.
type Notification struct {
	Version uint64
	// Body is encoded once and shared by all observers: sent as given, never
	// rendered again.
	Body *Response
	// Allow is asked before each send. false ends that observation with the
	// response returned, or silently when that is nil. nil allows all.
	Allow func(Peer) (*Response, bool)
	// Ready is told of peers that Allow is about to be asked about, some at a time, so
	// that what it takes to know is read for all of them at once. Notifications with
	// an equal one, under several topics, are told of together. nil: that is of no use.
	Ready Readier
	// Wait is asked before each send, after Allow: true keeps the notification
	// back until the peer's next sign of life. nil waits for nobody.
	Wait func(Peer) bool
	// Confirm asks for confirmable messages.
	Confirm bool
	// Done reports the outcome of each send: nil when the peer itself
	// acknowledged (or, without Confirm, when the message was handed to the
	// network). A peer that slept through it is reported as ErrTimeout, and
	// again when the notification went out at its next sign of life; one that was
	// acknowledged on the way to it as ErrRelayed. Versions that a newer one replaced
	// before they were sent are not reported, and of those that gave way to one where they
	// would have been sent again (RFC 7641, Section 4.5.2) only what the peer answers late.
	Done func(link LinkID, version uint64, err error)
}

// Readier is for [Notification.Ready]. It is comparable.
type Readier interface{ Ready(peers []Peer) }

// LinkID names an association. It survives rebinding, and with links of the
// gateway's own endpoint hibernation and restart. The zero value names none.
type LinkID string

// Security says how a peer is protected.
type Security uint8

// The kinds of protection a link can have.
const (
	Plain Security = iota
	DTLSPSK
	DTLSCert
	OSCORE
	Internal // in process; trusted like a call
	DTLSRPK  // DTLS with raw public keys (RFC 7250)
)

// SubjectKind says what a peer proved.
type SubjectKind uint8

// The kinds of proof.
const (
	SubjectNone    SubjectKind = iota
	SubjectPoP                 // possession of the key that an access token confirms; ID identifies the key
	SubjectPSK                 // a pre-shared key of a configured or enrolled peer; ID names it
	SubjectKeyHash             // a raw public key or certificate; ID is the SHA-256 of it
	SubjectOSCORE              // OSCORE input material of RFC 9203; ID identifies it
)

// Subject is who proved what: never a token, so that the grant can be looked
// up anew at every request. It is comparable and serves as a map key.
type Subject struct {
	Kind SubjectKind
	ID   string // raw bytes
}

// Peer is the other end of a link.
type Peer struct {
	Link    LinkID
	Addr    netip.AddrPort
	Via     Security
	Subject Subject
	// Exporter is the keying material exporter of RFC 5705; nil where the link
	// has none. A nil context is absent, an empty one is present and empty.
	Exporter func(label string, context []byte, n int) ([]byte, error)
}

// Link is the one port that a transport offers to the server core.
type Link interface {
	Peer() Peer
	// Send transmits m. done is called exactly once: nil when a confirmable
	// message was acknowledged or another was handed to the network, else
	// ErrReset, ErrTimeout, ErrWithheld or ErrGone; ErrRelayed where the acknowledgement is
	// not the peer's own. From then on m is the caller's again. What has the token
	// of a request that is being answered goes out after that answer.
	Send(m *Message, done func(error))
}

// Yielder is a [Link] on which a confirmable notification gives way to a newer one, where
// it would be sent again (RFC 7641, Section 4.5.2).
type Yielder interface {
	// SendYielding is Send of such a notification. When it gives way, what Yield returns is
	// called once in the place of done: with nil or ErrReset when the peer's answer came
	// late, and with ErrOvertaken at the latest when it would have been given up.
	SendYielding(m *Message, y Yielding, done func(error))
}

// Yielding is how a notification takes the place of an older one, and gives way itself.
type Yielding struct {
	After     Attempt      // of the one that gave way to it
	Overtaken *atomic.Bool // set, for good, when there is a newer one
	// Yield is called, once at most, in the place of a retransmission, and sends what is
	// newer. The message is the caller's again.
	Yield func(Attempt) (late func(error))
}

// Attempt is how far a transmission came (RFC 7252, Section 4.2). The zero value is its
// beginning.
type Attempt struct {
	Tries int           // retransmissions, with the one that is due
	Wait  time.Duration // for the acknowledgement of that
}

// Answerer is a [Link] that needs more than a token to send responses after the first
// to a request: what protects it.
type Answerer interface {
	// Answers gives the link for those to the request with the context ctx, which is
	// being answered. It is good until end is called.
	Answers(ctx context.Context) (link Link, end func())
}

// Batcher is a [Link] whose messages can wait for those to others, to be sent
// together; nil: they cannot now.
type Batcher interface {
	Outlet() Outlet
}

// Homed is a [Link] that knows which address of this machine its peer uses, where
// there are several; else it is not valid.
type Homed interface {
	Home() netip.Addr
}

// Outlet is shared by links that send together: what is sent after Hold may wait
// for Release, which belongs to each Hold.
type Outlet interface {
	Hold()
	Release()
}

// Requester is a [Link] that can also carry requests to its peer.
type Requester interface {
	Do(ctx context.Context, m *Message) (*Message, error)
}
