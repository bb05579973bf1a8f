package ace

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// followTRL keeps up with the Token Revocation List of one Authorization Server
// until ctx ends (RFC 9770, Section 11): it observes the list, asks for
// the whole of it now and then besides, and anew when the association ended.
// What was revoked stays so while the server is away.
func (s *Server) followTRL(ctx context.Context, e *TokenEntry) {
	f := &trlFollower{Server: s, entry: e, applied: map[string]bool{}}
	failures := 0
	for ctx.Err() == nil {
		err := f.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.progress {
			failures, f.progress = 0, false
		}
		if failures++; failures == 1 {
			s.log.WarnContext(ctx, "list of revoked tokens is not followed", "issuer", e.Issuer, "err", err)
		} else {
			s.log.DebugContext(ctx, "list of revoked tokens is not followed", "issuer", e.Issuer, "failures", failures, "err", err)
		}
		s.metrics.trl.WithLabelValues("away").Inc()
		pause := min(trlFirstBackoff<<min(failures-1, 8), trlLongestPause)
		pause -= rand.N(pause/4 + 1)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// trlFollower is the state of one followTRL.
type trlFollower struct {
	*Server
	entry    *TokenEntry
	applied  map[string]bool // the list that was applied last
	progress bool            // a list was applied since this was set to false
}

// watch observes the list until that ends, and says why.
func (f *trlFollower) watch(ctx context.Context) error {
	rev := f.entry.Revocation
	// The newest list counts: one slot, and a newer one takes it.
	news := make(chan *coap.Response, 1)
	put := func(r *coap.Response) {
		for {
			select {
			case news <- r:
				return
			default:
			}
			select {
			case <-news:
			default:
			}
		}
	}
	start, free := context.WithTimeout(ctx, trlTimeout)
	defer free()
	cancel, done, err := rev.Client.Observe(start, f.request(), put)
	if err != nil {
		return err
	}
	defer func() {
		end, free := context.WithTimeout(context.WithoutCancel(ctx), subjectTimeout)
		defer free()
		if cancel != nil {
			_ = cancel(end) // what becomes of it is no matter any more
		}
	}()
	interval := rev.Interval
	if interval <= 0 {
		interval = trlInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case r := <-news:
			if err := f.apply(ctx, r); err != nil {
				return err
			}
		case <-tick.C:
			// RFC 9770, Section 11: a full query now and then, in case that
			// notifications are lost or the server does not send any.
			again, free := context.WithTimeout(ctx, trlTimeout)
			r, err := rev.Client.Do(again, f.request())
			free()
			if err != nil {
				return err
			}
			if err := f.apply(ctx, r); err != nil {
				return err
			}
		case <-done:
			return errors.New("the association ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// request is a full query (RFC 9770, Section 7).
func (f *trlFollower) request() *coap.Request {
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(f.entry.Revocation.Path...)
	req.Options.SetUint(coap.Accept, uint32(coap.ACETRL))
	return req
}

// apply revokes what a response lists and the one before did not.
func (f *trlFollower) apply(ctx context.Context, r *coap.Response) (err error) {
	defer func() {
		if err != nil {
			f.metrics.trl.WithLabelValues("refused").Inc()
		}
	}()
	if r.Code != coap.Content {
		return fmt.Errorf("answered %v", r.Code)
	}
	if format, given := r.Options.ContentFormat(); given && format != coap.ACETRL {
		return fmt.Errorf("answered in Content-Format %d", format)
	}
	hashes, others, err := decodeTRL(r.Payload)
	if err != nil {
		return err
	}
	var fresh [][]byte
	listed := make(map[string]bool, len(hashes))
	for _, h := range hashes {
		if !listed[string(h)] && !f.applied[string(h)] {
			fresh = append(fresh, h)
		}
		listed[string(h)] = true
	}
	if err := f.Revoke(ctx, fresh...); err != nil {
		return err
	}
	f.applied, f.progress = listed, true
	issuer := f.entry.Issuer
	f.metrics.trl.WithLabelValues("applied").Inc()
	f.metrics.trlSize.WithLabelValues(issuer).Set(float64(len(listed)))
	f.metrics.trlSeen.WithLabelValues(issuer).SetToCurrentTime()
	switch {
	case len(fresh) > 0:
		f.log.InfoContext(ctx, "tokens revoked", "issuer", issuer, "new", len(fresh), "listed", len(listed), "unreadable", others)
	case others > 0:
		f.log.WarnContext(ctx, "list of revoked tokens has hashes that are not understood", "issuer", issuer, "unreadable", others)
	}
	return nil
}

// Members of application/ace-trl+cbor (RFC 9770, Section 12).
const trlFullSet = 0

// A token hash is the identifier of a hash function and its output (RFC 6920,
// Section 9.4; RFC 9770, Section 4).
const (
	hashSHA256   = 1
	tokenHashLen = 1 + sha256.Size
)

// decodeTRL reads the answer to a full query, {0: [* token hash], ? 2: cursor}.
// The hashes are 33 bytes each: the identifier of SHA-256 and a digest; others
// counts those of algorithms that are not known here.
func decodeTRL(b []byte) (hashes [][]byte, others int, err error) {
	if len(b) > maxTRL {
		return nil, 0, fmt.Errorf("ace: list of revoked tokens: %d bytes", len(b))
	}
	m, err := cose.DecodeMap(b)
	if err != nil {
		return nil, 0, fmt.Errorf("ace: list of revoked tokens: %w", err)
	}
	set, present, err := m.Array(trlFullSet)
	if err != nil || !present {
		return nil, 0, errors.New("ace: list of revoked tokens: no full set")
	}
	for _, item := range set {
		h, err := cose.AsBytes(item)
		if err != nil || len(h) < 2 || len(h) > maxTokenHash {
			return nil, 0, errors.New("ace: list of revoked tokens: no token hash")
		}
		if h[0] != hashSHA256 || len(h) != tokenHashLen {
			others++
			continue
		}
		hashes = append(hashes, h)
	}
	return hashes, others, nil
}
