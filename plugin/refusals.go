package plugin

import (
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// maxRefusals bounds the subjects whose newest refused request is remembered:
// about two megabytes.
const maxRefusals = 8192

// refusal is a request that was refused.
type refusal struct {
	at     time.Time
	method string
	path   string
	code   string
	reason string
}

// refusals remembers the newest refused request of each subject. The zero value
// is ready.
type refusals struct {
	mu sync.Mutex
	of map[coap.Subject]refusal
}

// note keeps what is told of a request, of which the peer chose the path only.
func (r *refusals) note(req *coap.Request, resp *coap.Response) {
	s := req.Peer.Subject
	if s == (coap.Subject{}) {
		return // nobody in particular
	}
	reason := string(resp.Payload) // a diagnostic message
	if f, ok := resp.Options.ContentFormat(); ok {
		reason = ""
		if resp.Code == coap.BadRequest && f == coap.ACEGroupcomm {
			reason = "with what the next try needs: a challenge, or the group's algorithms" // RFC 9594, Section 4.3.1
		}
		if p, err := coap.DecodeProblem(resp.Payload); f == coap.ProblemDetails && err == nil {
			if reason = p.Title; reason == "" {
				reason = groupcomm.ErrorTitle(p.ID)
			}
			if p.Detail != "" {
				reason = strings.TrimPrefix(reason+": "+p.Detail, ": ")
			}
		}
	}
	v := refusal{at: time.Now(), method: req.Code.String(), path: clip("/" + strings.Join(req.Path(), "/")), code: resp.Code.String(), reason: clip(reason)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[coap.Subject]refusal{}
	}
	if _, ok := r.of[s]; !ok && len(r.of) >= maxRefusals {
		for old := range r.of { // any
			delete(r.of, old)
			break
		}
	}
	r.of[s] = v
}

func (r *refusals) newest(s coap.Subject) (refusal, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.of[s]
	return v, ok
}

// clip shortens a text for people.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "?")
}
