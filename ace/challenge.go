package ace

import (
	"bytes"
	"crypto/rand"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

// Origins of a challenge.
const (
	// givenOutside: in an answer to a token post that anybody could have sent.
	givenOutside = iota
	// givenInside: over an association of the key. Kept apart, so that posts of
	// strangers never push it out.
	givenInside
	// exported: computed by both sides at the end of the handshake.
	exported
)

// challenge is one N_S (RFC 9594, Section 3.3: kdcchallenge).
type challenge struct {
	_     struct{} `cbor:",toarray"`
	Value []byte
	At    int64 // seconds since 1970
	From  uint8
	Used  bool // a proof of possession covered it
}

func newChallenge() []byte {
	b := make([]byte, challengeSize)
	rand.Read(b)
	return b
}

// challenges are those of one key, oldest first.
//
// A repeated token post gives a new challenge, also to a stranger who caught
// the token. So that this harms nobody, the last four given outside stay valid
// until one is used or ten minutes have passed; the newest stays valid for
// longer, and so does one that was used, because members may prove possession
// with it again (RFC 9594, Section 3.3).
type challenges []challenge

func decodeChallenges(b []byte) (challenges, error) {
	var l challenges
	if len(b) == 0 {
		return nil, nil
	}
	if err := cose.Unmarshal(b, &l); err != nil {
		return nil, err
	}
	return l, nil
}

func (l challenges) encode() []byte { return cose.MustMarshal([]challenge(l)) }

// add puts in a challenge given now. An exporter value takes the place of all
// others: it belongs to the newest handshake.
func (l challenges) add(value []byte, from uint8, now time.Time) challenges {
	next := challenge{Value: value, At: now.Unix(), From: from}
	if from == exported {
		return challenges{next}
	}
	same := 1 // next and the later ones of its kind
	out := challenges{next}
	for i := len(l) - 1; i >= 0; i-- {
		if c := l[i]; !c.Used && c.From == from {
			if same++; same > challengeSlots {
				continue
			}
		}
		out = append(out, l[i])
	}
	slices.Reverse(out)
	return out
}

// renew puts in a challenge that replaces the one in use and the exporter
// value: it was given over an association, to a proof that did not verify.
func (l challenges) renew(value []byte, now time.Time) challenges {
	rest := slices.DeleteFunc(slices.Clone(l), func(c challenge) bool { return c.Used || c.From == exported })
	return rest.add(value, givenInside, now)
}

// use marks the challenge that a proof covered; the others end with that. An
// exporter value that is alone need not be marked: it lasts as it is, and what
// ends a used challenge ends it too.
func (l challenges) use(value []byte) (_ challenges, changed bool) {
	for _, c := range l {
		if bytes.Equal(c.Value, value) {
			if len(l) == 1 && (c.Used || c.From == exported) {
				return l, false
			}
			c.Used = true
			return challenges{c}, true
		}
	}
	return l, false
}

// valid returns the values that a proof may cover now, newest first, and when
// the first of them ends; zero: none does.
func (l challenges) valid(now time.Time) (values [][]byte, until time.Time) {
	newest := map[uint8]bool{}
	for i := len(l) - 1; i >= 0; i-- {
		c := l[i]
		end := time.Unix(c.At, 0).Add(challengeWindow)
		lasting := c.Used || c.From == exported || !newest[c.From]
		if !c.Used {
			newest[c.From] = true
		}
		switch {
		case lasting:
		case !now.Before(end):
			continue
		case until.IsZero() || end.Before(until):
			until = end
		}
		values = append(values, c.Value)
	}
	return values, until
}
