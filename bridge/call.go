package bridge

import (
	"context"
	"errors"
	"math"

	"github.com/seed4911071e/groupgate/coap"
)

// call is a request to a member's control_uri that is under way: at most one, as only
// the newest keying material is sent. Its response counts for its own version.
type call struct {
	version uint64
	begins  bool // has the member begin to use the version, which it was told of before
	link    coap.LinkID
	giveUp  context.CancelCauseFunc
}

// Why a call is given up.
var (
	errOvertaken = errors.New("bridge: there is something newer to tell")
	errElsewhere = errors.New("bridge: another channel was quicker")
	errOver      = errors.New("bridge: the membership is over")
)

// calling notes that c is about to be sent, and gives up what it takes the place of: an
// older state, or the same to an association that the member uses no more. It says no
// when that is under way, or a newer state.
func (a *activity) calling(m member, c *call) (ok bool) {
	a.change(m, func(t *trace) {
		if old := t.call; old != nil {
			if old.version > c.version || old.version == c.version && (old.begins && !c.begins || old.begins == c.begins && old.link == c.link) {
				return
			}
			old.giveUp(errOvertaken)
		}
		t.call, ok = c, true
	})
	return ok
}

// called notes the end of c.
func (a *activity) called(m member, c *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traces[m]; t != nil && t.call == c {
		t.call = nil
	}
}

// never is newer than all versions: that of a membership which is over.
const never = math.MaxUint64

// overtake gives up what tells m of a version before this one.
func (a *activity) overtake(m member, version uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traces[m]; t != nil && t.call != nil && t.call.version < version {
		t.call.giveUp(errOvertaken)
		t.call = nil
	}
}
