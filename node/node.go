// Package node is the other side of a Group Manager: a node that gets an access
// token, joins an OSCORE group, and follows its rekeys for as long as it is a
// member (RFC 9594 and draft-ietf-ace-key-groupcomm-oscore-21).
//
// Start at [RequestToken] and [PostToken], which bring the token to the Group
// Manager; then [DialDTLS] with [Access.Identity], [New], [Member.Join] and
// [Member.Follow]. The example shows them in order.
//
// A Member believes nothing unproven: keys of a Join Response are installed
// after the Group Manager's proof of possession verified, and an answer that is
// malformed or contradicts its request changes nothing. The group keys are for
// the caller's OSCORE stack: this package protects no group traffic. Secrets
// print as [redacted] under every verb.
package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Limits. RFC 9594 recommends nonces of at least 8 bytes; 64 bounds what a peer
// may make us sign.
const (
	minNonce  = 8
	maxNonce  = 64
	ownNonce  = 8
	maxName   = 255 // bytes of a URI path segment (RFC 7252, Section 5.10)
	minSecret = 16  // Master Secret; ours
	maxSecret = 64
)

// Config says who joins what. Group and Roles are required.
type Config struct {
	Group string
	Roles groupcomm.Roles // Requester and Responder in any mix, or Monitor alone

	// Transfer is what PostToken returned. nil means that the token went in
	// psk_identity: then N_S comes from the keying material exporter of the
	// association and the algorithms are asked for with an empty Join Request.
	Transfer *groupcomm.TokenTransferResponse

	// Key is the node's private key. nil: one is generated at the first Join,
	// for the algorithm that the group announces.
	Key *cose.Key
	// Cred is the credential with the public part of Key, in the format of the
	// group; nil: one is made from Key, which is not possible with certificates.
	Cred []byte
	// SameKey says that Key is also what the association was made with
	// ([DialRawKey]): a newcomer then needs no other proof that it holds it, and
	// sends an empty one unless the Group Manager refuses that
	// (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1).
	SameKey bool
	// Roots are those of the certificates of the Group Manager and of other
	// members. nil: their certificates are not verified, only possession of
	// the keys in them.
	Roots *x509.CertPool
	// Subject is the name in the credential ("sub"); empty leaves it empty.
	Subject string
	// ControlURI is where the Group Manager may reach the node: with rekeys by
	// POST, which are for a node that does not observe the group, and with the
	// notice of an eviction by DELETE. Only its path matters, since requests come
	// over the association that the node opened; the member answers them where
	// the transport is a [Taker]. Empty: nowhere.
	ControlURI string
	// WantCreds asks for the credentials of the members that matter to Roles.
	WantCreds bool
	// MQTT asks for rekeys over MQTT as well (private label -65537). Group
	// Managers that do not know it ignore it.
	MQTT bool
	// Multicast asks for rekeys by IP multicast, in a group with a key tree that
	// has a control_group_uri; MulticastInterface is where to listen, "": the
	// loopback interface.
	Multicast          bool
	MulticastInterface string
	// Phased asks to be told of scheduled rekeys in two phases (private label -65537):
	// the member holds two Security Contexts meanwhile, see [State.Before]. Group
	// Managers that do not know it ignore it.
	Phased bool
	// BrokerTLS is used with mqtts brokers; nil: the system's roots.
	BrokerTLS *tls.Config
	// KDCCred pins the Group Manager's credential. nil: the one whose proof of
	// possession verifies at the first join is kept for the later ones.
	KDCCred []byte

	// Saved is a membership that [Member.Save] gave, in an earlier run: the member
	// is joined from the start, and holds the keys that it held then. Whether they
	// are the newest [Member.Poll] tells. nil: there is none.
	Saved []byte

	// Redial opens a new association after one was lost. nil: [Member.Follow]
	// returns [ErrLost] instead.
	Redial func(context.Context) (Transport, error)
	// PollEvery is how often Follow asks for the current version beside what
	// it is told; 0: the group's Key Update Check Interval, else an hour.
	PollEvery time.Duration
	// OnEvent hears what happens, from any goroutine. It must not block: a
	// notification is acknowledged after it returns.
	OnEvent func(Event)

	Log  *slog.Logger // nil: silent
	Rand io.Reader    // nonces; nil: crypto/rand
}

// Kinds of [Event].
const (
	Joined      = "joined"      // a Join Response was verified and installed
	Prepared    = "prepared"    // new keying material is held, and not in use yet
	Rekeyed     = "rekeyed"     // new keying material was installed, or what was prepared is in use
	Missed      = "missed"      // versions were missed; the old material is deleted
	Reconnected = "reconnected" // a new association replaced a lost one
	Left        = "left"
	Evicted     = "evicted"
	Deleted     = "deleted" // the group is gone
	Refused     = "refused" // Err says what was dropped, or what failed and is retried
)

