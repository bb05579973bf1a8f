package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Deliveries tells how far rekeys have come.
type Deliveries interface {
	// Delivery tells about the newest rekey of a group; members only when asked.
	Delivery(ctx context.Context, group string, members bool) (*DeliveryInfo, error)
}

// DeliveryInfo is the progress of the newest rekey of a group. Members that
// lapsed are not waited for, and not in Members.
type DeliveryInfo struct {
	Group       string     `json:"group"`
	Version     uint64     `json:"version"`
	Since       *time.Time `json:"since"` // when the version became due, to the millisecond; null: not known
	Done        *time.Time `json:"done"`  // likewise when every member had confirmed it; null: not yet
	Members     int        `json:"members"`
	Delivered   int        `json:"delivered"`
	Pending     int        `json:"pending"`
	Asleep      int        `json:"asleep"`
	Unreachable int        `json:"unreachable"`
	Lapsed      int        `json:"lapsed"`
	Percent     float64    `json:"percent"`
	Held        int        `json:"held"`                 // of those that lack it: they wait for their turn
	HeldUntil   *time.Time `json:"held_until,omitempty"` // at the latest; left out: nobody waits

	Tree *DeliveryTree `json:"tree,omitempty"` // left out: the group has no key tree

	Ledger []DeliveryMember `json:"ledger,omitzero"`
}

// DeliveryTree is the key tree of a group, and how its newest rekey went out. It has
// no key, and names nodes as the broker and multicast show them to everybody.
type DeliveryTree struct {
	ID         string     `json:"id"`              // hex, in the identifiers of its keys
	Topic      string     `json:"topic,omitempty"` // begins those of its nodes; left out: no MQTT
	Degree     uint32     `json:"degree"`
	Height     uint8      `json:"height"`
	Leaves     int64      `json:"leaves"`
	Version    uint64     `json:"version"`    // newest that it told; 0: none
	Messages   int64      `json:"messages"`   // of that version
	Published  *int       `json:"published"`  // of them, that the broker took in this session; null: this gateway has none
	Multicasts int        `json:"multicasts"` // how often they were
	Sent       *time.Time `json:"sent"`       // since when all are under way; null: they are not
	Waiting    int64      `json:"leaves_out"` // taken out since: the next rekey shuts them out
	Dirty      int64      `json:"keys_to_renew"`
	Homeless   int64      `json:"without_place"` // members that get a place when they ask for the keying material
}

// DeliveryMember is one member of a group in its ledger.
type DeliveryMember struct {
	Node      string            `json:"node"`
	Version   *uint64           `json:"version"`                // last confirmed; null: none
	By        string            `json:"confirmed_by,omitempty"` // channel that showed it first: observe, control, mqtt, multicast, poll
	State     string            `json:"state"`                  // current, pending, asleep, unreachable, lapsed
	Since     *time.Time        `json:"since"`                  // of the state
	LastHeard *time.Time        `json:"last_heard"`
	NextWake  *time.Time        `json:"next_wake"`            // announced
	HeldUntil *time.Time        `json:"held_until,omitempty"` // so long it may wait for its turn, in a scheduled rekey
	Attempts  int               `json:"attempts"`             // since it was last heard
	LastError string            `json:"last_error,omitempty"`
	Connected *bool             `json:"connected,omitempty"` // to the MQTT broker; left out: not known
	Want      string            `json:"want,omitempty"`      // channel that it asked for
	Channel   string            `json:"channel"`
	Channels  []DeliveryChannel `json:"channels,omitempty"`
	Twin      string            `json:"twin,omitempty"` // the member that has the newest version and is of the same client, where there is one: perhaps the node lost its state and joined again
	Tree      *DeliveryLeaf     `json:"tree,omitempty"` // left out: it does not follow a key tree
}

// DeliveryLeaf is a member's place in the key tree of its group.
type DeliveryLeaf struct {
	Leaf *int64 `json:"leaf"` // null: none
	// CatchUp is why it cannot have the newest version by the tree, and must ask
	// with GET: no-place, missed-link, or asked when it did since.
	CatchUp string `json:"catch_up,omitempty"`
}

// DeliveryChannel is the newest outcome of one channel of a member since the
// gateway started.
type DeliveryChannel struct {
	Channel string    `json:"channel"` // observe, control, mqtt, poll
	Result  string    `json:"result"`  // relayed, confirmed, failed
	At      time.Time `json:"at"`
	Error   string    `json:"error,omitempty"`
}

// delivery answers GET /v1/groups/NAME/delivery; ?members=1 adds the ledger.
func (s *Server) delivery(r *http.Request) (any, error) {
	if s.deps.Deliveries == nil {
		return nil, errNotServed
	}
	return s.deps.Deliveries.Delivery(r.Context(), r.PathValue("name"), r.URL.Query().Get("members") == "1")
}

// Delivery tells about the newest rekey of a group.
func (c *Client) Delivery(ctx context.Context, group string, members bool) (*DeliveryInfo, error) {
	path := "/v1/groups/" + url.PathEscape(group) + "/delivery"
	if members {
		path += "?members=1"
	}
	return call[DeliveryInfo](ctx, c, http.MethodGet, path, nil)
}

// TimeOrNil is a time as the API shows it, null for the zero time.
func TimeOrNil(t time.Time) *time.Time { return timeOrNil(t) }

// MomentOrNil is TimeOrNil to the millisecond, where the difference of two counts.
func MomentOrNil(t time.Time) *time.Time { return truncated(t, time.Millisecond) }
