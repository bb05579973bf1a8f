package bridge

import (
	"encoding/binary"
	"hash/fnv"
	"slices"
	"sync"
	"time"
)

// A scheduled rekey keeps nobody out of the group, so that it need not reach all at
// the same moment. Its members are told in waves: a hold says which member is in
// which, and until when it waits. All of it follows from the row of the rekey, the
// members and what they confirmed: a restart makes the same hold again.

// wave is a part of the members that is told together.
type wave uint8

const (
	// wavePhased: they are told at once, of keys that they keep beside those in use,
	// and begin to use them with the last wave.
	wavePhased wave = iota
	// waveResponders: once those of the wave before have it.
	waveResponders
	// waveOthers likewise, and not all at one moment.
	waveOthers
	waves
)

// steps is into how many moments the time of a hold is divided for the last wave.
const steps = 32

// place is that of a member in a hold.
type place struct {
	wave wave
	slot time.Time // not before, of the last wave
}

// hold is one scheduled rekey of a group under way. Its fields are guarded by the
// lock of holds.
type hold struct {
	num       uint64
	at, until time.Time
	ordered   bool                        // responders first
	places    map[string]place            // by node; who is not in it does not wait
	awaited   [waveOthers]map[string]bool // who has not confirmed yet, by wave
	queues    [waves][]string             // who was not released yet, in the order of slots
	active    bool                        // the members of wavePhased were told to begin
}

func newHold(num uint64, at, until time.Time) *hold {
	h := &hold{num: num, at: at, until: until, places: map[string]place{}}
	for w := range h.awaited {
		h.awaited[w] = map[string]bool{}
	}
	return h
}

// await has the waves after w wait for a member.
func (h *hold) await(node string, w wave) {
	if w < waveOthers {
		h.awaited[w][node] = true
	}
}

// add puts a member into a wave.
func (h *hold) add(group, node string, w wave) {
	p := place{wave: w}
	if w == waveOthers {
		p.slot = h.slot(group, node)
	}
	h.places[node] = p
	h.queues[w] = append(h.queues[w], node)
}

// order is called when all members are added.
func (h *hold) order() {
	slices.SortFunc(h.queues[waveOthers], func(a, b string) int { return h.places[a].slot.Compare(h.places[b].slot) })
}

// slot spreads members over the time of the hold: the same after a restart and at
// another gateway, another one in the next rekey.
func (h *hold) slot(group, node string) time.Time {
	f := fnv.New64a()
	f.Write([]byte(group))
	f.Write(binary.BigEndian.AppendUint64([]byte{0}, h.num))
	f.Write([]byte(node))
	// The low bits of FNV are weak for short input.
	x := f.Sum64()
	x ^= x >> 32
	return h.at.Add(h.until.Sub(h.at) / steps * time.Duration((x*0x9e3779b97f4a7c15)>>59))
}

// open says whether a wave may be told.
func (h *hold) open(w wave, now time.Time) bool {
	if h.over(now) {
		return true
	}
	for before := range min(w, waveOthers) {
		if len(h.awaited[before]) > 0 {
			return false
		}
	}
	return true
}

// over says that its time is up, or that the clock was set back before it began.
func (h *hold) over(now time.Time) bool { return !now.Before(h.until) || now.Before(h.at) }

// dormant says whether a member is of the first wave and may not begin yet.
func (h *hold) dormant(node string, now time.Time) bool {
	p, ok := h.places[node]
	return ok && p.wave == wavePhased && !h.open(waveOthers, now)
}

// turn says until when a member waits at most.
func (h *hold) turn(node string, now time.Time) (at time.Time, waits bool) {
	p, ok := h.places[node]
	switch {
	case !ok || h.over(now):
		return time.Time{}, false
	case !h.open(p.wave, now):
		return h.until, true
	case now.Before(p.slot):
		return p.slot, true
	}
	return time.Time{}, false
}

// take removes from the queues who may be told now, and says when to look again; zero:
// when somebody confirms. activated is true once: the first wave may begin.
func (h *hold) take(now time.Time) (released []string, next time.Time, activated bool) {
	for w := range waves {
		at := w
		if w == wavePhased {
			at = waveOthers // they were told, and may begin now
		}
		if !h.open(at, now) {
			continue
		}
		q, n := h.queues[w], 0
		for n < len(q) && (h.over(now) || !now.Before(h.places[q[n]].slot)) {
			n++
		}
		released, h.queues[w] = append(released, q[:n]...), q[n:]
		if n < len(q) {
			next = h.places[q[n]].slot
		}
	}
	switch {
	case h.open(waveOthers, now):
		activated, h.active = !h.active, true
	case next.IsZero():
		next = h.until
	}
	return released, next, activated
}

