package admin

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Audit reads the audit log.
type Audit interface {
	AuditRecords(ctx context.Context, q AuditQuery) ([]AuditRecord, error)
}

// AuditQuery selects records. Zero values select everything.
type AuditQuery struct {
	Group string
	Kinds []string
	Since time.Time
	After int64 // records with a higher ID only
	Limit int   // the first so many

	Full bool // personal fields as they are; the reading is recorded
}

// AuditRecord is one line of the audit log. Node, Peer, Subject and SenderID are
// pseudonyms, "~" and 12 hexadecimal digits, unless full records were asked for.
type AuditRecord struct {
	ID   int64     `json:"id"`
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`

	Group    string   `json:"group,omitempty"`
	Node     string   `json:"node,omitempty"`
	Peer     string   `json:"peer,omitempty"`
	Subject  string   `json:"subject,omitempty"`
	SenderID *string  `json:"sender_id,omitempty"` // hex
	Roles    []string `json:"roles,omitempty"`
	Version  *uint64  `json:"version,omitempty"`
	Gid      string   `json:"gid,omitempty"` // hex
	Reason   string   `json:"reason,omitempty"`

	// Of refused requests.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Code   string `json:"code,omitempty"`
	Error  *int   `json:"error,omitempty"` // error identifier of ACE Groupcomm
	Count  int    `json:"count,omitempty"`
}

// Bounds of one reading.
const (
	auditPage     = 1000
	maxAuditKinds = 32
	maxAuditText  = 100 // bytes of a name in a query
)

// auditRecords answers one page, in the order in which records were written.
func (s *Server) auditRecords(r *http.Request) (any, error) {
	q, err := auditQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if s.deps.Audit == nil {
		return nil, errNotServed
	}
	list, err := s.deps.Audit.AuditRecords(r.Context(), q)
	if err != nil {
		return nil, err
	}
	return append([]AuditRecord{}, list...), nil
}

func auditQuery(v url.Values) (q AuditQuery, err error) {
	q.Limit = auditPage
	for name, values := range v {
		value := values[len(values)-1]
		switch name {
		case "group":
			q.Group = value
		case "kind":
			q.Kinds = values
		case "since":
			q.Since, err = time.Parse(time.RFC3339, value)
		case "after":
			q.After, err = strconv.ParseInt(value, 10, 64)
		case "full":
			q.Full, err = strconv.ParseBool(value)
		default:
			return q, badRequest("no parameter is called %q", name)
		}
		if err != nil {
			return q, badRequest("%s is not understood", name)
		}
	}
	if len(q.Kinds) > maxAuditKinds || len(q.Group) > maxAuditText {
		return q, badRequest("too much is asked for")
	}
	for _, k := range q.Kinds {
		if len(k) > maxAuditText {
			return q, badRequest("too much is asked for")
		}
	}
	return q, nil
}

// Audit reads a page of the audit log; an empty one is the end. The next page
// begins After the last ID.
func (c *Client) Audit(ctx context.Context, q AuditQuery) ([]AuditRecord, error) {
	v := url.Values{"after": {strconv.FormatInt(q.After, 10)}}
	if q.Group != "" {
		v.Set("group", q.Group)
	}
	if len(q.Kinds) > 0 {
		v["kind"] = q.Kinds
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339))
	}
	if q.Full {
		v.Set("full", "true")
	}
	list, err := call[[]AuditRecord](ctx, c, http.MethodGet, "/v1/audit?"+v.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return *list, nil
}
