package delegate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// States of a membership.
const (
	StateJoined  = "joined"
	StateJoining = "joining"
	StateEvicted = "evicted" // by the Group Manager; an operator can have it join again
	StateLeaving = "leaving" // it is not configured any more
)

// Status is what operators see of one membership.
type Status struct {
	Delegate  string
	Group     string
	GM        string // "": this gateway
	State     string
	Node      string // name at the Group Manager
	SenderID  groupcomm.SenderID
	Roles     groupcomm.Roles
	Version   groupcomm.Version
	Gid       groupcomm.Gid
	TokenEnds time.Time // zero: never, or there is none
	KeyEnds   time.Time
	LastHeard time.Time // of the legacy node; zero: never since the start
	Connected bool      // it has an association, or needs none
	Listen    string    // where group members reach it; "": nowhere
	Error     string    // of the last try; "": it did not fail
	ErrorAt   time.Time
}

// List tells of all memberships, by node and group.
func (r *Room) List() []Status {
	var out []Status
	for _, n := range r.nodes {
		for _, m := range n.memberships {
			out = append(out, m.status())
		}
	}
	r.mu.Lock()
	abandoned := slices.Clone(r.abandoned)
	r.mu.Unlock()
	for _, m := range abandoned {
		s := m.status()
		s.State = StateLeaving
		out = append(out, s)
	}
	return out
}

func (m *membership) status() Status {
	n := m.node
	n.mu.Lock()
	s := Status{
		Delegate: n.Name, Group: m.group.Name, GM: m.group.GM, State: StateJoining, Roles: m.Roles,
		LastHeard: n.heard, Connected: n.link != "" || n.Insecure.IsValid() || n.Topic != "",
	}
	n.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.access != nil {
		s.TokenEnds = m.access.ExpiresAt
	}
	if m.failed != "" {
		s.Error, s.ErrorAt = m.failed, m.since
	}
	if !m.evicted.IsZero() {
		s.State = StateEvicted
	}
	if m.live == nil {
		return s
	}
	if held, ok := m.live.member.State(); ok {
		s.State, s.Node, s.SenderID, s.Version, s.Gid, s.KeyEnds = StateJoined, held.Node, held.SenderID, held.Version, held.Gid, held.Expires
	}
	if m.live.server != nil {
		s.Listen = m.live.server.Addr().String()
	}
	return s
}

// ErrUnknown is the error of a name that nobody has.
var ErrUnknown = errors.New("delegate: no such delegate or group")

// Rejoin has a node join again that was evicted, or try at once.
func (r *Room) Rejoin(name string) error {
	found := false
	for _, n := range r.nodes {
		if n.Name != name {
			continue
		}
		for _, m := range n.memberships {
			found = true
			select {
			case m.again <- struct{}{}:
			default:
			}
		}
	}
	if !found {
		return fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	return nil
}

// Trust forgets the credential that a group's Group Manager proved, so that the next
// one that it proves is kept.
func (r *Room) Trust(ctx context.Context, group string) error {
	g, ok := r.cfg.Groups[group]
	if !ok {
		return fmt.Errorf("%w: %q", ErrUnknown, group)
	}
	return r.keep.unpin(ctx, g.GM, group)
}

// groups answers GET /gw/groups: the groups of the asking node and their state, a line
// each, or as JSON.
func (n *legacy) groups(req *coap.Request) (*coap.Response, error) {
	if req.Code != coap.GET {
		return nil, errOnlyGroup
	}
	if err := coap.Precondition(req.Options); err != nil {
		return nil, err
	}
	format := coap.TextPlain
	if v, ok := req.Options.Uint(coap.Accept); ok {
		format = coap.Format(v)
	}
	type line struct {
		Group   string `json:"group"`
		State   string `json:"state"`
		Version uint64 `json:"version"`
	}
	var list []line
	var text strings.Builder
	for _, m := range n.memberships {
		s := m.status()
		list = append(list, line{s.Group, s.State, uint64(s.Version)})
		fmt.Fprintf(&text, "%s %s %d\n", s.Group, s.State, s.Version)
	}
	r := &coap.Response{Code: coap.Content, Payload: []byte(text.String())}
	switch format {
	case coap.TextPlain:
	case formatJSON:
		b, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		r.Payload = b
	default:
		return nil, coap.Errorf(coap.NotAcceptable, "text/plain or application/json")
	}
	r.Options.SetContentFormat(format)
	r.Options.SetUint(coap.MaxAge, 0)
	return r, nil
}

const formatJSON coap.Format = 50
