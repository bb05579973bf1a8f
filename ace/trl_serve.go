package ace

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/store"
)

// Members of application/ace-trl+cbor besides the full set (RFC 9770, Section 12).
const (
	trlDiffSet = 1
	trlCursor  = 2
	trlMore    = 3
)

// RevokedTokens is the resource /revoke/trl of the embedded Authorization Server
// (RFC 9770, Section 6): full queries and diff queries, both with cursors, and to
// be observed, but for those that name a cursor.
func (s *Server) RevokedTokens() coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		resp, kind, err := s.serveTRL(ctx, req)
		if err != nil {
			kind = "refused"
		}
		s.metrics.trlServed.WithLabelValues(kind).Inc()
		return resp, err
	})
}

func (s *Server) serveTRL(ctx context.Context, req *coap.Request) (*coap.Response, string, error) {
	if s.cfg.AS == nil {
		return nil, "", coap.Errorf(coap.NotFound, "no authorization server here")
	}
	if req.Code != coap.GET {
		return nil, "", coap.Errorf(coap.MethodNotAllowed, "only GET")
	}
	r, err := s.requesterOf(ctx, req.Peer)
	if err != nil {
		return nil, "", err
	}
	if r == "" {
		return nil, "", coap.Errorf(coap.Forbidden, "neither a registered device nor an administrator")
	}
	if accept, ok := req.Options.Uint(coap.Accept); ok && accept != uint32(coap.ACETRL) {
		return nil, "", coap.Errorf(coap.NotAcceptable, "answers have Content-Format 262")
	}
	t, err := s.trlState(ctx, r)
	if err != nil {
		return nil, "", err
	}
	q, err := parseTRLQuery(req.Options.Queries(), t)
	if err != nil {
		return nil, "", err
	}
	resp := t.answer(q)
	if q.cursor == nil {
		resp.Observe = &coap.Observation{Topic: trlTopic(r, q), Version: uint64(t.last + 1)}
	}
	if q.diff {
		return resp, "diff", nil
	}
	return resp, "full", nil
}

// trlQuery is what is asked for.
type trlQuery struct {
	diff   bool
	num    int    // changes at most, 1 to trlChanges
	cursor *int64 // nil: none
}

func trlTopic(r requester, q trlQuery) string { return fmt.Sprintf("trl/%x/%d", string(r), q.num) }

// parseTRLQuery reads the query parameters; others than diff and cursor are
// ignored (RFC 9770, Section 6.3).
func parseTRLQuery(params []string, t *trlState) (q trlQuery, err error) {
	var diff, cursor *string
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		into := &diff
		switch name {
		case "diff":
		case "cursor":
			into = &cursor
		default:
			continue
		}
		if *into != nil {
			value = "" // given twice
		}
		*into = &value
	}
	if diff != nil {
		n, err := strconv.ParseUint(*diff, 10, 64)
		if err != nil {
			return q, trlFailure(trlInvalidValue, "diff", false, nil)
		}
		q.diff, q.num = true, trlChanges
		if n > 0 && n < trlChanges {
			q.num = int(n)
		}
	}
	if cursor == nil {
		return q, nil
	}
	if diff == nil {
		return q, trlFailure(trlInvalidSet, "cursor without diff", false, nil)
	}
	p, err := strconv.ParseUint(*cursor, 10, 64)
	switch at := int64(p); {
	case err != nil || p > trlMaxIndex:
		return q, trlFailure(trlInvalidValue, "cursor", true, t.cursor())
	case t.last >= 0 && at > t.last:
		return q, trlFailure(trlOutOfBound, "cursor", false, nil)
	default:
		q.cursor = &at
	}
	return q, nil
}

// Errors of the endpoint (RFC 9770, Section 13).
const (
	trlInvalidValue = 0
	trlInvalidSet   = 1
	trlOutOfBound   = 2

	problemTRL = 1 // custom problem detail 'ace-trl-error'
)

