package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Liveness tells how the members of groups are alive.
type Liveness interface {
	// Liveness tells about one member of a group, or all for "".
	Liveness(ctx context.Context, group, node string) (*LivenessInfo, error)
}

// LivenessInfo is how the members of a group are alive.
type LivenessInfo struct {
	Group       string         `json:"group"`
	GatewayTime time.Time      `json:"gateway_time"`
	Members     []NodeLiveness `json:"members"`
}

// NodeLiveness is how one member is alive.
type NodeLiveness struct {
	Node         string        `json:"node"`
	State        string        `json:"state"`             // current, pending, asleep, unreachable, lapsed
	Channel      string        `json:"channel"`           // observe, control, mqtt, poll, none
	LastHeard    *time.Time    `json:"last_heard"`        // null: never
	AwakeUntil   *time.Time    `json:"awake_until"`       // announced; null: nothing
	NextWake     *time.Time    `json:"next_wake"`         // announced; null: nothing
	UsualGap     *float64      `json:"usual_gap_s"`       // learned: seconds between signs of life; null: not known
	Handshakes   int           `json:"handshakes"`        // while it had an association, since the gateway started
	Lost         int           `json:"observations_lost"` // over the open associations: it rejected or did not answer
	Associations []Association `json:"associations"`
}

// Association is an association that is open now. What a host's own servers do
// not tell is null or left out.
type Association struct {
	Peer           string     `json:"peer"`
	Via            string     `json:"via"`
	Since          *time.Time `json:"since"`      // end of its handshake
	LastHeard      *time.Time `json:"last_heard"` // of any record that is authentic
	AddressChanges uint32     `json:"address_changes"`
	Observations   int        `json:"observations"`
	Lost           int        `json:"observations_lost"`
	Hibernated     bool       `json:"hibernated"` // compacted until it is heard or sent to
	Restored       bool       `json:"restored"`   // it outlived a restart of the gateway
	Stale          bool       `json:"stale"`      // and did not show since then that it is there
}

// liveness answers GET /v1/groups/NAME/liveness; ?node=NODE is about that member
// only.
func (s *Server) liveness(r *http.Request) (any, error) {
	if s.deps.Liveness == nil {
		return nil, errNotServed
	}
	return s.deps.Liveness.Liveness(r.Context(), r.PathValue("name"), r.URL.Query().Get("node"))
}

// Liveness tells how the members of a group are alive, or one of them.
func (c *Client) Liveness(ctx context.Context, group, node string) (*LivenessInfo, error) {
	path := "/v1/groups/" + url.PathEscape(group) + "/liveness"
	if node != "" {
		path += "?node=" + url.QueryEscape(node)
	}
	return call[LivenessInfo](ctx, c, http.MethodGet, path, nil)
}
