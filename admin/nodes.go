package admin

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// Nodes enrolls nodes as clients of the embedded Authorization Server.
type Nodes interface {
	// EnrollNodes enrolls all of the nodes or none; the error is LineFaults
	// when they are wrong. It changes nothing with DryRun.
	EnrollNodes(ctx context.Context, nodes []NodeSpec, o EnrollOptions) (*EnrollResult, error)
	// ListNodes lists nodes by identity, after the one named, limit at most.
	ListNodes(ctx context.Context, after string, limit int) ([]NodeStatus, error)
	// EnableNodes, DisableNodes and RemoveNodes change all of the nodes or
	// none, and return how many were in another state before.
	EnableNodes(ctx context.Context, identities []string) (int, error)
	DisableNodes(ctx context.Context, identities []string) (int, error)
	RemoveNodes(ctx context.Context, identities []string) (int, error)
}

// EnrollOptions say how nodes are enrolled.
type EnrollOptions struct {
	Audience string        // of their tokens; "": the only one there is
	Lifetime time.Duration // of their tokens
	Replace  bool          // identities that are enrolled already get the new key and rights
	DryRun   bool          // find every mistake, change nothing
}

// EnrollResult is the answer to an enrollment, or what it would be.
type EnrollResult struct {
	Audience      string   `json:"audience"`
	Enrolled      int      `json:"enrolled"` // new ones
	Replaced      int      `json:"replaced"`
	Revoked       int      `json:"revoked"`                  // of those replaced: other key or fewer rights, so their tokens ended
	UnknownGroups []string `json:"unknown_groups,omitempty"` // legal, but perhaps a slip
}

// NodeStatus is an enrolled node.
type NodeStatus struct {
	Identity string
	State    string // enabled, disabled, shadowed by a configured peer
	Audience string
	Scope    groupcomm.Scope
	Lifetime time.Duration
	Enrolled time.Time
}

// NodeInfo is an enrolled node as the API shows it.
type NodeInfo struct {
	Identity string       `json:"identity"`
	State    string       `json:"state"` // enabled, disabled, shadowed by a configured peer
	Audience string       `json:"audience"`
	Scope    []ScopeEntry `json:"scope"`
	Lifetime string       `json:"lifetime"`
	Enrolled *time.Time   `json:"enrolled"`
}

// NodesChanged is the answer to enable, disable and remove.
type NodesChanged struct {
	Changed int `json:"changed"` // how many were in another state before
}

// LineFaults is an error that lists mistakes by line.
type LineFaults []LineFault

func (f LineFaults) Error() string { return countOf(len(f), "mistake") + " in the file" }

// problem tells the first of them, in the order of lines.
func (f LineFaults) problem() *Problem {
	slices.SortStableFunc(f, func(a, b LineFault) int { return a.Line - b.Line })
	told := f[:min(len(f), maxFaults)]
	p := &Problem{Status: http.StatusUnprocessableEntity, Detail: f.Error() + ", nothing is changed", Faults: told}
	if len(told) < len(f) {
		p.Hint = fmt.Sprintf("these are the first %d", len(told))
	}
	return p
}