func trlFailure(id int64, detail string, withCursor bool, cursor any) error {
	entry := map[int64]any{0: id}
	if withCursor {
		entry[1] = cursor
	}
	r := &coap.Response{Code: coap.BadRequest, Payload: cose.MustMarshal(map[int64]any{problemTRL: entry, -2: detail})}
	r.Options.SetContentFormat(coap.ProblemDetails)
	return coap.Respond(r, fmt.Errorf("ace: list of revoked tokens: error %d: %s", id, detail))
}

// cursor is last_index, nil when there was no change yet.
func (t *trlState) cursor() any {
	if t.last < 0 {
		return nil
	}
	return t.last
}

// answer makes the 2.05 (RFC 9770, Sections 7 to 9).
func (t *trlState) answer(q trlQuery) *coap.Response {
	body := map[int64]any{trlFullSet: t.hashes, trlCursor: t.cursor()}
	if q.diff {
		body = t.diff(q)
	}
	r := &coap.Response{Code: coap.Content, Payload: cose.MustMarshal(body)}
	r.Options.SetContentFormat(coap.ACETRL)
	r.Options.SetUint(coap.MaxAge, 0)
	return r
}

func (t *trlState) diff(q trlQuery) map[int64]any {
	items := t.changes
	if q.cursor != nil && len(items) > 0 {
		if oldest := items[len(items)-1].index; *q.cursor+1 < oldest {
			// What follows the cursor is gone: a full query has to tell.
			return map[int64]any{trlDiffSet: [][][][]byte{}, trlCursor: nil, trlMore: true}
		}
		for i, c := range items {
			if c.index <= *q.cursor {
				items = items[:i]
				break
			}
		}
	}
	asked := items[:min(q.num, len(items))]
	batch := asked[max(0, len(asked)-trlBatch):] // the eldest of them
	set := [][][][]byte{}
	for _, c := range batch {
		set = append(set, [][][]byte{c.removed, c.added})
	}
	cursor := t.cursor()
	if len(batch) > 0 {
		cursor = batch[0].index
	}
	return map[int64]any{trlDiffSet: set, trlCursor: cursor, trlMore: len(asked) > trlBatch}
}

// publishTRL tells observers of the list what changed, also by other gateways.
func (s *Server) publishTRL(ctx context.Context) error {
	return s.store.Follow(ctx, s.store.OwnCursor("ace/trl"), func(ctx context.Context, events []store.Event) error {
		told := map[requester]bool{}
		for _, e := range events {
			if e.Kind != eventTRL {
				continue
			}
			name, err := hex.DecodeString(e.Key)
			r := requester(name)
			if err != nil || r == "" || told[r] {
				continue
			}
			told[r] = true
			t, err := s.trlState(ctx, r)
			if err != nil {
				return err
			}
			for num := range trlChanges + 1 { // 0: the full query
				q := trlQuery{diff: num > 0, num: num}
				s.hub.Publish(trlTopic(r, q), coap.Notification{
					Version: uint64(t.last + 1), Body: t.answer(q), Confirm: true, Allow: s.mayHear(r),
				})
			}
		}
		return nil
	})
}

// mayHear says whether a peer is still who may know a part of the list.
func (s *Server) mayHear(r requester) func(coap.Peer) (*coap.Response, bool) {
	return func(p coap.Peer) (*coap.Response, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), subjectTimeout)
		defer cancel()
		if now, err := s.requesterOf(ctx, p); err != nil || now != r {
			return &coap.Response{Code: coap.Forbidden}, false
		}
		return nil, true
	}
}

// tellTRL runs publishTRL until ctx ends.
func (s *Server) tellTRL(ctx context.Context) {
	for {
		err := s.publishTRL(ctx)
		if ctx.Err() != nil {
			return
		}
		s.log.WarnContext(ctx, "observers of the list of revoked tokens are not told yet", "err", err)
		select {
		case <-time.After(trlFirstBackoff):
		case <-ctx.Done():
			return
		}
	}
}
