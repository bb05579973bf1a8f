package plugin

import (
	"errors"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
)

// Bounds of what is remembered of handshakes with pre-shared keys: identities that
// have a key here, and those that have none, which anybody can invent.
const (
	maxTries        = 8192
	maxStrangeTries = 256
	maxTriedText    = 128 // of an identity; what is longer is a token

	// handshakeTakes is how long one may be under way before it is told to have failed.
	handshakeTakes = 2 * time.Second
)

// try is the newest handshake with an identity.
type try struct {
	at     time.Time // it asked for the key
	done   time.Time // one was over, and the key right
	denied string    // why there was no key; "": there was
}

// tries remembers them: a wrong key meets silence, so that nobody else can tell. The
// zero value is ready.
type tries struct {
	mu               sync.Mutex
	known, strangers map[string]try
}

// asked notes that a handshake wants the key of an identity, and what came of that.
func (t *tries) asked(identity []byte, err error) {
	if len(identity) > maxTriedText {
		return
	}
	id := string(identity)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known, t.strangers = map[string]try{}, map[string]try{}
	}
	v := t.known[id]
	v.at, v.denied = time.Now(), ""
	of, most := t.known, maxTries
	if err != nil {
		v.denied = "the gateway could not look up its key"
		if errors.Is(err, ace.ErrIdentity) {
			v.denied = "there is no key for this identity, or its node is disabled, or its token ended"
			if _, ok := t.known[id]; !ok {
				of, most = t.strangers, maxStrangeTries
			}
		}
	} else {
		delete(t.strangers, id)
	}
	if _, ok := of[id]; !ok && len(of) >= most {
		for old := range of { // any
			delete(of, old)
			break
		}
	}
	of[id] = v
}

// finished notes that the peer showed the key.
func (t *tries) finished(identity []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v, ok := t.known[string(identity)]; ok {
		v.done = time.Now()
		t.known[string(identity)] = v
	}
}

// newest tells of the newest handshake with an identity; nil: of none since the start.
func (t *tries) newest(identity []byte) *admin.WhyHandshake {
	if identity == nil {
		return nil
	}
	t.mu.Lock()
	v, ok := t.known[string(identity)]
	if !ok {
		v, ok = t.strangers[string(identity)]
	}
	t.mu.Unlock()
	h := &admin.WhyHandshake{At: v.at.UTC()}
	switch {
	case !ok:
		return nil
	case v.denied != "":
		h.Result, h.Error = "refused", v.denied
	case !v.done.Before(v.at):
		h.Result = "done"
	case time.Since(v.at) < handshakeTakes:
		h.Result = "under-way"
	default:
		h.Result, h.Error = "unfinished", "it has another key, or what goes to it or comes from it is lost"
	}
	return h
}
