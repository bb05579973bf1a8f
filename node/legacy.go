package node

import (
	"context"
	"crypto/rand"
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
)

// LegacyConfig says who joins what in a dialect of 2019 or 2020. Dialect, Group,
// Roles and Info are required.
type LegacyConfig struct {
	Dialect groupcomm.Interface // Draft03 or Hackathon109
	Group   string
	Roles   groupcomm.Roles
	// Info is what PostLegacyToken returned. With its sign_info a key that is not
	// configured can be made.
	Info *groupcomm.LegacyInfo
	// Key is the node's private key. nil: one is generated at the first Join, for
	// the algorithm that the group announces.
	Key *cose.Key
	// WantKeys asks for the public keys of the members that matter to Roles.
	WantKeys bool
	// Redial opens a new association after one was lost. nil:
	// [LegacyMember.Follow] returns [ErrLost] instead.
	Redial func(context.Context) (Transport, error)
	// PollEvery is how often Follow asks for the version beside what it is told;
	// 0: the group's Key Update Check Interval, else an hour.
	PollEvery time.Duration
	// OnEvent hears what happens, from any goroutine. It must not block.
	OnEvent func(Event)

	Log  *slog.Logger // nil: silent
	Rand io.Reader    // nonces; nil: crypto/rand
}

// LegacyMember is one node's membership in one group in a dialect of 2019 or 2020
// (draft-ietf-ace-key-groupcomm-oscore-03, draft-ietf-ace-key-groupcomm-oscore-09).
// The Group Manager proves nothing about itself there but what the association
// does. Its methods may be called from several goroutines.
type LegacyMember struct {
	cfg LegacyConfig
	log *slog.Logger

	exchange sync.Mutex // one request that changes the membership at a time
	follow   sync.Mutex // held by Follow

	mu    sync.Mutex
	t     Transport
	key   *cose.Key
	sign  *groupcomm.LegacySignInfo // what the group announced last
	ns    []byte                    // N_S
	state *State                    // nil: not joined; never modified once set

	wake chan struct{} // for Follow, one slot: the membership may be over
}

// PostLegacyToken transfers the access token to the Group Manager at the other end
// of t, and asks for the parameters that a join needs: POST /authz-info. The
// association need not be protected.
//
// draft-ietf-ace-key-groupcomm-oscore-03, Section 4.1.
func PostLegacyToken(ctx context.Context, d groupcomm.Interface, t Transport, a *Access) (*groupcomm.LegacyInfo, error) {
	const op = "post the token"
	if a == nil || len(a.Token) == 0 {
		return nil, errors.New("node: post the token: there is none")
	}
	transfer := groupcomm.TokenTransfer{
		AccessToken: slices.Clone(a.Token), WantLegacySignInfo: true, WantLegacyPubKeyEnc: d == groupcomm.Draft03,
	}
	req := &coap.Request{Code: coap.POST, Payload: transfer.Encode()}
	req.Options.SetPath("authz-info")
	req.Options.SetContentFormat(coap.LegacyACE)
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != coap.Created {
		return nil, refused(op, resp)
	}
	if f, ok := resp.Options.ContentFormat(); ok && f != coap.LegacyACE && f != coap.ACE {
		return nil, badAnswer(op, "Content-Format %d", f)
	}
	info, err := groupcomm.DecodeLegacyInfo(d, resp.Payload)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	if n := len(info.Challenge); n < minNonce || n > maxNonce {
		return nil, badAnswer(op, "a challenge of %d bytes", n)
	}
	return info, nil
}

// NewLegacy makes a member that speaks over t, which it closes in
// [LegacyMember.Close]. Nothing is sent.
func NewLegacy(cfg LegacyConfig, t Transport) (*LegacyMember, error) {
	switch n := len(cfg.Group); {
	case t == nil:
		return nil, errors.New("node: no transport")
	case cfg.Dialect != groupcomm.Draft03 && cfg.Dialect != groupcomm.Hackathon109:
		return nil, fmt.Errorf("node: %v is no legacy dialect", cfg.Dialect)
	case n == 0 || n > maxName:
		return nil, fmt.Errorf("node: group name of %d bytes, 1 to %d are usable", n, maxName)
	case cfg.Key != nil && len(cfg.Key.D) == 0:
		return nil, errors.New("node: the key has no private part")
	case cfg.Info == nil:
		return nil, errors.New("node: the answer to the token post is missing")
	}
	if err := cfg.Dialect.ValidLegacyJoin(cfg.Roles); err != nil {
		return nil, fmt.Errorf("node: roles: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	m := &LegacyMember{
		cfg: cfg, log: cfg.Log.With("group", cfg.Group, "dialect", cfg.Dialect.String()), t: t, key: cfg.Key, wake: make(chan struct{}, 1),
	}
	m.learn(cfg.Info)
	return m, nil
}

// Format prints a member without what it holds.
func (m *LegacyMember) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "member of %q by %v", m.cfg.Group, m.cfg.Dialect)
}

// State tells the membership; ok is false when there is none.
func (m *LegacyMember) State() (s State, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return State{}, false
	}
	s = *m.state
	s.Peers = slices.Clone(s.Peers)
	return s, true
}

// Close closes the association. The membership stays: [LegacyMember.Leave] ends
// it.
func (m *LegacyMember) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.t.Close()
}

// learn takes the parameters of the group, and N_S where it is there.
func (m *LegacyMember) learn(i *groupcomm.LegacyInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(i.Challenge); n >= minNonce && n <= maxNonce {
		m.ns = i.Challenge
	}
	for _, s := range i.SignInfo {
		if m.cfg.Dialect == groupcomm.Draft03 || slices.Contains(s.Groups, m.cfg.Group) {
			m.sign = &s
			return
		}
	}
}

// joined returns the state and the transport of a living membership.
func (m *LegacyMember) joined() (*State, Transport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == nil {
		return nil, nil, ErrNotJoined
	}
	return m.state, m.t, nil
}

// request makes a request for /group-oscore/GROUP and below.
func (m *LegacyMember) request(code coap.Code, body []byte, below ...string) *coap.Request {
	req := &coap.Request{Code: code, Payload: body}
	req.Options.SetPath(append([]string{"group-oscore", m.cfg.Group}, below...)...)
	if body != nil {
		req.Options.SetContentFormat(coap.CBOR)
	}
	return req
}

// do sends a request of a member and wants a code.
func (m *LegacyMember) do(ctx context.Context, op string, want coap.Code, req *coap.Request) (*coap.Response, error) {
	_, t, err := m.joined()
	if err != nil {
		return nil, err
	}
	resp, err := t.Do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if resp.Code != want {
		return nil, refused(op, resp)
	}
	return resp, nil
}

// emit tells an event. It is called without the lock.
func (m *LegacyMember) emit(e Event) {
	e.Group = m.cfg.Group
	e.tell(m.log, m.cfg.OnEvent)
}

// node is the path of the member's own resource below the group.
func (m *LegacyMember) node(s *State) []string {
	if m.cfg.Dialect == groupcomm.Hackathon109 {
		return []string{"nodes", s.Node}
	}
	return []string{"node"}
}
