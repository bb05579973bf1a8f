package ace

import (
	"reflect"
	"testing"
	"time"
)

func TestUseOfChallenges(t *testing.T) {
	a, b := []byte("aaaaaaaa"), []byte("bbbbbbbb")
	for name, tc := range map[string]struct {
		before  challenges
		changed bool
		after   challenges
	}{
		"unknown":                  {challenges{{Value: b}}, false, challenges{{Value: b}}},
		"new":                      {challenges{{Value: a}}, true, challenges{{Value: a, Used: true}}},
		"used before":              {challenges{{Value: a, Used: true}}, false, challenges{{Value: a, Used: true}}},
		"one of several":           {challenges{{Value: b, Used: true}, {Value: a}}, true, challenges{{Value: a, Used: true}}},
		"exporter value alone":     {challenges{{Value: a, From: exported}}, false, challenges{{Value: a, From: exported}}},
		"exporter value, and more": {challenges{{Value: a, From: exported}, {Value: b}}, true, challenges{{Value: a, From: exported, Used: true}}},
	} {
		after, changed := tc.before.use(a)
		if changed != tc.changed || !reflect.DeepEqual(after, tc.after) {
			t.Errorf("%s: %+v, changed %v", name, after, changed)
		}
	}
}

// An exporter value that is not marked as used has the same future as one that
// is.
func TestExportedNeedsNoMark(t *testing.T) {
	now := time.Unix(1000, 0)
	plain := challenges{{Value: []byte("exported"), At: 1000, From: exported}}
	marked := challenges{{Value: []byte("exported"), At: 1000, From: exported, Used: true}}
	for name, step := range map[string]func(challenges) challenges{
		"nothing": func(l challenges) challenges { return l },
		"posts outside": func(l challenges) challenges {
			return l.add([]byte{1}, givenOutside, now).add([]byte{2}, givenOutside, now)
		},
		"a post inside":   func(l challenges) challenges { return l.add([]byte{1}, givenInside, now) },
		"a new handshake": func(l challenges) challenges { return l.add([]byte{1}, exported, now) },
		"renewal":         func(l challenges) challenges { return l.renew([]byte{1}, now) },
	} {
		for _, at := range []time.Time{now, now.Add(challengeWindow), now.Add(24 * time.Hour)} {
			got, gotUntil := step(plain).valid(at)
			want, wantUntil := step(marked).valid(at)
			if !reflect.DeepEqual(got, want) || !gotUntil.Equal(wantUntil) {
				t.Errorf("%s, %v: %q until %v, marked %q until %v", name, at, got, gotUntil, want, wantUntil)
			}
		}
	}
}
