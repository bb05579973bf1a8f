package node

import (
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// A scheduled rekey reaches a member that asked for it in two phases: first the new
// keying material, which it holds beside that in use and reads messages with, then,
// when the others have theirs, the same message again without ActivateIn: from then
// on it protects with the new. If that does not come, it begins by itself.

// former is the material of a state that stays in use.
func (s *State) former(in uint64, now time.Time) *Former {
	return &Former{
		Gid: s.Gid, Version: s.Version, MasterSecret: s.MasterSecret, MasterSalt: s.MasterSalt, Peers: slices.Clone(s.Peers),
		Until: now.Add(time.Duration(in) * time.Second),
	}
}

// holdLocked makes next, the state after o was taken, one that is not in use yet, if o
// is for that. s is the state before, whose material stays in use.
func (m *Member) holdLocked(s, next *State, o *offer) (prepared bool) {
	m.stopPhaseLocked()
	next.Before = nil
	if !m.cfg.Phased || o.activateIn == 0 || !s.Installed || s.Gid == nil {
		return false
	}
	next.Before = s.former(o.activateIn, o.at)
	m.armLocked(next)
	return true
}

// armLocked has a state that is held come into use when its time comes.
func (m *Member) armLocked(s *State) {
	if s.Before == nil {
		return
	}
	num := s.Version
	m.phase = time.AfterFunc(time.Until(s.Before.Until), func() { m.activate(num, ViaTimer) })
}

func (m *Member) stopPhaseLocked() {
	if m.phase != nil {
		m.phase.Stop()
		m.phase = nil
	}
}

// activate begins with the material of a version that was held for later.
func (m *Member) activate(num groupcomm.Version, via string) bool {
	m.mu.Lock()
	s := m.state
	if s == nil || s.Version != num || s.Before == nil {
		m.mu.Unlock()
		return false
	}
	next := *s
	next.Before = nil
	m.state = &next
	m.stopPhaseLocked()
	m.mu.Unlock()
	m.emit(Event{Kind: Rekeyed, Version: next.Version, Gid: next.Gid, Via: via})
	return true
}
