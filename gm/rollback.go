package gm

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// numLeap is how far the version goes at least when nobody knows which versions
// were given out meanwhile (docs/protocol.md, Section 10).
const numLeap = 1 << 20

// numLimit bounds a leap: no database ever saw as many changes.
const numLimit = 1 << 40

// Recover makes a database that was put back from a backup safe to go on with.
// lost is how many changes it lacks at the most, and no change makes more than
// one version or Gid: every group is rekeyed with a version that is max(lost,
// 2^20) + 1 further, and a Gid that is lost + 1 further. No stale set from
// before is told any more, so a member that comes from a lost version drops all
// that it knows of others.
//
// A group whose Gid has no epoch so far ahead stops. Recover is called after
// [Manager.Setup] and before the first request.
func (m *Manager) Recover(ctx context.Context, lost uint64) error {
	var errs []error
	for _, g := range m.byID() {
		mat, err := m.rekeyOnce(ctx, g, byOperator, "database put back from a backup", math.MaxUint64,
			beyond{epochs: lost, versions: min(max(lost, numLeap), numLimit)})
		switch {
		case errors.Is(err, ErrGidExhausted):
			m.log.ErrorContext(ctx, "no gid is known to be unused", "group", g.cfg.Name)
			errs = append(errs, m.move(ctx, g.cfg.Name, exhaust))
		case errors.Is(err, ErrMoved): // nobody uses it here
		case err != nil:
			errs = append(errs, fmt.Errorf("gm: recover %q: %w", g.cfg.Name, err))
		default:
			m.log.WarnContext(ctx, "group recovered after a rollback of the database", "group", g.cfg.Name, "version", mat.num)
		}
	}
	return errors.Join(errs...)
}

// beyond says how much further than the next Gid and version a rekey goes.
type beyond struct{ epochs, versions uint64 }

// leap moves a snapshot on, before its Gid is chosen.
func (m *Manager) leap(s *snapshot, g *group, by beyond) {
	if by == (beyond{}) {
		return
	}
	s.jump = by.versions
	n := m.epochs(g.cfg)
	switch to := s.place.epoch + by.epochs; {
	case to >= s.place.epoch && to < n:
		s.place.epoch = to
	case g.cfg.GidReuse:
		s.place.epoch = (s.place.epoch + by.epochs%n) % n
		s.place.wraps++
	default:
		s.place.epoch = n - 1 // nextGid finds no more
	}
}
