package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Explainer tells why a node can or cannot read its groups now.
type Explainer interface {
	// Why explains one group, or all of the node's for "". The node has the name that
	// it has in its groups, that of an entry of delegates, or its identity at the
	// embedded Authorization Server.
	Why(ctx context.Context, node, group string) (*WhyInfo, error)
}

// WhyInfo is the answer about one node.
type WhyInfo struct {
	Node        string     `json:"node"`
	GatewayTime time.Time  `json:"gateway_time"`
	ClockHint   string     `json:"clock_hint,omitempty"` // what looks like a wrong clock
	Client      *WhyClient `json:"client,omitempty"`     // what the node is at the embedded Authorization Server; left out: it was not asked for by that identity
	More        int        `json:"more,omitempty"`       // memberships of the client that are not listed
	Groups      []WhyGroup `json:"groups"`
}

// WhyGroup is the answer about a node in one group.
type WhyGroup struct {
	Group   string   `json:"group"`
	Node    string   `json:"node"`             // its name in the group; "": it never was a member, as far as is known
	Client  string   `json:"client,omitempty"` // identity at the embedded Authorization Server that its key was given to
	Reads   string   `json:"reads"`            // yes, no, unknown
	Because string   `json:"because"`
	Next    []string `json:"next"` // what to do; empty: nothing

	Member       *WhyMember      `json:"member"` // null: it is none
	Token        *WhyToken       `json:"token"`  // null: it is no member
	Version      uint64          `json:"version"`
	Held         *uint64         `json:"held"` // last confirmed; null: it showed none
	Associations []Association   `json:"associations"`
	Delivery     *DeliveryMember `json:"delivery"`
	Tree         *WhyTree        `json:"tree,omitempty"` // left out: it does not follow a key tree
	Refused      *WhyRefusal     `json:"last_refused"`   // since the gateway started
	Departed     *WhyDeparture   `json:"departed,omitempty"`
	Handshake    *WhyHandshake   `json:"handshake,omitempty"` // the newest with a key of a token, since the gateway started
}

// WhyClient is a client of the embedded Authorization Server.
type WhyClient struct {
	Identity  string        `json:"identity"`
	State     string        `json:"state"` // configured, enabled, disabled
	Scope     []ScopeEntry  `json:"scope"` // the most that its tokens may allow
	Token     *time.Time    `json:"token"` // end of the one that lasts longest; null: none was issued
	Posted    bool          `json:"posted"`
	Handshake *WhyHandshake `json:"handshake,omitempty"`    // the newest with its identity, since the gateway started
	Refused   *WhyRefusal   `json:"last_refused,omitempty"` // likewise
}

// WhyHandshake is the newest DTLS handshake with a pre-shared key.
type WhyHandshake struct {
	At     time.Time `json:"at"`
	Result string    `json:"result"` // done, under-way, unfinished, refused
	Error  string    `json:"error,omitempty"`
}

// WhyDeparture is how its membership ended, as far as the audit log knows.
type WhyDeparture struct {
	At      time.Time `json:"at"`
	Evicted bool      `json:"evicted"` // false: it left
	Reason  string    `json:"reason,omitempty"`
}

// WhyTree is the way of a member in the key tree of its group.
type WhyTree struct {
	Group *DeliveryTree `json:"group"`
	Path  []WhyTreeNode `json:"path"`  // from its leaf to the root
	Links int           `json:"links"` // messages on the way that it needs for the newest version
}

// WhyTreeNode is a node of a key tree, without its key.
type WhyTreeNode struct {
	Node       string `json:"node"`        // LEVEL/INDEX
	KeyVersion uint32 `json:"key_version"` // as in the identifier of its key
	KeyStep    uint8  `json:"key_step"`
	Told       uint64 `json:"told"`            // newest version of which a message is under its key; 0: none is
	Topic      string `json:"topic,omitempty"` // where that is published
}

// WhyMember is a membership.
type WhyMember struct {
	SenderID *string  `json:"sender_id"` // hex; null: none
	Roles    []string `json:"roles"`
	JoinedAt *uint64  `json:"joined_at"` // version given at the latest join; null: not known
	Lapsed   bool     `json:"lapsed"`
}

// WhyToken is what the node's access token is worth in the group.
type WhyToken struct {
	Valid   bool       `json:"valid"`
	Roles   []string   `json:"roles"`   // that it grants in the group
	Expires *time.Time `json:"expires"` // null: never, or not known
	Error   string     `json:"error,omitempty"`
}

// WhyRefusal is the newest request of the node that was refused.
type WhyRefusal struct {
	At     time.Time `json:"at"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Code   string    `json:"code"`
	Error  string    `json:"error,omitempty"`
}

// why answers GET /v1/why/NODE; ?group=NAME is about that group only.
func (s *Server) why(r *http.Request) (any, error) {
	if s.deps.Explainer == nil {
		return nil, errNotServed
	}
	return s.deps.Explainer.Why(r.Context(), r.PathValue("node"), r.URL.Query().Get("group"))
}

// Why explains why a node can or cannot read a group now, all of its groups for
// "".
func (c *Client) Why(ctx context.Context, node, group string) (*WhyInfo, error) {
	path := "/v1/why/" + url.PathEscape(node)
	if group != "" {
		path += "?group=" + url.QueryEscape(group)
	}
	return call[WhyInfo](ctx, c, http.MethodGet, path, nil)
}

// RoleNames lists roles as the API shows them.
var RoleNames = roleNames