// Ways by which keying material comes.
const (
	ViaJoin    = "join"
	ViaObserve = "observe"
	ViaPoll    = "poll"
	ViaMQTT    = "mqtt"
	ViaControl = "control"

	ViaMulticast = "multicast"
	ViaTimer     = "timer" // what was prepared is used because its time came
)

// Event is one thing that happened to a membership.
type Event struct {
	Kind    string            `json:"kind"`
	Group   string            `json:"group"`
	Version groupcomm.Version `json:"version"`
	Gid     groupcomm.Gid     `json:"-"`
	Via     string            `json:"via,omitempty"`
	Err     error             `json:"-"`
}

// Peer is another member, as the Group Manager vouches for it.
type Peer struct {
	SenderID groupcomm.SenderID
	Roles    groupcomm.Roles // 0 when the Group Manager does not say
	Cred     []byte          // the credential, byte for byte
	Key      *cose.Key       // the public key in it
}

// State is a membership at one moment. It is a value: later rekeys do not
// change it.
type State struct {
	Group    string
	Node     string // NODENAME, the last segment of the node resource
	Roles    groupcomm.Roles
	Gid      groupcomm.Gid
	SenderID groupcomm.SenderID // nil for a monitor
	Version  groupcomm.Version
	// Installed is false between a missed rekey and the end of the procedure
	// for it: the old material is deleted, the new one not yet usable.
	Installed    bool
	MasterSecret cose.Secret
	MasterSalt   []byte
	Params       groupcomm.KeyMap // algorithms; its secrets are empty
	Expires      time.Time        // of the keying material
	Policies     groupcomm.Policies
	Peers        []Peer
	KDCCred      []byte // credential of the Group Manager, verified

	// Before is the keying material in use while that of the State is held for later;
	// nil: that of the State is in use.
	Before *Former
}

// Former is keying material that is in use while newer is held.
type Former struct {
	Gid          groupcomm.Gid
	Version      groupcomm.Version
	MasterSecret cose.Secret
	MasterSalt   []byte
	Peers        []Peer    // as they were
	Until        time.Time // when the newer is used at the latest
}

// Member is one node's membership in one group. Its methods may be called from
// several goroutines.
type Member struct {
	cfg Config
	log *slog.Logger

	exchange sync.Mutex // one request that changes the membership at a time
	follow   sync.Mutex // held by Follow

	mu     sync.Mutex
	t      Transport
	key    *cose.Key
	prove  func([]byte) ([]byte, error) // signs with key
	cred   []byte                       // the credential of key
	params *params                      // what the group announced last; nil: nothing yet
	ns     []byte                       // N_S: the newest challenge
	kdc    *cose.Key                    // countersigns rekeys over MQTT
	pinned []byte                       // credential that every join must show
	state  *State                       // nil: not joined; never modified once set
	missed *offer                       // newest material that cannot be installed yet
	mgt    *groupcomm.MgtKeyMaterial
	tree   *keytree.Follower // nil: the group has none, or the node did not ask
	acked  ackState
	spoken bool          // an empty proof was refused: there is to be none again
	ended  error         // why the membership is over
	wake   chan struct{} // for Follow

	groupURI string        // control_group_uri; "": none
	behind   chan struct{} // for Follow: a link of the key tree seems to be missed
	show     chan struct{} // for Follow: nobody knows of the version held

	ackWake chan struct{} // for the MQTT channel
	control []string      // path of the control_uri; nil: none
	phase   *time.Timer   // begins with what is held for later; nil: nothing is
}

// New makes a member that speaks over t, which it closes in [Member.Close].
// Nothing is sent.
func New(cfg Config, t Transport) (*Member, error) {
	if t == nil {
		return nil, errors.New("node: no transport")
	}
	if n := len(cfg.Group); n == 0 || n > maxName {
		return nil, fmt.Errorf("node: group name of %d bytes, 1 to %d are usable", n, maxName)
	}
	if err := cfg.Roles.ValidJoin(); err != nil {
		return nil, fmt.Errorf("node: roles: %w", err)
	}
	if cfg.Key != nil && len(cfg.Key.D) == 0 {
		return nil, errors.New("node: the key has no private part")
	}
	if cfg.Cred != nil && cfg.Key == nil {
		return nil, errors.New("node: a credential without its key")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	m := &Member{
		cfg:    cfg,
		log:    cfg.Log.With("group", cfg.Group),
		t:      t,
		pinned: cfg.KDCCred,
		wake:   make(chan struct{}, 1),

		ackWake: make(chan struct{}, 1),
		behind:  make(chan struct{}, 1),
		show:    make(chan struct{}, 1),
	}
	if cfg.Key != nil {
		m.useKey(cfg.Key, cfg.Cred)
	}
	if cfg.Saved != nil {
		if err := m.resume(cfg.Saved); err != nil {
			return nil, err
		}
		m.cfg.Saved = nil
	}
	if tr := cfg.Transfer; tr != nil {
		m.ns = tr.KDCChallenge
		if tr.SignInfo != nil || tr.ECDHInfo != nil {
			err := m.learnLocked(tr.SignInfo, tr.ECDHInfo, tr.KDCDHCreds)
			if err != nil && !errors.Is(err, errNoDHCred) { // which can be asked for
				return nil, err
			}
		}
	}
	if cfg.ControlURI != "" {
		path, err := controlPath(cfg.Group, cfg.ControlURI)
		if err != nil {
			return nil, fmt.Errorf("node: control_uri: %w", err)
		}
		m.control = path
		m.serve(t)
	}
	return m, nil
}

// Format prints a member without what it holds.
func (m *Member) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "member of %q", m.cfg.Group) }

