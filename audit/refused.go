package audit

import (
	"context"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Rates of refusals that are recorded one by one, our own choice: enough to see
// what goes on, too few to fill a disk or to push other records out. What is
// beyond is counted.
const (
	refusedRate  = 20 // a second, of all peers
	refusedBurst = 200
	peerRate     = 1 // a second, of one address
	peerBurst    = 20
	maxPeers     = 4096 // addresses whose rate is remembered
)

// bucket is a token bucket.
type bucket struct {
	level float64
	last  time.Time
}

func (b *bucket) allow(now time.Time, rate, burst float64) bool {
	if b.last.IsZero() {
		b.level = burst
	} else {
		b.level = min(burst, b.level+now.Sub(b.last).Seconds()*rate)
	}
	b.last = now
	if b.level < 1 {
		return false
	}
	b.level--
	return true
}

// Refused records an error reply. It neither waits nor keeps its arguments;
// beyond the rates only a number is kept.
func (l *Log) Refused(req *coap.Request, resp *coap.Response) {
	now := time.Now()
	addr := req.Peer.Addr.Addr().String()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[addr]
	if p == nil {
		if len(l.peers) >= maxPeers {
			clear(l.peers) // the rate of all still holds
		}
		p = &bucket{}
		l.peers[addr] = p
	}
	if !p.allow(now, peerRate, peerBurst) || !l.rate.allow(now, refusedRate, refusedBurst) {
		l.suppress()
		return
	}
	l.push(fromReply(req, resp))
}

// push queues a record; mu is held.
func (l *Log) push(r Record) {
	if len(l.pending) >= maxPending {
		l.suppress()
		return
	}
	l.pending = append(l.pending, r)
	if len(l.pending) >= maxPending/2 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// suppress counts a record that is not kept; mu is held.
func (l *Log) suppress() {
	l.suppressed++
	l.met.suppressed.Inc()
}

// flush writes what was collected. When it fails, the records stay, up to their
// bound.
func (l *Log) flush(ctx context.Context) error {
	l.mu.Lock()
	list, n := l.pending, l.suppressed
	l.pending, l.suppressed = nil, 0
	l.mu.Unlock()
	if n > 0 {
		list = append(list, Record{At: time.Now(), Kind: KindSuppressed, Count: n})
	}
	if len(list) == 0 {
		return nil
	}
	err := l.write(ctx, list, 0)
	if err != nil {
		if n > 0 {
			list = list[:len(list)-1]
		}
		l.mu.Lock()
		l.suppressed += n
		newer := l.pending
		l.pending = nil
		for _, r := range append(list, newer...) {
			if len(l.pending) < maxPending {
				l.pending = append(l.pending, r)
			} else {
				l.suppress()
			}
		}
		l.mu.Unlock()
	}
	return err
}
