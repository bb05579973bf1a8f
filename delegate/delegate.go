// Package delegate joins OSCORE groups on behalf of legacy nodes, which know
// neither ACE nor OSCORE, and speaks Group OSCORE in their place.
//
// Each (node, group) is a membership of its own: an access token, a
// proof-of-possession key, an association with the Group Manager, a key pair, a
// Sender ID. Nothing of it is shared with another node. It is kept sealed in the
// store and goes on after a restart: Sender Sequence Numbers are reserved on disk
// before they are used, and a request is in the Replay Window on disk before it is
// served (draft-ietf-core-oscore-groupcomm-28, Section 2.6.1).
//
//	legacy node ──plain CoAP inside DTLS──▶ Room.ServeCoAP ──Group OSCORE──▶ group
//	legacy node ◀──plain CoAP inside DTLS── Hub.Do ◀──Group OSCORE── node.GroupServer
//
// Start at [New]; [Room.Run] joins, follows rekeys, renews tokens, and leaves for
// nodes that are not configured any more.
package delegate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/rarely"
	"github.com/seed4911071e/groupgate/store"
)

// Config says who is joined for, and where.
type Config struct {
	Nodes  []Node
	Groups map[string]Group // by name: all that Nodes name
}

// Node is a legacy node. Names are unique.
type Node struct {
	Name     string
	Client   string         // identity at the embedded Authorization Server
	Subject  coap.Subject   // who it is on its association; zero: it has none
	Insecure netip.AddrPort // of a node without one; the zero value: it is another
	Sleepy   bool           // asked only while it is awake
	Awake    time.Duration  // how long it is so after a sign of life
	Hold     time.Duration  // the most that a request waits for it
	RPS      float64        // messages per second to it, and from it
	Topic    string         // of a sensor that speaks MQTT only: its messages are the resource
	Groups   []Membership
}

// Membership is one group that a node is in, and what of it the group may use.
type Membership struct {
	Group     string
	Roles     groupcomm.Roles
	Listen    string                 // where group members reach the node, host:port; "": 127.0.0.1, any port
	SendPath  []string               // below it the node's requests are for the group; nil: none
	Resources map[string][]coap.Code // by path, such as "/t"
}

// Group is where a group's Group Manager and its members are.
type Group struct {
	Name     string
	GM       string  // URI of the Group Manager; "": this gateway
	Secure   bool    // it is reached with DTLS, else with OSCORE
	Addr     string  // host:port of it
	Audience string  // of its tokens
	AS       *Server // who gives them out; nil: the embedded Authorization Server

	Multicast netip.AddrPort // IPv4; the zero value: none
	Interface string         // for multicast; "": loopback
	Leisure   time.Duration
	Collect   time.Duration // how long responses to a group request are waited for
}

// Server is a server elsewhere and the pre-shared key that the gateway has there.
type Server struct {
	Addr     string
	Identity string
	Key      cose.Secret
}

// Hub reaches nodes over the associations that they opened.
type Hub interface {
	Do(ctx context.Context, link coap.LinkID, req *coap.Request) (*coap.Response, error)
}

// Home is the gateway's own Authorization Server and Group Manager.
type Home interface {
	// AS opens an association with the Authorization Server as a client of it.
	AS(client string) node.Transport
	// GM posts a token and opens an association with the Group Manager, as whoever
	// has the key that the token confirms.
	GM(ctx context.Context, a *node.Access) (node.Transport, *groupcomm.TokenTransferResponse, error)
}

