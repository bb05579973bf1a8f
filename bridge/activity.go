package bridge

import (
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Outcomes of an attempt over a channel (docs/protocol.md, Section 4).
const (
	resultRelayed   = "relayed"   // the broker has it
	resultConfirmed = "confirmed" // the member showed that it has it
	resultFailed    = "failed"
)

// Attempt is the newest outcome of one channel of a member.
type Attempt struct {
	Channel string
	At      time.Time
	Result  string // relayed, confirmed, failed
	Error   string // of a failure
}

// trace is what this process saw of one member, with what it announced.
type trace struct {
	channel   string
	heard     time.Time     // last sign of life
	asked     time.Time     // for keying material
	gap       time.Duration // learned: between the ends of its silences
	asleepAt  time.Time     // announced; zero: nothing
	wakeAt    time.Time     // announced; zero: it does not know
	want      string        // channel that it asked for; "": all that it has
	relayed   time.Time     // when the broker took the message that is pending
	failed    time.Time     // first failure since it was heard
	attempts  int           // since it was heard
	lastError string
	tried     []Attempt // newest of each channel
	shown     bool
	confirmed uint64    // if shown
	owed      bool      // a request to its control_uri failed or was held back
	call      *call     // to its control_uri, with the newest version, under way; nil: none is
	saved     time.Time // newest sign of life that is on disk
	online    bool      // connected is known
	connected bool      // has a session at the broker
}

// asleep says whether the member announced that it sleeps now.
func (t *trace) asleep(now time.Time) bool {
	return !t.asleepAt.IsZero() && !now.Before(t.asleepAt) && (t.wakeAt.IsZero() || now.Before(t.wakeAt))
}

// awakeUntil is when a member said that it goes to sleep; zero: it did not.
func (a *activity) awakeUntil(m member) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traces[m]; t != nil {
		return t.asleepAt
	}
	return time.Time{}
}

// record keeps the newest outcome of a channel.
func (t *trace) record(a Attempt) {
	for i := range t.tried {
		if t.tried[i].Channel == a.Channel {
			t.tried[i] = a
			return
		}
	}
	t.tried = append(t.tried, a)
}

// activity holds the traces, and which members a subject is.
type activity struct {
	mu       sync.Mutex
	traces   map[member]*trace
	subjects map[coap.Subject][]member
	subject  map[member]coap.Subject
}

func newActivity() *activity {
	return &activity{traces: map[member]*trace{}, subjects: map[coap.Subject][]member{}, subject: map[member]coap.Subject{}}
}

// of returns a copy.
func (a *activity) of(m member) trace {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.traces[m]
	if !ok {
		return trace{}
	}
	c := *t
	c.tried = slices.Clone(t.tried)
	return c
}

// change gives fn the trace of a member.
func (a *activity) change(m member, fn func(*trace)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.traces[m]
	if !ok {
		t = &trace{}
		a.traces[m] = t
	}
	fn(t)
}

func (a *activity) forget(m member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traces[m]; t != nil && t.call != nil {
		t.call.giveUp(errOver)
	}
	delete(a.traces, m)
	s, ok := a.subject[m]
	if !ok {
		return
	}
	delete(a.subject, m)
	rest := slices.DeleteFunc(slices.Clone(a.subjects[s]), func(have member) bool { return have == m })
	if len(rest) == 0 {
		delete(a.subjects, s)
	} else {
		a.subjects[s] = rest
	}
}

// belongs notes which subject a member is.
func (a *activity) belongs(s coap.Subject, m member) {
	if s == (coap.Subject{}) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok := a.subject[m]
	if ok && old == s {
		return
	}
	if ok {
		a.subjects[old] = slices.DeleteFunc(slices.Clone(a.subjects[old]), func(have member) bool { return have == m })
	}
	a.subject[m] = s
	a.subjects[s] = append(slices.Clone(a.subjects[s]), m)
}

// stranger notes that a subject was looked up and is no member.
func (a *activity) stranger(s coap.Subject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.subjects[s]; !ok {
		a.subjects[s] = nil
	}
}

// members lists the memberships of a subject; known is false when nobody looked.
func (a *activity) members(s coap.Subject) (list []member, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list, known = a.subjects[s]
	return list, known
}

// heard notes a sign of life, which ends what was tried before. channel "" says
// nothing about how the member is reached. A member that observes may ask now
// and then as well: that does not make it a poller.
func (a *activity) heard(m member, channel string, at time.Time) {
	a.change(m, func(t *trace) {
		if channel != "" && (channel != channelPoll || t.channel != channelObserve) {
			t.channel = channel
		}
		if silence := at.Sub(t.heard); !t.heard.IsZero() && silence >= shortestSleep {
			if t.gap == 0 {
				t.gap = silence
			}
			t.gap = (3*t.gap + silence) / 4
		}
		if !at.Before(t.asleepAt) {
			t.asleepAt, t.wakeAt = time.Time{}, time.Time{}
		}
		t.heard, t.relayed, t.failed, t.attempts, t.lastError = at, time.Time{}, time.Time{}, 0, ""
	})
}

// confirmed notes which version a member showed, and by what, and says whether it
// showed neither it nor a newer one before.
func (a *activity) confirmed(m member, version uint64, channel string, at time.Time) (news bool) {
	a.heard(m, channel, at)
	a.change(m, func(t *trace) {
		if news = !t.shown || version > t.confirmed; news {
			t.shown, t.confirmed, t.owed = true, version, false
			if t.call != nil && t.call.version <= version {
				t.call.giveUp(errElsewhere)
			}
		}
		t.record(Attempt{Channel: channel, At: at, Result: resultConfirmed})
	})
	return news
}

// unobserved notes that an observation ended.
func (a *activity) unobserved(m member) {
	a.change(m, func(t *trace) {
		if t.channel == channelObserve {
			t.channel = ""
		}
	})
}

// attempted notes a failed attempt.
func (a *activity) attempted(m member, channel string, err error) {
	now := time.Now()
	a.change(m, func(t *trace) {
		t.channel, t.lastError = channel, err.Error()
		t.attempts++
		if t.failed.IsZero() {
			t.failed = now
		}
		t.record(Attempt{Channel: channel, At: now, Result: resultFailed, Error: t.lastError})
	})
}

// relayedAt notes that somebody on the way, the broker for instance, has the
// message; the member does not need to.
func (a *activity) relayedAt(m member, channel string, at time.Time) {
	a.change(m, func(t *trace) {
		t.channel, t.relayed, t.lastError = channel, at, ""
		t.attempts++
		t.record(Attempt{Channel: channel, At: at, Result: resultRelayed})
	})
}

// brokerLost notes that nobody knows any more who is connected.
func (a *activity) brokerLost() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.traces {
		t.online, t.connected = false, false
	}
}

// wants says whether a member is to be told over a channel.
func (a *activity) wants(m member, channel string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traces[m]
	return t == nil || t.want == "" || t.want == channel
}

// holds says whether a member showed that it has a version.
func (a *activity) holds(m member, version uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traces[m]
	return t != nil && t.shown && t.confirmed >= version
}
