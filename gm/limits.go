package gm

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Specification constants.
const (
	nonceMin     = 8  // docs/protocol.md, Section 2: N_C of 8 to 64 bytes
	nonceMax     = 64 //
	maxSenderID  = 7  // nonce of 13 bytes minus 6: RFC 8613, Section 5.2
	controlURI   = 255
	kdcNonceLen  = 8  // RFC 9594, Section 4.3.1: at least 8 random bytes
	masterSecret = 16 // RFC 8613, Section 12.3: of high entropy; the length is ours
	masterSalt   = 8  // RFC 8613, Section 3.1: default length of the examples
)

// Implementation constants.
const (
	maxStaleSets = 255 // rows kept per group are bounded by this times the releases of a version
	maxBody      = 16 << 10
	maxCred      = 4 << 10 // CCS of all algorithms stay below 200 bytes; a chain may need more
	maxGids      = 64      // Gids asked for in one FETCH /ace-group
	maxFilter    = 1024    // roles and identifiers in one filter of creds
	maxPoPTries  = 5       // signatures verified for one request: 4 challenges and an exporter value

	maxNewcomers     = 128     // in one rekey message
	maxNewcomerCreds = 4 << 10 // credentials in one rekey message, in bytes: it goes to every member

	minKeyLifetime = time.Minute
	joinWindow     = 2 * time.Second  // of a join, at most: docs/protocol.md, Section 3
	renewalWindow  = 10 * time.Second // a rekey for expiries due within it answers a key renewal
	nodeNameBytes  = 8                // random; 16 hex digits in the path

	maxPlantTries = 64 // other gateways create a group that often before one gives up
	maxJoinTries  = 8  // a join meets a rekey that often before it gives up with 5.03
	freeRekeys    = 3  // attempts of a rekey that let joins overtake it
	gatedRekeys   = 4  // that let other gateways overtake it, where the store is shared
	maxRekeyTries = 6

	renewalBurst = 8    // Sender IDs a member may use up at once
	maxLimiters  = 8192 // members watched at once

	followMin    = 100 * time.Millisecond // waits after events that could not be worked on
	followMax    = 30 * time.Second
	longestSleep = time.Hour        // of the schedule, in case the clock is set
	clockSlack   = 10 * time.Second // by which clocks of gateways that share a store may differ, or be set, and no due rekey is early

	ticketBytes  = 16
	withdrawTime = 5 * time.Second

	retryAfter = 5 // Max-Age of 5.03: seconds after which another try makes sense
)

// limiter keeps one token bucket for each of the keys seen lately, so that no
// member can use up the Sender IDs of a group. It holds a bounded number:
// buckets that are full again say nothing and are dropped first.
type limiter struct {
	every rate.Limit
	burst int
	max   int

	mu      sync.Mutex
	buckets map[string]*rate.Limiter // guarded by mu
}

func newLimiter(every time.Duration, burst, max int) *limiter {
	l := &limiter{every: rate.Inf, burst: burst, max: max, buckets: map[string]*rate.Limiter{}}
	if every > 0 {
		l.every = rate.Every(every)
	}
	return l
}

func (l *limiter) allow(key string) bool {
	if l.every == rate.Inf {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[key]
	if !ok {
		if len(l.buckets) >= l.max {
			l.sweepLocked()
		}
		b = rate.NewLimiter(l.every, l.burst)
		l.buckets[key] = b
	}
	return b.Allow()
}

// sweepLocked drops the full buckets, and if all are in use any one of them.
func (l *limiter) sweepLocked() {
	for k, b := range l.buckets {
		if b.Tokens() >= float64(l.burst) {
			delete(l.buckets, k)
		}
	}
	for k := range l.buckets {
		if len(l.buckets) < l.max {
			return
		}
		delete(l.buckets, k)
	}
}
