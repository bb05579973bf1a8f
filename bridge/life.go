package bridge

import (
	"context"
	"time"

	"github.com/seed4911071e/groupgate/store"
)

// life is what is kept of a member's signs of life.
type life struct {
	member   member
	heard    time.Time
	asleepAt time.Time // announced; zero: nothing
	wakeAt   time.Time // announced; zero: it does not know
	want     string    // channel that it asked for
	marked   time.Time // since when it is unreachable; zero: it is not
}

// readLives reads what is kept of a group's members, of all groups for "".
func readLives(tx *store.Tx, group string) (out []life, err error) {
	rows, err := tx.Query(`SELECT grp, node, heard, asleep_at, wake_at, channel, marked FROM bridge_life WHERE grp = ? OR ? = ''`, group, group)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var l life
		var heard, asleep, wake, marked int64
		if err := rows.Scan(&l.member.group, &l.member.node, &heard, &asleep, &wake, &l.want, &marked); err != nil {
			return nil, err
		}
		l.heard, l.asleepAt, l.wakeAt, l.marked = fromMillis(heard), fromMillis(asleep), fromMillis(wake), fromMillis(marked)
		out = append(out, l)
	}
	return out, rows.Err()
}

func writeLife(tx *store.Tx, l life) error {
	_, err := tx.Exec(`INSERT INTO bridge_life (grp, node, heard, asleep_at, wake_at, channel, marked) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (grp, node) DO UPDATE SET heard = excluded.heard, asleep_at = excluded.asleep_at, wake_at = excluded.wake_at,
			channel = excluded.channel, marked = excluded.marked`,
		l.member.group, l.member.node, millis(l.heard), millis(l.asleepAt), millis(l.wakeAt), l.want, millis(l.marked))
	return err
}

// saveLives writes newer signs of life of those members for which somebody will
// want to know after a restart how long they are silent. Of others only the
// announcements are kept.
func (b *Bridge) saveLives(ctx context.Context, group string) error {
	var lives []life
	b.activity.mu.Lock()
	for m, t := range b.activity.traces {
		if m.group == group && t.heard.Sub(t.saved) >= saveEvery {
			lives = append(lives, life{member: m, heard: t.heard, asleepAt: t.asleepAt, wakeAt: t.wakeAt, want: t.want})
		}
	}
	b.activity.mu.Unlock()
	if len(lives) == 0 {
		return nil
	}
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		for _, l := range lives {
			if err := writeLife(tx, l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, l := range lives {
		b.activity.change(l.member, func(t *trace) { t.saved = l.heard })
	}
	return nil
}
