package endpoint

import (
	"sync/atomic"

	"github.com/seed4911071e/groupgate/coap"
)

// pool is what the shards of an address have together: the bounds of Config are for
// all of them, and so is the order in which peers go (room.go). Among those of one
// standing each shard chooses for itself.
type pool struct {
	sessions atomic.Int64
	bytes    atomic.Int64 // as each shard reckoned last
	count    [standings]atomic.Int64
}

// tally counts sessions of a standing.
func (e *Endpoint) tally(v Standing, n int) {
	e.room.count[v] += n
	e.pool.count[v].Add(int64(n))
}

// reckon is what the associations of all shards take, in bytes.
func (e *Endpoint) reckon() int {
	before := e.room.reckoned
	e.room.reckoned = e.held()
	return int(e.pool.bytes.Add(int64(e.room.reckoned - before)))
}

// elsewhere says that another shard has sessions of a standing, and this one none.
func (e *Endpoint) elsewhere(v Standing) bool {
	return e.room.count[v] == 0 && e.pool.count[v].Load() > 0
}

// makeWay is told of a newcomer before it has a session, without Endpoint.mu: where all
// shards together are full, the one that is missed least goes, in whichever it is.
func (e *Endpoint) makeWay(who coap.Subject, v Standing) {
	if len(e.kin) < 2 || !e.pressed.Load() {
		return
	}
	e.mu.Lock()
	full := e.full(1)
	e.mu.Unlock()
	if !full {
		return
	}
	letGo := func(pick func(o *Endpoint) *session) bool {
		for i := range e.kin {
			if e.kin[(e.shard+i)%len(e.kin)].shed(pick) {
				return true
			}
		}
		return false
	}
	for least := Stranger; least <= min(max(v, Stranger), Guest); least++ {
		if e.pool.count[least].Load() > 0 && letGo(func(o *Endpoint) *session { return o.pick(least) }) {
			return
		}
	}
	if v == Member {
		letGo(func(o *Endpoint) *session { return o.former(who) })
	}
}

// shed has one session go, which pick chooses with the lock held; false: it chose
// none.
func (e *Endpoint) shed(pick func(*Endpoint) *session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	s := pick(e)
	if s != nil {
		e.evict(s)
	}
	return s != nil
}
