package bridge

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// rendered is one protected message on its way into the store.
type rendered struct {
	kid     []byte
	body    []byte
	dormant []byte // what goes before body, for a member with two phases; nil: nothing
}

// Prepare renders the rekey for every entitled member that is enrolled, before
// the transaction, because signing has no place in it. commit stores the bytes
// in the rekey's transaction; from then on only these bytes leave, whatever
// crashes, is retried or republished. What Prepare rendered and commit did not
// store leaves no process, so no (kid, nonce) ever covers two ciphertexts
// (docs/protocol.md, Section 4, "Rendered once").
//
// Prepare may be called again for the same plan, for instance because a member
// enrolled meanwhile: stored messages win over newly rendered ones.
func (b *Bridge) Prepare(ctx context.Context, plan groupcomm.RekeyPlan) (commit func(*store.Tx) error, err error) {
	at := time.Now()
	branches, err := b.prepareTree(ctx, plan)
	if err != nil {
		return nil, fmt.Errorf("bridge: prepare %q: %w", plan.Group, err)
	}
	none := func(tx *store.Tx) error {
		if err := noteRekey(tx, plan, at); err != nil {
			return err
		}
		return branches.commit(tx)
	}
	if b.publisher == nil {
		return none, nil
	}
	regs, err := b.entitled(ctx, plan)
	if err != nil {
		return nil, fmt.Errorf("bridge: prepare %q: %w", plan.Group, err)
	}
	if len(regs) == 0 {
		return none, nil
	}
	if plan.Sign == nil {
		// Without a signature a member could not tell the Group Manager's
		// message from a broker's. Such members find out by polling.
		b.log.WarnContext(ctx, "group has no signing key, no rekey by mqtt", "group", plan.Group, "members", len(regs))
		return none, nil
	}

	var dormant []byte // for members with two phases
	if spread := plan.Activation.Spread; spread > 0 {
		if dormant, err = groupcomm.Dormant(plan.Message, wholeSeconds(spread)); err != nil {
			return nil, fmt.Errorf("bridge: prepare %q: %w", plan.Group, err)
		}
	}
	out := make([]rendered, len(regs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, r := range regs {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			// RFC 9594, Section 6.2.1: COUNT starts at 0 in every rekey
			// instance. Nothing is rendered a second time.
			how := cose.RekeySeal{
				Alg:     r.alg,
				Key:     r.key,
				BaseIV:  r.baseIV,
				KID:     r.kid,
				Num:     plan.Num,
				Count:   0,
				SignAlg: plan.SignAlg,
				Sign:    plan.Sign,
			}
			out[i] = rendered{kid: r.kid}
			var err error
			if r.phased && dormant != nil {
				if out[i].dormant, err = cose.SealRekey(how, dormant); err != nil {
					return fmt.Errorf("bridge: render rekey of %q: %w", plan.Group, err)
				}
				how.Count++
			}
			if out[i].body, err = cose.SealRekey(how, plan.Message); err != nil {
				return fmt.Errorf("bridge: render rekey of %q: %w", plan.Group, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return func(tx *store.Tx) error {
		if err := none(tx); err != nil {
			return err
		}
		return storeMessages(tx, plan.Group, plan.Num, out)
	}, nil
}

// messagesAtOnce is how many messages one statement stores: a server across a
// network is asked thousands of times else, and all others wait meanwhile.
const messagesAtOnce = 64

// storeMessages keeps the newest message per key. A registration that ended
// meanwhile gets none, and a message that is there already stays as it is.
func storeMessages(tx *store.Tx, group string, num uint64, out []rendered) error {
	alive := make(map[string]bool, len(out))
	rows, err := tx.Query(`SELECT kid FROM bridge_registration WHERE grp = ? AND leaf < 0`, group)
	if err != nil {
		return fmt.Errorf("bridge: store messages: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var kid []byte
		if err := rows.Scan(&kid); err != nil {
			return fmt.Errorf("bridge: store messages: %w", err)
		}
		alive[string(kid)] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("bridge: store messages: %w", err)
	}
	for _, m := range out {
		if m.dormant == nil || !alive[string(m.kid)] {
			continue
		}
		// Not when a message of the version is there: that was rendered with this one.
		if _, err := tx.Exec(`INSERT INTO bridge_dormant (kid, num, body) VALUES (?, ?, ?)
			ON CONFLICT (kid) DO UPDATE SET num = excluded.num, body = excluded.body
			WHERE excluded.num > bridge_dormant.num`, m.kid, int64(num), m.dormant); err != nil {
			return fmt.Errorf("bridge: store messages: %w", err)
		}
	}
	var values []any
	put := func() error {
		_, err := tx.Exec(`INSERT INTO bridge_message (kid, num, body) VALUES (?, ?, ?)`+
			strings.Repeat(`, (?, ?, ?)`, len(values)/3-1)+`
			ON CONFLICT (kid) DO UPDATE SET num = excluded.num, body = excluded.body
			WHERE excluded.num > bridge_message.num`, values...)
		values = values[:0]
		if err != nil {
			return fmt.Errorf("bridge: store messages: %w", err)
		}
		return nil
	}
	for _, m := range out {
		if !alive[string(m.kid)] {
			continue
		}
		if values = append(values, m.kid, int64(num), m.body); len(values) == 3*messagesAtOnce {
			if err := put(); err != nil {
				return err
			}
		}
	}
	if len(values) > 0 {
		return put()
	}
	return nil
}

// entitled reads the registrations that a plan is for and that have no message
// of that version or a newer one yet. Who is to have a place in a key tree, and
// has none, asks before it reads anything.
func (b *Bridge) entitled(ctx context.Context, plan groupcomm.RekeyPlan) ([]registration, error) {
	excluded := make(map[string]bool, len(plan.Excluded))
	for _, n := range plan.Excluded {
		excluded[n] = true
	}
	var regs []registration
	var sealed [][]byte
	err := b.store.View(ctx, func(tx *store.Tx) error {
		regs, sealed = nil, nil
		rows, err := tx.Query(`SELECT r.rid, r.node, r.kid, r.alg, r.sealed_key, r.base_iv, r.phased
			FROM bridge_registration r LEFT JOIN bridge_message m ON m.kid = r.kid
			WHERE r.grp = ? AND r.leaf < 0 AND r.tid = '' AND (m.num IS NULL OR m.num < ?)`, plan.Group, int64(plan.Num))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r := registration{member: member{group: plan.Group}}
			var s []byte
			var phased int64
			if err := rows.Scan(&r.rid, &r.member.node, &r.kid, &r.alg, &s, &r.baseIV, &phased); err != nil {
				return err
			}
			r.phased = phased != 0
			if !excluded[r.member.node] {
				regs, sealed = append(regs, r), append(sealed, s)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	open := regs[:0]
	for i := range regs {
		// One broken row must not hold up the rekey of a whole group.
		if err := b.open(&regs[i], sealed[i]); err != nil {
			b.log.ErrorContext(ctx, "cannot rekey a member by mqtt", "group", plan.Group, "node", regs[i].member.node, "err", err)
			continue
		}
		open = append(open, regs[i])
	}
	return open, nil
}
