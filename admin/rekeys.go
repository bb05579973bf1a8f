package admin

import (
	"cmp"
	"context"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// RekeysAsk is the body of POST /v1/rekeys.
type RekeysAsk struct {
	Match     string `json:"match,omitempty"`  // names of groups, with * ? [ ] as in path.Match; "": every group
	Reason    string `json:"reason,omitempty"` // for the log
	Scheduled bool   `json:"scheduled,omitempty"`
	After     string `json:"after,omitempty"` // only groups after this one in the order of their names
}

// RekeysResult is the answer to it: what became of the groups, in the order of their
// names. A request ends before the last of them when it took long; the next one goes
// on After Next.
type RekeysResult struct {
	Groups []RekeyOutcome `json:"groups"`
	Next   string         `json:"next,omitempty"` // left out: that was the last group
}

// RekeyOutcome is one of several rekeys.
type RekeyOutcome struct {
	Group   string `json:"group"`
	Version uint64 `json:"version,omitempty"` // of the new keys
	Error   string `json:"error,omitempty"`   // why there are none; the others are rekeyed nevertheless
}

// rekeysFor is after how long a request for many rekeys is answered with those that
// are done: whoever waits sees how it goes on, and no time limit cuts it off.
const rekeysFor = time.Second

// rekeys renews the keying material of many groups, one after the other: each rekey
// is a transaction, an event and an audit record of its own, as if it were asked for
// alone.
func (s *Server) rekeys(r *http.Request) (any, error) {
	var ask RekeysAsk
	if err := readJSON(r, &ask); err != nil {
		return nil, err
	}
	if len(ask.Reason) > maxReason {
		return nil, badRequest("reason is longer than %d bytes", maxReason)
	}
	if _, err := path.Match(ask.Match, ""); err != nil {
		return nil, badRequest("match: %q is no pattern: %s", ask.Match, err)
	}
	groups, err := s.groups(r)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(groups, func(a, b groupcomm.GroupStatus) int { return cmp.Compare(a.Name, b.Name) })
	rekey := s.deps.Groups.Rekey
	if ask.Scheduled {
		rekey = s.deps.Groups.RekeyScheduled
	}
	ctx, began := r.Context(), time.Now()
	out := RekeysResult{Groups: []RekeyOutcome{}}
	for _, g := range groups {
		if g.Name <= ask.After && ask.After != "" || !matches(ask.Match, g.Name) {
			continue
		}
		if n := len(out.Groups); n > 0 && time.Since(began) >= rekeysFor {
			out.Next = out.Groups[n-1].Group
			break
		}
		done := RekeyOutcome{Group: g.Name}
		if done.Version, err = rekey(ctx, g.Name, ask.Reason); err != nil {
			if ctx.Err() != nil {
				return nil, err // nobody waits for the answer
			}
			done.Error = err.Error()
		}
		out.Groups = append(out.Groups, done)
	}
	return out, nil
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return pattern == "" || ok && err == nil
}

// Rekeys renews the keying material of many groups. With Next in the result it is to
// be called again, with that as After.
func (c *Client) Rekeys(ctx context.Context, ask RekeysAsk) (*RekeysResult, error) {
	return call[RekeysResult](ctx, c, http.MethodPost, "/v1/rekeys", ask)
}