// State tells the membership; ok is false when there is none.
func (m *Member) State() (s State, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return State{}, false
	}
	s = *m.state
	s.Peers = slices.Clone(s.Peers)
	return s, true
}

// Transport is the association in use; after [Member.Reconnect] it is another.
func (m *Member) Transport() Transport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.t
}

// Key is the node's private key; nil before the first Join when none was
// configured.
func (m *Member) Key() *cose.Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.key
}

// Cred is the node's credential, byte for byte as others have it; nil before the
// first Join.
func (m *Member) Cred() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cred
}

// useKey sets the node's key and what every join needs of it. cred may be nil
// until the group's format is known.
func (m *Member) useKey(key *cose.Key, cred []byte) {
	m.key, m.prove, m.cred = key, key.Signer(), cred
}

// Close closes the association. The membership stays: [Member.Leave] ends it.
func (m *Member) Close() error {
	m.mu.Lock()
	m.stopPhaseLocked()
	m.mu.Unlock()
	return m.transport().Close()
}

func (m *Member) transport() Transport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.t
}

// joined returns the state and the transport of a living membership.
func (m *Member) joined() (*State, Transport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		if m.ended != nil {
			return nil, nil, m.ended
		}
		return nil, nil, ErrNotJoined
	}
	return m.state, m.t, nil
}

// learnLocked takes the parameters of the group out of what was announced.
func (m *Member) learnLocked(sign, ecdh []groupcomm.SignInfoEntry, dh []groupcomm.KDCDHCred) error {
	p, err := announced(m.cfg.Group, sign, ecdh, dh)
	if err != nil {
		return err
	}
	if m.key != nil {
		if err := p.checkKey(m.key); err != nil {
			return fmt.Errorf("%w: the node's key does not fit the group's algorithm: %w", ErrUnsupported, err)
		}
		if m.cfg.Cred != nil {
			key, err := cose.ParseCredential(p.credFmt(), m.cfg.Cred)
			if err != nil {
				return fmt.Errorf("%w: the node's credential is not of the group's format: %w", ErrUnsupported, err)
			}
			if !key.SamePublic(m.cfg.Key) {
				return errors.New("node: the credential is not for the key")
			}
		}
	}
	m.params = p
	return nil
}

// emit tells an event. It is called without the lock.
func (m *Member) emit(e Event) {
	e.Group = m.cfg.Group
	e.tell(m.log, m.cfg.OnEvent)
}

// tell writes an event into the log and hands it to hear, which may be nil.
func (e Event) tell(log *slog.Logger, hear func(Event)) {
	if e.Err != nil {
		log.Info("answer refused or request failed", "kind", e.Kind, "via", e.Via, "err", e.Err)
	} else {
		log.Info("membership changed", "kind", e.Kind, "via", e.Via, "version", e.Version, "gid", e.Gid.String())
	}
	if hear != nil {
		hear(e)
	}
}

// end records why the membership is over, deletes the keying material and
// wakes Follow. The first reason stays.
func (m *Member) end(reason error) {
	m.mu.Lock()
	if m.ended != nil {
		m.mu.Unlock()
		return
	}
	m.ended = reason
	was := m.state
	m.state, m.missed, m.mgt, m.tree = nil, nil, nil, nil
	m.stopPhaseLocked()
	m.mu.Unlock()
	m.signal()
	e := Event{Kind: Left}
	switch {
	case errors.Is(reason, ErrEvicted), errors.Is(reason, ErrNotMember):
		e.Kind = Evicted
	case errors.Is(reason, ErrGroupDeleted):
		e.Kind = Deleted
	}
	if was != nil {
		e.Version, e.Gid = was.Version, was.Gid
	}
	m.emit(e)
}

// signal wakes Follow.
func (m *Member) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// nonce makes a fresh N_C.
func (m *Member) nonce() ([]byte, error) {
	b := make([]byte, ownNonce)
	if _, err := io.ReadFull(m.cfg.Rand, b); err != nil {
		return nil, fmt.Errorf("node: nonce: %w", err)
	}
	return b, nil
}

// groupRequest makes a request for /ace-group/GROUP and below.
func (m *Member) groupRequest(code coap.Code, below ...string) *coap.Request {
	req := &coap.Request{Code: code}
	req.Options.SetPath(append([]string{"ace-group", m.cfg.Group}, below...)...)
	return req
}