// confirmed notes that a member holds the version.
func (h *hold) confirmed(node string) (news bool) {
	for _, a := range h.awaited {
		if a[node] {
			delete(a, node)
			news = true
		}
	}
	return news
}

// holds are those of all groups.
type holds struct {
	wake chan struct{} // one slot

	mu     sync.Mutex
	groups map[string]*hold
}

func newHolds() *holds { return &holds{wake: make(chan struct{}, 1), groups: map[string]*hold{}} }

// set replaces the hold of a group; nil: it has none.
func (s *holds) set(group string, h *hold) (before *hold) {
	s.mu.Lock()
	before = s.groups[group]
	if h == nil {
		delete(s.groups, group)
	} else {
		s.groups[group] = h
	}
	s.mu.Unlock()
	signal(s.wake)
	return before
}

// turn is that of the group's hold.
func (s *holds) turn(m member, now time.Time) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[m.group]
	if h == nil {
		return time.Time{}, false
	}
	return h.turn(m.node, now)
}

// dormant says whether a member may not begin yet with a version that it is told of.
func (s *holds) dormant(m member, num uint64, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[m.group]
	return h != nil && h.num == num && h.dormant(m.node, now)
}

// begins says whether a member is of the first wave, and was told of the version only
// to keep it.
func (s *holds) begins(m member, num uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[m.group]
	if h == nil || h.num != num {
		return false
	}
	p, ok := h.places[m.node]
	return ok && p.wave == wavePhased
}

// phased says whether the first wave of a group may not begin yet, and in how many
// seconds it does at the latest: from the beginning of the hold, and from now.
func (s *holds) phased(group string, num uint64, now time.Time) (whole, left uint64, dormant bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[group]
	if h == nil || h.num != num || h.open(waveOthers, now) {
		return 0, 0, false
	}
	return wholeSeconds(h.until.Sub(h.at)), wholeSeconds(h.until.Sub(now)), true
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// known says whether what is held of a version is known here.
func (s *holds) known(group string, num uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[group]
	return h != nil && h.num >= num
}

// confirmed notes that a member showed a version.
func (s *holds) confirmed(m member, version uint64) {
	s.mu.Lock()
	h := s.groups[m.group]
	news := h != nil && version >= h.num && h.confirmed(m.node)
	s.mu.Unlock()
	if news {
		signal(s.wake)
	}
}

// forget has nobody wait for a member that is none any more.
func (s *holds) forget(m member) {
	s.mu.Lock()
	h := s.groups[m.group]
	news := h != nil && h.confirmed(m.node)
	s.mu.Unlock()
	if news {
		signal(s.wake)
	}
}

// due is what the holds say at a moment.
type due struct {
	released  map[string][]string // nodes by group
	activated []string            // groups
	ended     map[string]string   // groups whose last wave opened, and by what
	next      time.Time           // zero: nothing is expected
}

// take collects what is due.
func (s *holds) take(now time.Time) due {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := due{released: map[string][]string{}, ended: map[string]string{}}
	for group, h := range s.groups {
		released, next, activated := h.take(now)
		if len(released) > 0 {
			d.released[group] = released
		}
		if activated {
			d.activated = append(d.activated, group)
			d.ended[group] = endConfirmed
			for _, a := range h.awaited {
				if len(a) > 0 {
					d.ended[group] = endSpread
				}
			}
		}
		if h.over(now) {
			delete(s.groups, group)
			continue
		}
		if next.IsZero() {
			next = h.until // to be forgotten
		}
		if d.next.IsZero() || next.Before(d.next) {
			d.next = next
		}
	}
	return d
}

// awaitedOf lists who is waited for in a group.
func (s *holds) awaitedOf(group string) (num uint64, nodes []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.groups[group]
	if h == nil {
		return 0, nil
	}
	for _, a := range h.awaited {
		for node := range a {
			nodes = append(nodes, node)
		}
	}
	return h.num, nodes
}

// all lists the groups with a hold.
func (s *holds) all() (groups []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.groups {
		groups = append(groups, g)
	}
	return groups
}
