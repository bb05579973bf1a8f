package bridge

import (
	"context"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// known are peers of which it was read together, just before a notification goes to
// them, that their access tokens are in force: where several gateways share a store
// nothing that was read before is believed, and to read each by itself takes longer
// than to tell it.
//
// It is of one notification, so what is known was read when the version of that was
// there already: a token that was revoked before is not in it, whichever gateway
// revoked it.
type known struct {
	b   *Bridge
	ctx context.Context

	mu   sync.Mutex
	of   map[coap.Subject]time.Time // until when its token is in force; zero: for ever
	read time.Time
}

// knownFor is for how long that is believed: as long as it may take to ask about all
// that were read together.
const knownFor = time.Second

// newKnown is nil where [Deps.Access] knows by itself.
func (b *Bridge) newKnown(ctx context.Context) *known {
	if b.tokens == nil {
		return nil
	}
	return &known{b: b, ctx: ctx}
}

func (k *known) readier() coap.Readier {
	if k == nil {
		return nil
	}
	return k
}

// Ready implements [coap.Readier]: it reads the tokens of the peers.
func (k *known) Ready(peers []coap.Peer) {
	subjects := make([]coap.Subject, 0, len(peers))
	for _, p := range peers {
		if p.Via != coap.Plain {
			subjects = append(subjects, p.Subject)
		}
	}
	if len(subjects) < 2 {
		return // as quick by itself
	}
	ctx, cancel := context.WithTimeout(k.ctx, lookupTimeout)
	defer cancel()
	read := time.Now()
	good, err := k.b.tokens(ctx, subjects)
	if err != nil {
		k.b.log.DebugContext(ctx, "cannot read the tokens of those who are told: each is looked up", "n", len(subjects), "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of, k.read = good, read
}

// has says whether a subject is known to have a token in force.
func (k *known) has(s coap.Subject) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	until, ok := k.of[s]
	now := time.Now()
	return ok && now.Sub(k.read) <= knownFor && (until.IsZero() || now.Before(until))
}
