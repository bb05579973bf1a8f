package ace

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"sync"
	"time"
)

// A handshake is two questions: for the key of a psk_identity while it runs, and
// for whom the identity stands when it is over. In between, the identity may have
// got another key: a node that is enrolled anew, a key identifier that is given
// out again. handshakes remembers which keys were handed out lately, so that an
// association that may stand on an older key is nobody's: the stack that does the
// handshakes does not say on which key it was.

// Implementation constants.
const (
	// handshakeLife is longer than any handshake takes, from the question for the
	// key to the report that it is over.
	handshakeLife = time.Minute
	maxHandshakes = 1 << 16 // identities remembered
	maxHanded     = 4       // keys of one identity
)

// handshakes is ready to use when made by newHandshakes.
type handshakes struct {
	secret [sha256.Size]byte // of the marks, so that they tell nothing about keys

	mu     sync.Mutex
	handed map[[sha256.Size]byte][]handedKey // guarded by mu; by hash of the identity
}

// handedKey is a key that was handed out.
type handedKey struct {
	mark [sha256.Size]byte
	last time.Time
	open int // how often, less the handshakes that are over
}

func newHandshakes() *handshakes {
	h := &handshakes{handed: map[[sha256.Size]byte][]handedKey{}}
	rand.Read(h.secret[:])
	return h
}

func (h *handshakes) mark(key []byte) (m [sha256.Size]byte) {
	mac := hmac.New(sha256.New, h.secret[:])
	mac.Write(key)
	mac.Sum(m[:0])
	return m
}

// hand remembers that a key was handed out for an identity.
func (h *handshakes) hand(identity, key []byte) {
	id, m, now := sha256.Sum256(identity), h.mark(key), time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	list, known := h.handed[id]
	k := handedKey{mark: m, last: now, open: 1}
	list = slices.DeleteFunc(list, func(o handedKey) bool {
		over := now.Sub(o.last) > handshakeLife
		if o.mark == m && !over {
			k.open += o.open
		}
		return o.mark == m || over
	})
	if len(list) == maxHanded {
		list = list[1:]
	}
	if !known && len(h.handed) >= maxHandshakes {
		h.sweepLocked(now)
	}
	h.handed[id] = append(list, k)
}

// sweepLocked makes room: for what is over, and if that is nothing for anything.
func (h *handshakes) sweepLocked(now time.Time) {
	for id, list := range h.handed {
		if now.Sub(list[len(list)-1].last) > handshakeLife {
			delete(h.handed, id)
		}
	}
	for id := range h.handed {
		if len(h.handed) < maxHandshakes {
			return
		}
		delete(h.handed, id)
	}
}

// certain says whether a handshake with an identity that is over now was on key:
// no handshake on another may be under way, and when the identity has the key
// only since then, one on this is. That one is over then.
func (h *handshakes) certain(identity, key []byte, since time.Time) bool {
	id, m, now := sha256.Sum256(identity), h.mark(key), time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	list := slices.DeleteFunc(h.handed[id], func(k handedKey) bool { return now.Sub(k.last) > handshakeLife })
	switch {
	case len(list) == 0:
		delete(h.handed, id)
		return now.Sub(since) > handshakeLife
	case len(list) > 1:
		h.handed[id] = list
		return false
	}
	k := list[0]
	if list[0].open--; list[0].open == 0 {
		delete(h.handed, id)
	} else {
		h.handed[id] = list
	}
	return k.mark == m
}
