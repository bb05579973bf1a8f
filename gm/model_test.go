package gm

import (
	"maps"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// model is a group as the specification describes it, in the simplest form:
// what may not be given out is kept as a set
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.3, 7, 10 and 11).
type model struct {
	cfg    groupcomm.GroupConfig
	epochs uint64

	num     uint64
	epoch   uint64
	state   state
	handed  bool                       // a member has this version
	members map[string]*modelMember    // by name of the node
	used    map[string]bool            // Sender IDs not assignable under this Gid
	stale   map[uint64]map[string]bool // by version
	elders  map[string]bool            // names of those that the latest rekey evicted
	given   map[string]bool            // stale Sender IDs that the latest rekey told of
	told    map[string]string          // newcomers that it told of: names of nodes by Sender ID

	due   reasons
	dueAt time.Time
}

type modelMember struct {
	sid     string // hex; "-" for a monitor
	birth   string // Gid
	lapsed  bool
	since   time.Time // when it lapsed
	version uint64    // that it had then
}

func newModel(cfg groupcomm.GroupConfig, epochs uint64) *model {
	return &model{
		cfg: cfg, epochs: epochs, state: stateActive,
		members: map[string]*modelMember{}, used: map[string]bool{}, elders: map[string]bool{},
		stale: map[uint64]map[string]bool{0: {}},
	}
}

func (m *model) gid() string {
	gid, err := makeGid(m.cfg.GidPrefix, m.epoch, m.cfg.GidEpochBytes)
	if err != nil {
		panic(err)
	}
	return gid.String()
}

// assign gives out the shortest Sender ID, the smallest of its length.
func (m *model) assign(monitor bool) string {
	for p := sidPlace(0); !monitor; p++ {
		if s := p.id().String(); !m.used[s] {
			m.used[s] = true
			return s
		}
	}
	return "-"
}

func (m *model) release(sid string) {
	if sid != "-" {
		m.stale[m.num][sid] = true
	}
}

// join returns the Sender ID that a node gets, and whether it gets one.
func (m *model) join(name string, monitor bool) (string, bool) {
	if m.state != stateActive {
		return "", false
	}
	old := m.members[name]
	if old != nil {
		m.release(old.sid)
	}
	num := m.num
	if old == nil && !m.grows(name) {
		return "", false
	}
	mb := &modelMember{sid: m.assign(monitor), birth: m.gid()}
	if m.num > num && m.cfg.RekeyOnJoin && !monitor {
		m.told[mb.sid] = name
	}
	m.members[name] = mb
	m.handed = true
	return mb.sid, true
}

// grows does the rekey that comes before a newcomer.
func (m *model) grows(name string) bool {
	if m.due&forward != 0 || m.cfg.RekeyOnJoin && m.handed && !m.elders[name] {
		return m.rekey()
	}
	return true
}

// renew returns the new Sender ID, or that the answer is a rekey.
func (m *model) renew(name string, now time.Time) (sid string, byRekey, ok bool) {
	if m.state != stateActive {
		return "", false, false
	}
	if m.due != 0 && (m.due != byExpiry || !m.dueAt.After(now.Add(renewalWindow))) {
		ok = m.rekey()
		return "", true, ok && m.members[name] != nil
	}
	mb := m.members[name]
	m.release(mb.sid)
	mb.sid = m.assign(false)
	return mb.sid, false, true
}

func (m *model) makeDue(why reasons, at time.Time) {
	if m.state == stateStopped {
		return
	}
	if m.due == 0 || at.Before(m.dueAt) {
		m.dueAt = at
	}
	m.due |= why
}

func (m *model) remove(name string, why reasons, at time.Time) {
	m.release(m.members[name].sid)
	delete(m.members, name)
	m.makeDue(why, at)
}

// lapse is the end of a member's token.
func (m *model) lapse(name string, revoked bool, now time.Time) {
	mb := m.members[name]
	switch {
	case mb == nil:
	case revoked:
		m.remove(name, byRevocation|byEviction, now.Add(m.cfg.BatchWindow))
	case m.cfg.ExpiryGrace == 0:
		m.remove(name, byExpiry|byEviction, now.Add(m.cfg.BatchWindow))
	case !mb.lapsed:
		mb.lapsed, mb.since, mb.version = true, now, m.num
		m.makeDue(byExpiry, now.Add(m.cfg.ExpiryBatch))
	}
}

// rekey returns false when there is no Gid for it.
func (m *model) rekey() bool {
	next := m.epoch + 1
	if next == m.epochs {
		if !m.cfg.GidReuse {
			m.state, m.due = stateStopped, 0
			return false
		}
		next = 0
	}
	m.epoch = next
	clear(m.elders)
	m.handed = false
	for name, mb := range m.members {
		if m.cfg.GidReuse && mb.birth == m.gid() {
			m.release(mb.sid)
			delete(m.members, name)
			m.elders[name] = true
		} else if !mb.lapsed {
			m.handed = true
		}
	}
	m.given, m.told = m.stale[m.num], map[string]string{}
	m.num++
	m.stale[m.num] = map[string]bool{}
	delete(m.stale, m.num-uint64(m.cfg.MaxStaleSets))
	m.due = 0
	clear(m.used)
	for _, mb := range m.members {
		m.used[mb.sid] = true
	}
	return true
}

// work does what is due at now.
func (m *model) work(now time.Time) {
	for name, mb := range m.members {
		if mb.lapsed && !mb.since.After(now.Add(-m.cfg.ExpiryGrace)) {
			m.remove(name, byExpiry|byEviction, now.Add(m.cfg.ExpiryBatch))
		}
	}
	if m.due == 0 || m.dueAt.After(now) {
		return
	}
	needed := m.due != byExpiry
	for _, mb := range m.members {
		needed = needed || mb.lapsed && mb.version == m.num
	}
	if !needed {
		m.due = 0
		return
	}
	m.rekey()
}

// staleSince is what FETCH stale-sids answers; nil means everything.
func (m *model) staleSince(v uint64) []string {
	if _, ok := m.stale[v]; !ok {
		return nil
	}
	out := map[string]bool{}
	for n := v; n <= m.num; n++ {
		maps.Copy(out, m.stale[n])
	}
	return append([]string{}, slices.Sorted(maps.Keys(out))...)
}
