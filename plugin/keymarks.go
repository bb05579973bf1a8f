package plugin

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// A session stands for the key of its handshake. So the journal has a mark of each
// configured key beside the sessions: when the configuration has another key for an
// identity, or none any more, the sessions that are behind the mark do not come back.
// Whoever replaces a key may do so because somebody else has it.

// keyMark tells keys apart without being one. The zero value is that of no key.
type keyMark [16]byte

// keyMarks are those of the configured pre-shared keys, by identity.
func (g *Gateway) keyMarks() map[string]keyMark {
	out := map[string]keyMark{}
	mark := func(identity string, key []byte) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte("groupgate identity " + identity))
		out[identity] = keyMark(h.Sum(nil))
	}
	for _, p := range g.cfg.PSK {
		mark(p.Identity, p.Key.Bytes())
	}
	for _, d := range g.cfg.Delegates {
		if d.Auth.PSKIdentity != "" {
			mark(d.Auth.PSKIdentity, d.Auth.Key.Bytes())
		}
	}
	return out
}

func markRecord(identity string, m keyMark) []byte { return append(m[:], identity...) }

// applyMark reads a mark; what came before another of the same identity is over.
func (k *kept) applyMark(rec []byte) error {
	if len(rec) < len(keyMark{}) {
		return errors.New("a mark that is too short")
	}
	m, identity := keyMark(rec), string(rec[len(keyMark{}):])
	if old, ok := k.marks[identity]; ok && old != m {
		k.dropped += k.peers.Drop(coap.Subject{Kind: coap.SubjectPSK, ID: identity})
	}
	if k.marks == nil {
		k.marks = map[string]keyMark{}
	}
	k.marks[identity] = m
	return nil
}

// rekeyed drops the sessions of keys that are no more, and returns the records that say
// so.
func (k *kept) rekeyed(now map[string]keyMark) (records [][]byte) {
	was := maps.Clone(k.marks)
	k.dropped = 0
	for _, identity := range slices.Sorted(maps.Keys(was)) {
		if _, ok := now[identity]; !ok && was[identity] != (keyMark{}) {
			records = append(records, markRecord(identity, keyMark{}))
		}
	}
	for _, identity := range slices.Sorted(maps.Keys(now)) {
		if m, ok := was[identity]; !ok || m != now[identity] {
			records = append(records, markRecord(identity, now[identity]))
		}
	}
	for _, rec := range records {
		_ = k.applyMark(rec) // it is one
	}
	return records
}