func countOf(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// enrollNodes takes a file of nodes in the body. The answer holds no keys: who
// sends the file has them.
func (s *Server) enrollNodes(r *http.Request) (any, error) {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "text/csv" {
		return nil, &Problem{Status: http.StatusUnsupportedMediaType, Detail: "the body must be text/csv"}
	}
	o, err := enrollOptions(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if s.deps.Nodes == nil {
		return nil, errNotServed
	}
	nodes, faults := ParseNodes(r.Body, false)
	ask := o
	ask.DryRun = o.DryRun || len(faults) > 0
	// What the parser liked is looked at too, so that all is told at once.
	wrong := map[int]bool{}
	for _, f := range faults {
		wrong[f.Line] = true
	}
	nodes = slices.DeleteFunc(nodes, func(n NodeSpec) bool { return wrong[n.Line] })
	result, err := s.deps.Nodes.EnrollNodes(r.Context(), nodes, ask)
	if more, ok := errors.AsType[LineFaults](err); ok {
		faults = append(faults, more...)
	} else if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return nil, LineFaults(faults).problem()
	}
	result.UnknownGroups, err = s.unknownGroups(r, nodes)
	if err != nil {
		return nil, err
	}
	return result, nil
}

func enrollOptions(q url.Values) (o EnrollOptions, err error) {
	o.Lifetime = defaultTokenLifetime
	for name, values := range q {
		value := values[len(values)-1]
		switch name {
		case "audience":
			o.Audience = value
		case "lifetime":
			if o.Lifetime, err = time.ParseDuration(value); err != nil || o.Lifetime < time.Second || o.Lifetime > maxTokenLifetime {
				return o, badRequest("lifetime must be a duration such as 24h")
			}
		case "replace":
			o.Replace, err = strconv.ParseBool(value)
		case "dry_run":
			o.DryRun, err = strconv.ParseBool(value)
		default:
			return o, badRequest("no parameter is called %q", name)
		}
		if err != nil {
			return o, badRequest("%s must be true or false", name)
		}
	}
	return o, nil
}

// Lifetimes of the tokens of enrolled nodes.
const (
	defaultTokenLifetime = 24 * time.Hour
	maxTokenLifetime     = 10 * 365 * 24 * time.Hour
)

// unknownGroups lists the groups that nodes may join and that do not exist. A
// group may come later, so that is no fault.
func (s *Server) unknownGroups(r *http.Request, nodes []NodeSpec) ([]string, error) {
	if s.deps.Groups == nil {
		return nil, nil
	}
	groups, err := s.deps.Groups.Groups(r.Context())
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, g := range groups {
		seen[g.Name] = true
	}
	var unknown []string
	for _, n := range nodes {
		for _, e := range n.Scope {
			if !seen[e.Group] && len(unknown) < maxFaults {
				seen[e.Group] = true
				unknown = append(unknown, e.Group)
			}
		}
	}
	slices.Sort(unknown)
	return unknown, nil
}

// nodePage is how many nodes one answer lists.
const nodePage = 1000

// listNodes answers one page; ?after= names the last identity of the one
// before.
func (s *Server) listNodes(r *http.Request) (any, error) {
	if s.deps.Nodes == nil {
		return nil, errNotServed
	}
	nodes, err := s.deps.Nodes.ListNodes(r.Context(), r.URL.Query().Get("after"), nodePage)
	if err != nil {
		return nil, err
	}
	list := make([]NodeInfo, len(nodes))
	for i, n := range nodes {
		list[i] = NodeInfo{
			Identity: n.Identity, State: n.State, Audience: n.Audience, Scope: []ScopeEntry{},
			Lifetime: n.Lifetime.String(), Enrolled: timeOrNil(n.Enrolled),
		}
		for _, e := range n.Scope {
			list[i].Scope = append(list[i].Scope, ScopeEntry{e.Group, roleNames(e.Roles)})
		}
	}
	return list, nil
}

// maxChanged bounds the nodes that one request changes: it is one transaction,
// and every node may have tokens and memberships that end.
const maxChanged = 1000

// changeNodes reads {"identities": […]} and applies change.
func (s *Server) changeNodes(change func(Nodes, context.Context, []string) (int, error)) apiFunc {
	return func(r *http.Request) (any, error) {
		var req struct {
			Identities []string `json:"identities"`
		}
		if err := readJSON(r, &req); err != nil {
			return nil, err
		}
		if n := len(req.Identities); n == 0 || n > maxChanged {
			return nil, badRequest("name 1 to %d identities", maxChanged)
		}
		if s.deps.Nodes == nil {
			return nil, errNotServed
		}
		n, err := change(s.deps.Nodes, r.Context(), req.Identities)
		if err != nil {
			p := problemOf(err)
			if p.Status == http.StatusNotFound {
				p.Hint = "`gateway node list` shows the enrolled nodes"
			}
			return nil, p
		}
		return NodesChanged{n}, nil
	}
}

// EnrollNodes has nodes enrolled; mistakes are the Faults of the [*Problem], at
// the Lines of the nodes.
func (c *Client) EnrollNodes(ctx context.Context, nodes []NodeSpec, o EnrollOptions) (*EnrollResult, error) {
	var body strings.Builder
	if err := WriteNodes(&body, nodes); err != nil {
		return nil, err
	}
	q := url.Values{"lifetime": {o.Lifetime.String()}, "replace": {strconv.FormatBool(o.Replace)}, "dry_run": {strconv.FormatBool(o.DryRun)}}
	if o.Audience != "" {
		q.Set("audience", o.Audience)
	}
	result, err := send[EnrollResult](ctx, c, http.MethodPost, "/v1/nodes?"+q.Encode(), "text/csv", strings.NewReader(body.String()))
	if p, ok := errors.AsType[*Problem](err); ok {
		lines, at := map[int]int{}, 2 // line of what was sent → of what was read
		for _, n := range nodes {
			lines[at] = n.Line
			at += 1 + strings.Count(n.Identity, "\n")
		}
		for i, f := range p.Faults {
			if line, ok := lines[f.Line]; ok {
				p.Faults[i].Line = line
			}
		}
	}
	return result, err
}

// Nodes returns all enrolled nodes.
func (c *Client) Nodes(ctx context.Context) ([]NodeInfo, error) {
	all := []NodeInfo{}
	for after := ""; ; {
		page, err := call[[]NodeInfo](ctx, c, http.MethodGet, "/v1/nodes?"+url.Values{"after": {after}}.Encode(), nil)
		if err != nil {
			return nil, err
		}
		all = append(all, *page...)
		if len(*page) < nodePage {
			return all, nil
		}
		after = all[len(all)-1].Identity
	}
}

// ChangeNodes does what, one of enable, disable and remove, to nodes.
func (c *Client) ChangeNodes(ctx context.Context, what string, identities []string) (*NodesChanged, error) {
	return call[NodesChanged](ctx, c, http.MethodPost, "/v1/nodes/"+what, map[string][]string{"identities": identities})
}
