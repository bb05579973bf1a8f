package node

import (
	"errors"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// A version that two ways bring, first as a map that does not say what became
// stale, then as the rekey message: once the message is installed nothing is
// missed, and the material stays.
func TestMissedAndInstalled(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	g.num = 6
	full, err := offerFull(g.full(6).Encode(), ViaPoll)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := offerRekey(rekeyOf(6), ViaMQTT)
	if err != nil {
		t.Fatal(err)
	}
	if v := m.take(full); v != waiting {
		t.Fatalf("verdict %d about a map", v)
	}
	if v := m.take(whole); v != installed {
		t.Fatalf("verdict %d about the rekey message", v)
	}
	if err := m.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.Version != 6 || !s.Installed {
		t.Errorf("version %d, installed %v", s.Version, s.Installed)
	}
	if slices.ContainsFunc(g.requests, func(r *coap.Request) bool { return r.Code == coap.FETCH }) {
		t.Error("asked what became stale since the current version")
	}
	// A newer one stays missed.
	later, err := offerFull(g.full(8).Encode(), ViaPoll)
	if err != nil {
		t.Fatal(err)
	}
	next, err := offerRekey(rekeyOf(7), ViaMQTT)
	if err != nil {
		t.Fatal(err)
	}
	g.num = 8
	m.take(later)
	m.take(next)
	if err := m.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.Version != 8 || !s.Installed {
		t.Errorf("version %d, installed %v", s.Version, s.Installed)
	}
}

// observed is a response of an observed resource.
func observed(body []byte, seq uint32) *coap.Response {
	r := reply(coap.Content, coap.ACEGroupcomm, body)
	r.Options.SetUint(coap.ObserveOption, seq)
	return r
}

// A notification that overtakes the answer to the registration, which then says
// what is old.
func TestNotificationFirst(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	held := state(t, m).Version
	fail := func(err error) { t.Error(err) }
	m.onGroup(observed(rekeyOf(held+1), 8), true, fail)
	m.onGroup(observed(g.full(held).Encode(), 7), false, fail)
	if s := state(t, m); s.Version != held+1 || !s.Installed {
		t.Errorf("version %d, installed %v", s.Version, s.Installed)
	}
}

// A group that is rekeyed again and again while a member asks what became stale: the
// member says so and goes on from there, nothing is wrong with the answers.
func TestMovingGroup(t *testing.T) {
	t.Parallel()
	for _, moves := range []int{maxRounds - 1, maxRounds, 3*maxRounds + 1} {
		g := newFakeGM(t)
		m, _ := joinedMember(t, g, nil)
		left := moves
		g.mu.Lock()
		g.num++
		g.spoil = func(req *coap.Request, _ *coap.Response) {
			if req.Code == coap.FETCH && left > 0 {
				left--
				g.num++
			}
		}
		g.mu.Unlock()
		err := m.Poll(t.Context())
		for asked := 1; err != nil; asked++ {
			if !errors.Is(err, ErrMoving) || errors.Is(err, ErrBadAnswer) || asked > moves {
				t.Fatalf("%d moves, asked %d times: %v", moves, asked, err)
			}
			err = m.Poll(t.Context())
		}
		if s := state(t, m); s.Version != g.version() || !s.Installed {
			t.Errorf("%d moves: version %d of %d, installed %v", moves, s.Version, g.version(), s.Installed)
		}
	}
}

// The same where versions were missed before: what the answer tells is not installed,
// but older than what the notification told.
func TestNotificationFirstAfterMissed(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	held := state(t, m).Version
	g.num = held + 3
	fail := func(err error) { t.Error(err) }
	m.onGroup(observed(rekeyOf(held+3), 8), true, fail)
	m.onGroup(observed(g.full(held+2).Encode(), 7), false, fail)
	if err := m.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.Version != held+3 || !s.Installed {
		t.Errorf("version %d, installed %v", s.Version, s.Installed)
	}
}

// A Group Manager that was killed goes on with an observation whose registration it
// did not answer any more, and answers that when it comes again: with a map that is
// newer than the notification before it.
func TestAnswerAfterRestart(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	held := state(t, m).Version
	fail := func(err error) { t.Error(err) }
	m.onGroup(observed(rekeyOf(held+1), 7), true, fail)
	g.num = held + 2
	m.onGroup(observed(g.full(held+2).Encode(), 8), false, fail)
	if s := state(t, m); s.Version != held+1 || !s.Installed {
		t.Errorf("before it is known what became stale: version %d, installed %v", s.Version, s.Installed)
	}
	if err := m.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.Version != held+2 || !s.Installed {
		t.Errorf("version %d, installed %v", s.Version, s.Installed)
	}
	// What is neither is refused.
	var refused error
	m.onGroup(observed([]byte{0xa0}, 9), false, func(err error) { refused = err })
	if !errors.Is(refused, ErrBadAnswer) {
		t.Errorf("%v", refused)
	}
}
