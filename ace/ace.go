// Package ace is what the gateway knows of Authentication and Authorization for
// Constrained Environments (RFC 9200): it verifies and keeps access tokens,
// finds the pre-shared keys of DTLS handshakes (RFC 9202), says at every
// request what a peer may do, and is a small Authorization Server for those who
// have no other.
//
// Start at [Server]. A token enters through [Server.AuthzInfo] or in a
// psk_identity ([Server.PSK], [Server.Conveyed]); both go through [Server.verify]
// and [Server.place]. With a token of the OSCORE profile (RFC 9203) a Security
// Context is made, which [Server.Context] finds again. Everybody else asks [Server.Grant] with the subject that
// a peer has proved, at every request anew: a token that ended, was replaced or
// was revoked takes effect at once.
//
// # One key, two places
//
// A stored key of proof has one token that is in force and perhaps one that
// waits. /authz-info is open to everybody, so a token posted there by somebody
// who did not prove its key waits until the key is proved: by a new handshake,
// or by the same post inside an association of that key. While a key was never
// proved there is nobody to protect and the token is in force at once.
//
//	            post of a newer token, key never proved
//	            or posted inside an association, or conveyed
//	(nothing) ────────────────────────────────────▶ in force ──▶ expired, revoked
//	            post from outside, key proved              ▲
//	          ────────────────────▶ waiting ───────────────┘
//	                                      handshake, or post inside
package ace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// GroupInfo says how groups are configured, for the answer to a token post.
type GroupInfo interface {
	// GroupConfigs returns the configurations of those names that exist, in
	// any order.
	GroupConfigs(ctx context.Context, names []string) ([]groupcomm.GroupConfig, error)
	// KDCDHCreds returns the Group Manager's Diffie-Hellman credentials in those
	// of the groups that use the pairwise mode only.
	KDCDHCreds(ctx context.Context, names []string) ([]groupcomm.KDCDHCred, error)
}

// Deps are the collaborators of a Server.
type Deps struct {
	Store      *store.Store // nil: only Issue works, and remembers nothing
	Groups     GroupInfo    // nil: no group information in answers to token posts
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are kept to ourselves

	Hub coap.Hub // reaches observers of the list of revoked tokens; nil: they are not told

	// Dropped is told which Security Contexts are not to be used any more; it
	// does not wait. nil: nobody is told.
	Dropped func([]coap.LinkID)
}

// Server is the room. Its methods may be used from many goroutines.
type Server struct {
	cfg     Config
	store   *store.Store
	groups  GroupInfo
	log     *slog.Logger
	metrics *metrics
	dropped func([]coap.LinkID)
	hub     coap.Hub

	identities map[string]*PSKPeer
	handshakes *handshakes
	grants     *grantCache
	posts      *postLimiter
	answers    *answerCache
	asking     chan struct{} // holds one element for each introspection under way

	stored atomic.Int64 // keys in the store
	issued atomic.Int64 // remembered keys of the embedded AS
	nodes  atomic.Int64 // enrolled nodes

	// planned is when the purge looks next, in seconds since 1970; wake has it
	// look again now.
	planned atomic.Int64
	wake    chan struct{}
	flush   chan struct{} // one slot: write down what was proved

	rawKey atomic.Pointer[cose.Key] // nil before Setup

	mu      sync.Mutex
	touched map[coap.Subject]struct{} // guarded by mu: proved, not yet marked in the store
}

// New makes a Server of a valid configuration; it does no I/O.
func New(cfg Config, d Deps) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg:        cfg,
		store:      d.Store,
		groups:     d.Groups,
		log:        d.Log,
		hub:        d.Hub,
		dropped:    d.Dropped,
		metrics:    newMetrics(d.Registerer),
		identities: make(map[string]*PSKPeer, len(cfg.PSK)),
		grants:     newGrantCache(),
		handshakes: newHandshakes(),
		posts:      newPostLimiter(cfg.Limits),
		answers:    newAnswerCache(),
		asking:     make(chan struct{}, maxAsking),
		wake:       make(chan struct{}, 1),
		flush:      make(chan struct{}, 1),
		touched:    map[coap.Subject]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for i := range cfg.PSK {
		s.identities[string(cfg.PSK[i].Identity)] = &cfg.PSK[i]
	}
	return s
}

// Setup reads what Run and the handlers need to begin. It ends tokens that
// expired while the gateway was down, so that nothing starts from them.
func (s *Server) Setup(ctx context.Context) error {
	if err := s.countStored(ctx); err != nil {
		return err
	}
	if err := s.setupRawKey(ctx); err != nil {
		return fmt.Errorf("ace: raw public key of the gateway: %w", err)
	}
	if err := s.warnShadowed(ctx); err != nil {
		return fmt.Errorf("ace: read nodes: %w", err)
	}
	// A full disk does not keep the gateway from starting: Run tries it again, and grants
	// look at the clock themselves.
	if _, err := s.purge(ctx); err != nil && !errors.Is(err, store.ErrFull) {
		return fmt.Errorf("ace: end expired tokens: %w", err)
	}
	return nil
}

// countStored reads how much there is. In between, what this gateway stores
// and drops is counted along; what others do is seen at the next look.
func (s *Server) countStored(ctx context.Context) error {
	err := s.store.View(ctx, func(tx *store.Tx) error {
		var keys, issued, nodes int64
		if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_keys`).Scan(&keys); err != nil {
			return err
		}
		if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_issued`).Scan(&issued); err != nil {
			return err
		}
		if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_nodes`).Scan(&nodes); err != nil {
			return err
		}
		s.nodes.Store(nodes)
		s.stored.Store(keys)
		s.issued.Store(issued)
		return nil
	})
	if err != nil {
		return fmt.Errorf("ace: count tokens: %w", err)
	}
	s.metrics.stored.Set(float64(s.stored.Load()))
	s.metrics.nodes.Set(float64(s.nodes.Load()))
	return nil
}