// Deps is what the room works with. Store, Hub and Home are required.
type Deps struct {
	Store      *store.Store
	Hub        Hub
	Home       Home
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Room is all delegates of the gateway.
type Room struct {
	cfg     Config
	store   *store.Store
	hub     Hub
	home    Home
	log     *slog.Logger
	metrics *metrics
	keep    *keeper

	nodes     []*legacy
	bySubject map[coap.Subject]*legacy
	byAddr    map[netip.AddrPort]*legacy
	byTopic   map[string]*legacy

	mu        sync.Mutex
	abandoned []*membership // guarded by mu: of nodes that are not configured any more

	stopped context.Context // ends with Run
	stop    context.CancelFunc
}

// legacy is one node.
type legacy struct {
	Node
	log         *slog.Logger
	memberships []*membership
	in, out     *rate.Limiter // messages from it and to it
	held        chan struct{} // slots of requests that wait for it

	mu    sync.Mutex
	link  coap.LinkID    // its newest association
	heard time.Time      // last sign of life; zero: none
	woken chan struct{}  // closed at each sign of life
	woke  time.Time      // when it was heard after a silence
	gap   time.Duration  // learned: from one such moment to the next; 0: not known
	value *reading       // newest message on its topic
	large rarely.Line    // messages that are too large
	plain node.Transport // the way to an insecure node; nil: not opened
}

// New makes a room. It does no I/O.
func New(cfg Config, d Deps) (*Room, error) {
	if d.Store == nil || d.Hub == nil || d.Home == nil {
		return nil, errors.New("delegate: store, hub and home are required")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	r := &Room{
		cfg: cfg, store: d.Store, hub: d.Hub, home: d.Home, log: d.Log, keep: &keeper{store: d.Store, owner: d.Store.Gateway()},
		bySubject: map[coap.Subject]*legacy{}, byAddr: map[netip.AddrPort]*legacy{}, byTopic: map[string]*legacy{},
	}
	r.stopped, r.stop = context.WithCancel(context.Background())
	for _, n := range cfg.Nodes {
		l := &legacy{
			Node: n, log: d.Log.With("delegate", n.Name), woken: make(chan struct{}), held: make(chan struct{}, maxHeld),
			in:  rate.NewLimiter(rate.Limit(n.RPS), max(1, int(2*n.RPS))),
			out: rate.NewLimiter(rate.Limit(n.RPS), max(1, int(2*n.RPS))),
		}
		for _, m := range n.Groups {
			g, ok := cfg.Groups[m.Group]
			if !ok {
				return nil, fmt.Errorf("delegate: %s: no group %q", n.Name, m.Group)
			}
			l.memberships = append(l.memberships, newMembership(r, l, g, m))
		}
		if n.Subject != (coap.Subject{}) {
			r.bySubject[n.Subject] = l
		}
		if n.Insecure.IsValid() {
			r.byAddr[n.Insecure] = l
			l.log.Warn("the node is recognised by its address only, which others can take", "addr", n.Insecure)
		}
		if n.Topic != "" {
			r.byTopic[n.Topic] = l
		}
		r.nodes = append(r.nodes, l)
	}
	slices.SortFunc(r.nodes, func(a, b *legacy) int { return strings.Compare(a.Name, b.Name) })
	r.metrics = newMetrics(d.Registerer, r)
	return r, nil
}

// Setup reads what earlier runs left.
func (r *Room) Setup(ctx context.Context) error {
	rows, err := r.keep.load(ctx)
	if err != nil {
		return fmt.Errorf("delegate: %w", err)
	}
	for _, row := range rows {
		if m := r.membership(row.node, row.group); m != nil && m.group.GM == row.gm && m.Roles == row.roles {
			m.restore(row)
			continue
		} else if m != nil && m.group.GM == row.gm {
			m.former = r.abandon(row) // its place on disk is that of the new one
			continue
		}
		r.abandoned = append(r.abandoned, r.abandon(row))
	}
	return nil
}

// Recover gives up every membership of an earlier run, and what was held, because the
// database is older than what left the gateway: each node gets a new Sender ID.
func (r *Room) Recover(ctx context.Context) error {
	if err := r.keep.forgetHeld(ctx); err != nil {
		return err
	}
	for _, n := range r.nodes {
		for _, m := range n.memberships {
			m.mu.Lock()
			m.saved = nil
			m.mu.Unlock()
			if err := m.write(ctx); err != nil {
				return fmt.Errorf("delegate: %w", err)
			}
		}
	}
	return nil
}

// membership finds a configured one.
func (r *Room) membership(name, group string) *membership {
	for _, n := range r.nodes {
		for _, m := range n.memberships {
			if n.Name == name && m.group.Name == group {
				return m
			}
		}
	}
	return nil
}

// Run keeps every membership alive until ctx ends.
func (r *Room) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	r.mu.Lock()
	abandoned := slices.Clone(r.abandoned)
	r.mu.Unlock()
	for _, m := range abandoned {
		g.Go(func() error { m.depart(ctx); return nil })
	}
	for _, n := range r.nodes {
		for _, m := range n.memberships {
			g.Go(func() error { m.run(ctx); return nil })
		}
	}
	err := g.Wait()
	r.stop()
	for _, n := range r.nodes {
		n.hangUp()
	}
	return err
}
