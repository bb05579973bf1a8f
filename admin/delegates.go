package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Delegates are the legacy nodes that the gateway joins groups for.
type Delegates interface {
	// Delegates tells of all memberships, by node and group.
	Delegates(ctx context.Context) ([]DelegateInfo, error)
	// RejoinDelegate has a node join again that was evicted.
	RejoinDelegate(ctx context.Context, name string) error
	// TrustGM takes the next credential that a group's Group Manager proves.
	TrustGM(ctx context.Context, group string) error
}

// DelegateInfo is one legacy node in one group.
type DelegateInfo struct {
	Delegate  string     `json:"delegate"`
	Group     string     `json:"group"`
	GM        string     `json:"gm"`        // local, or its URI
	State     string     `json:"state"`     // joined, joining, evicted, leaving
	Node      string     `json:"node"`      // name at the Group Manager; "": none
	SenderID  *string    `json:"sender_id"` // hex; null: none
	Roles     []string   `json:"roles"`
	Version   uint64     `json:"version"`
	Gid       string     `json:"gid"` // hex
	KeyEnds   *time.Time `json:"key_ends"`
	TokenEnds *time.Time `json:"token_ends"`
	LastHeard *time.Time `json:"last_heard"` // of the legacy node, since the gateway started
	Connected bool       `json:"connected"`  // it has an association, or needs none
	Listen    string     `json:"listen"`     // where group members reach it; "": nowhere
	Error     string     `json:"error,omitempty"`
	ErrorAt   *time.Time `json:"error_at,omitempty"`
}

// Done is the answer to what has nothing to tell.
type Done struct {
	Done bool `json:"done"`
}

func (s *Server) listDelegates(r *http.Request) (any, error) {
	if s.deps.Delegates == nil {
		return nil, errNotServed
	}
	return s.deps.Delegates.Delegates(r.Context())
}

func (s *Server) rejoinDelegate(r *http.Request) (any, error) {
	if s.deps.Delegates == nil {
		return nil, errNotServed
	}
	return Done{true}, s.deps.Delegates.RejoinDelegate(r.Context(), r.PathValue("name"))
}

func (s *Server) trustGM(r *http.Request) (any, error) {
	if s.deps.Delegates == nil {
		return nil, errNotServed
	}
	return Done{true}, s.deps.Delegates.TrustGM(r.Context(), r.PathValue("name"))
}

// Delegates lists the legacy nodes that the gateway joins groups for.
func (c *Client) Delegates(ctx context.Context) ([]DelegateInfo, error) {
	list, err := call[[]DelegateInfo](ctx, c, http.MethodGet, "/v1/delegates", nil)
	if err != nil {
		return nil, err
	}
	return *list, nil
}

// RejoinDelegate has a legacy node join again that was evicted.
func (c *Client) RejoinDelegate(ctx context.Context, name string) error {
	_, err := call[Done](ctx, c, http.MethodPost, "/v1/delegates/"+url.PathEscape(name)+"/rejoin", nil)
	return err
}

// TrustGM takes the next credential that a group's Group Manager proves.
func (c *Client) TrustGM(ctx context.Context, group string) error {
	_, err := call[Done](ctx, c, http.MethodPost, "/v1/groups/"+url.PathEscape(group)+"/trust", nil)
	return err
}
