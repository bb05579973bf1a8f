package bridge

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// treeRekey is a rekey of a group's tree that is ready to be written.
type treeRekey struct {
	t        *tree
	write    *treeWrite
	messages []any    // position and body of each
	out      []string // registrations that lose their place
	freed    []uint32
	num      uint64
}

// leapFrom is how far the version of a group goes at least when its database was put
// back from a backup (docs/protocol.md, Section 10): members may have keys of the tree
// that it does not know, of versions that would be given again.
const leapFrom = 1 << 20

// prepareTree renders the messages of a rekey of a group's tree, the lowest
// first: each under the key of a node, countersigned, with the key of the node
// above, and the last, under the key of the root, with the keying material
// (RFC 9594, Section 6.2.1). Members that are not entitled to it lose their
// places. Nil when there is no tree.
//
// A key protects one message per rekey, so COUNT is 0 throughout.
func (b *Bridge) prepareTree(ctx context.Context, plan groupcomm.RekeyPlan) (*treeRekey, error) {
	var r *treeRekey
	var wraps []keytree.Wrap
	var root keytree.Node
	var populated bool
	err := b.store.View(ctx, func(tx *store.Tx) error {
		r = nil
		t, err := treeOf(tx, plan.Group)
		if err != nil || t == nil {
			return err
		}
		r = &treeRekey{t: t, num: plan.Num}
		rows := b.treeRows(tx, t.tid)
		k := keytree.Open(t.Shape, rows)
		if plan.Num > t.num && plan.Num-t.num > leapFrom {
			inner, err := rows.inner()
			if err != nil {
				return err
			}
			if err := k.Leap(leapFrom, inner); err != nil {
				return err
			}
		}
		if err := r.exclude(tx, k, plan); err != nil {
			return err
		}
		if wraps, root, populated, err = k.Rekey(); err != nil {
			return err
		}
		r.write = rows.changes(k)
		return nil
	})
	if err != nil || r == nil {
		return nil, err
	}
	if !populated {
		return r, nil
	}
	if plan.Sign == nil {
		b.log.WarnContext(ctx, "group has no signing key, no rekey by key tree", "group", plan.Group)
		return nil, nil
	}
	id := r.t.id()
	r.messages = make([]any, 2*len(wraps)+2)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	render := func(i int, under keytree.Node, plain []byte) {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			body, err := cose.SealRekey(cose.RekeySeal{
				Alg: cose.AlgAESCCM16_64_128, Key: under.Key, BaseIV: r.t.baseIV, KID: keytree.KID(id, under),
				Num: plan.Num, SignAlg: plan.SignAlg, Sign: plan.Sign,
			}, plain)
			if err != nil {
				return fmt.Errorf("render rekey of a key tree: %w", err)
			}
			r.messages[2*i], r.messages[2*i+1] = position(under.ID), body
			return nil
		})
	}
	for i, w := range wraps {
		render(i, w.Under, keytree.EncodeKey(w.Carries))
	}
	render(len(wraps), root, plan.Message)
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r, nil
}

// exclude takes the leaves of members out that get nothing newer.
func (r *treeRekey) exclude(tx *store.Tx, k *keytree.Tree, plan groupcomm.RekeyPlan) error {
	for _, node := range plan.Excluded {
		var rid string
		var leaf int64
		err := tx.QueryRow(`SELECT rid, leaf FROM bridge_registration WHERE grp = ? AND node = ?`, plan.Group, node).Scan(&rid, &leaf)
		if errors.Is(err, store.ErrNotFound) || err == nil && leaf < 0 {
			continue
		}
		if err != nil {
			return err
		}
		if err := k.Remove(uint32(leaf)); err != nil {
			return err
		}
		r.out, r.freed = append(r.out, rid), append(r.freed, uint32(leaf))
	}
	return nil
}

// commit writes the rekey, in its transaction; [groupcomm.ErrPlanMoved] when the
// tree changed since it was prepared.
func (r *treeRekey) commit(tx *store.Tx) error {
	if r == nil {
		return nil
	}
	t := *r.t // commit may run again
	t.out, t.messages = 0, int64(len(r.messages)/2)
	n, err := tx.Exec(`UPDATE bridge_tree SET num = ? WHERE tid = ? AND seq = ?`, int64(r.num), t.tid, t.seq)
	if err != nil {
		return err
	}
	if n == 0 {
		return groupcomm.ErrPlanMoved
	}
	for i, rid := range r.out {
		if _, err := tx.Exec(`UPDATE bridge_registration SET leaf = -1 WHERE rid = ?`, rid); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO bridge_tree_free (tid, idx) VALUES (?, ?)`, t.tid, r.freed[i]); err != nil {
			return err
		}
		t.spare++
	}
	if err := r.write.write(tx, &t); err != nil {
		return err
	}
	for m := r.messages; len(m) > 0; {
		n := min(len(m)/2, messagesAtOnce)
		var args []any
		for i := range n {
			args = append(args, t.tid, m[2*i], int64(r.num), t.Seq, m[2*i+1])
		}
		m = m[2*n:]
		if _, err := tx.Exec(`INSERT INTO bridge_tree_message (tid, pos, num, at, body) VALUES `+marks(n, "(?, ?, ?, ?, ?)")+`
			ON CONFLICT (tid, pos) DO UPDATE SET num = excluded.num, at = excluded.at, body = excluded.body`, args...); err != nil {
			return fmt.Errorf("bridge: store messages of a key tree: %w", err)
		}
	}
	return nil
}
