package delegate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// heldFor is how long after it came a request is answered by another life of the gateway:
// EXCHANGE_LIFETIME (RFC 7252, Section 4.8.2), then its token may be that of another.
const heldFor = 247 * time.Second

var errEnded = coap.Errorf(coap.GatewayTimeout, "the gateway ended before the node answered")

// held is a request on disk that waits for a node. Its sender was told that an answer
// comes, and does not send it again: when the gateway crashes, its next life answers.
type held struct {
	k               *keeper
	node, group, id string
}

// hold keeps a request; it is on disk when it returns.
func (m *membership) hold(ctx context.Context, in *node.Incoming) (*held, error) {
	b, err := in.Protected.MarshalBinary()
	if err != nil {
		return nil, err
	}
	h := &held{m.r.keep, m.node.Name, m.group.Name, rand.Text()}
	return h, h.k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO delegate_held (owner, node, grp, id, sender, message, asked, at) VALUES (?, ?, ?, ?, ?, ?, 0, ?)`,
			h.k.owner, h.node, h.group, h.id, in.From.String(), b, time.Now().UnixNano())
		return err
	})
}

// asking notes that the node may have been asked from now on.
func (h *held) asking(ctx context.Context) error {
	return h.update(ctx, `UPDATE delegate_held SET asked = 1 WHERE owner = ? AND node = ? AND grp = ? AND id = ?`)
}

// over forgets the request.
func (h *held) over() error {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	return h.update(ctx, `DELETE FROM delegate_held WHERE owner = ? AND node = ? AND grp = ? AND id = ?`)
}

func (h *held) update(ctx context.Context, query string) error {
	return h.k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(query, h.k.owner, h.node, h.group, h.id)
		return err
	})
}

// forgetHeld forgets what all nodes wait for.
func (k *keeper) forgetHeld(ctx context.Context) error {
	return k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM delegate_held WHERE owner = ?`, k.owner)
		return err
	})
}

// left is a request that an earlier life of the gateway held.
type left struct {
	held
	from    string
	message []byte
	asked   bool
	at      time.Time
}

// leftBehind reads what a membership's earlier life held.
func (m *membership) leftBehind(ctx context.Context) (all []left, err error) {
	k := m.r.keep
	err = k.store.View(ctx, func(tx *store.Tx) error {
		all = nil
		rows, err := tx.Query(`SELECT id, sender, message, asked, at FROM delegate_held WHERE owner = ? AND node = ? AND grp = ? ORDER BY at`,
			k.owner, m.node.Name, m.group.Name)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			l := left{held: held{k: k, node: m.node.Name, group: m.group.Name}}
			var asked, at int64
			if err := rows.Scan(&l.id, &l.from, &l.message, &asked, &at); err != nil {
				return err
			}
			l.asked, l.at = asked != 0, time.Unix(0, at)
			all = append(all, l)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("delegate: read requests that were held: %w", err)
	}
	return all, nil
}

// answerLeft answers what an earlier life held, and asks the node for nothing of it: 5.03
// when it was not asked, 5.04 when nobody knows whether it did what it was asked.
func (m *membership) answerLeft(ctx context.Context, s *node.GroupServer, l left) {
	err := m.resume(ctx, s, l)
	// Who asked may be to be learned from the Group Manager, which is to be reached first.
	for wait := (backoff{}); errors.Is(err, oscore.ErrUnknownPeer) && ctx.Err() == nil && time.Since(l.at) < heldFor; {
		wait.sleep(ctx, nil)
		err = m.resume(ctx, s, l)
	}
	if ctx.Err() != nil {
		return // the life after this one may be in time
	}
	if err != nil {
		m.log.Info("a request that was held before a restart is not answered", "from", l.from, "err", err)
	}
	if err := l.over(); err != nil {
		m.note(err)
	}
}

func (m *membership) resume(ctx context.Context, s *node.GroupServer, l left) error {
	if time.Since(l.at) >= heldFor {
		return errors.New("delegate: too late")
	}
	from, err := netip.ParseAddrPort(l.from)
	if err != nil {
		return err
	}
	msg, err := coap.DecodeMessage(l.message)
	if err != nil {
		return err
	}
	why := m.node.later()
	if l.asked {
		why = errEnded
	}
	r := coap.ErrorResponse(why)
	err = s.Resume(ctx, msg, from, &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload})
	if err == nil && !l.asked {
		m.r.metrics.asleep.Inc()
	}
	return err
}
