package endpoint

import (
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// A session that is silent for long is compacted: what is left are its keys,
// counters and address. The next authentic record, or the next message to it,
// wakes it; nothing is looked up for that, and nobody notices.

// stamp is a time in nanoseconds since the endpoint was made: a third of a
// time.Time. It does not follow the steps of the clock.
type stamp int64

// seconds is one in as many: half the size of a stamp, and enough for 60 years
// before and after.
type seconds int32

func (s stamp) seconds() seconds { return seconds(time.Duration(s) / time.Second) }

func (s seconds) stamp() stamp { return stamp(time.Duration(s) * time.Second) }

func (e *Endpoint) stamp(t time.Time) stamp { return stamp(t.Sub(e.base)) }

// stampUnix is that of a time that was written, which is not after now.
func (e *Endpoint) stampUnix(seconds int64, now time.Time) stamp {
	if t := time.Unix(seconds, 0); t.Before(now) {
		return e.stamp(now) - stamp(now.Sub(t))
	}
	return e.stamp(now)
}

// at is the time by the clock as it is now.
func (e *Endpoint) at(s stamp) time.Time {
	now := time.Now()
	return now.Add(-time.Duration(e.stamp(now) - s)).Round(0)
}

// unix is the time in seconds, to be written.
func (e *Endpoint) unix(s stamp) int64 { return unix(e.at(s)) }

// hibernate compacts the session unless something is under way, or remembered for
// a while.
func (s *session) hibernate() {
	if s.hibernated || s.act != nil || s.shelf != nil || s.pending() != nil || s.via == coap.Plain {
		return
	}
	s.hibernated = true
	if m := s.more; m != nil {
		if m.nons = [2]sentNON{}; m.probe == nil && m.peerCID == "" {
			s.more = nil
		}
	}
	s.forgetCiphers()
	s.e.metrics.hibernated.Inc()
}

// wake notes that the session is used again.
func (s *session) wake() {
	if s.hibernated {
		s.hibernated = false
		s.e.metrics.hibernated.Dec()
	}
}
