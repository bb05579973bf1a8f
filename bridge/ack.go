package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/store"
)

// ack is one acknowledgement as it came from a broker.
type ack struct {
	rid     string
	payload []byte
	// done ends the exchange with the broker: true when the acknowledgement
	// counted and is on disk, or is a repetition; false when it is refused.
	done func(ok bool)
}

var (
	errAckUnknown = errors.New("bridge: acknowledgement of no registration")
	errAckVersion = errors.New("bridge: acknowledgement of a version that was not sent")
)

// parseAckTopic returns the random identifier in `<prefix>/<rid>/ack`.
func parseAckTopic(prefix, topic string) (rid string, ok bool) {
	return parseMemberTopic(prefix, topic, "ack")
}

// parseMemberTopic returns the random identifier in `<prefix>/<rid>/<last>`.
func parseMemberTopic(prefix, topic, last string) (rid string, ok bool) {
	rest, ok := strings.CutPrefix(topic, prefix+"/")
	if !ok {
		return "", false
	}
	rid, ok = strings.CutSuffix(rest, "/"+last)
	if !ok || rid == "" || len(rid) > 2*ridLen || strings.Contains(rid, "/") {
		return "", false
	}
	return rid, true
}

// takeAck queues an acknowledgement. It waits while the queue is full, so that
// the broker is held back instead of a confirmation lost, and says whether the
// acknowledgement was taken; only then done is called.
func (b *Bridge) takeAck(ctx context.Context, topic string, payload []byte, done func(ok bool)) bool {
	rid, ok := parseAckTopic(b.cfg.Prefix, topic)
	if !ok || len(payload) == 0 || len(payload) > maxAck {
		b.met.badAcks.Inc()
		done(false)
		return true
	}
	select {
	case b.acks <- ack{rid, payload, done}:
		return true
	case <-ctx.Done():
		return false
	}
}

// verifyAcks works on the queue of acknowledgements until ctx ends.
func (b *Bridge) verifyAcks(ctx context.Context) error {
	for {
		var batch []ack
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-b.acks:
			batch = append(batch, a)
		}
	drain:
		for len(batch) < ackBatch {
			select {
			case a := <-b.acks:
				batch = append(batch, a)
			default:
				break drain
			}
		}
		known, err := b.ackContexts(ctx, batch)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			// The store is in trouble: what is not answered the broker sends
			// again after the next connect.
			b.log.ErrorContext(ctx, "cannot look up acknowledgements", "err", err)
			continue
		}
		for _, a := range batch {
			b.finishAck(ctx, a, known[a.rid])
		}
	}
}

// ackContext is what an acknowledgement is checked against.
type ackContext struct {
	registration
	rendered  uint64 // newest version that was rendered for this key
	confirmed uint64 // newest version that the member showed so far
}

func (b *Bridge) finishAck(ctx context.Context, a ack, c *ackContext) {
	num, fresh, err := checkAck(c, a.payload)
	switch {
	case err != nil:
		b.met.badAcks.Inc()
		b.log.DebugContext(ctx, "acknowledgement refused", "rid", a.rid, "err", err)
		a.done(false)
	case !fresh:
		a.done(true)
	default:
		b.log.DebugContext(ctx, "member confirmed", "group", c.member.group, "node", c.member.node, "version", num)
		b.confirm(c.member, num, channelMQTT, func() { a.done(true) })
	}
}

// checkAck verifies an acknowledgement under K_m of the registration whose
// topic it came on (docs/protocol.md, Section 5). A version counts once; one at or
// below the confirmed is a repetition, harmless and not fresh.
func checkAck(c *ackContext, payload []byte) (num uint64, fresh bool, err error) {
	if c == nil {
		return 0, false, errAckUnknown
	}
	num, err = cose.OpenAck(c.key, payload)
	if err != nil {
		return 0, false, fmt.Errorf("bridge: %w", err)
	}
	if num > c.rendered {
		return 0, false, errAckVersion
	}
	return num, num > c.confirmed, nil
}

// ackContexts looks up the registrations that a batch speaks of.
func (b *Bridge) ackContexts(ctx context.Context, batch []ack) (map[string]*ackContext, error) {
	known := map[string]*ackContext{}
	sealed := map[string][]byte{}
	err := b.store.View(ctx, func(tx *store.Tx) error {
		clear(known)
		for _, a := range batch {
			if _, ok := known[a.rid]; ok {
				continue
			}
			c := &ackContext{registration: registration{rid: a.rid}}
			var s []byte
			var rendered, confirmed int64
			err := tx.QueryRow(`SELECT r.grp, r.node, r.sealed_key, COALESCE(m.num, t.num, 0), COALESCE(c.version, 0)
				FROM bridge_registration r
				LEFT JOIN bridge_message m ON m.kid = r.kid
				LEFT JOIN bridge_tree t ON t.tid = r.tid AND r.leaf >= 0
				LEFT JOIN bridge_confirmed c ON c.grp = r.grp AND c.node = r.node
				WHERE r.rid = ?`, a.rid).Scan(&c.member.group, &c.member.node, &s, &rendered, &confirmed)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			c.rendered, c.confirmed = uint64(rendered), uint64(confirmed)
			known[a.rid], sealed[a.rid] = c, s
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for rid, c := range known {
		if err := b.open(&c.registration, sealed[rid]); err != nil {
			b.log.ErrorContext(ctx, "cannot read a registration", "err", err)
			delete(known, rid)
		}
	}
	return known, nil
}
