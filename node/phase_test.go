package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// phasedMember is a member that asked for two phases, with its traffic.
func phasedMember(t *testing.T, g *fakeGM) (*Member, *Traffic, *[]Event) {
	t.Helper()
	m, events := joinedMember(t, g, func(c *Config) { c.Phased = true })
	t.Cleanup(func() { _ = m.Close() })
	tr, err := NewTraffic(m, TrafficConfig{Grace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Sync(); err != nil {
		t.Fatal(err)
	}
	return m, tr, events
}

func dormantRekey(t *testing.T, v groupcomm.Version, seconds uint64) []byte {
	t.Helper()
	b, err := groupcomm.Dormant(rekeyOf(v), seconds)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m *Member) takes(t *testing.T, body []byte) verdict {
	t.Helper()
	o, err := offerRekey(body, ViaObserve)
	if err != nil {
		t.Fatal(err)
	}
	return m.take(o)
}

// What a member does with the messages of two phases, in any order: it sends with the
// one and reads with both, until it is told to begin, or its time comes.
func TestPhases(t *testing.T) {
	const held = 5 // version of the fake
	type want struct {
		version groupcomm.Version
		sends   groupcomm.Version // under which it protects
		reads   groupcomm.Version // beside that; 0: nothing
	}
	for _, c := range []struct {
		name  string
		steps func(t *testing.T, m *Member)
		want  want
	}{
		{"told of it", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)) }, want{6, 5, 6}},
		{"told twice", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); m.takes(t, dormantRekey(t, 6, 30)) }, want{6, 5, 6}},
		{"told to begin", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); m.takes(t, rekeyOf(6)) }, want{6, 6, 0}},
		{"the second only", func(t *testing.T, m *Member) { m.takes(t, rekeyOf(6)) }, want{6, 6, 0}},
		{"the first after the second", func(t *testing.T, m *Member) { m.takes(t, rekeyOf(6)); m.takes(t, dormantRekey(t, 6, 30)) }, want{6, 6, 0}},
		{"almost its time", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); time.Sleep(29 * time.Second) }, want{6, 5, 6}},
		{"its time", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); time.Sleep(30 * time.Second) }, want{6, 6, 0}},
		{"a leave meanwhile", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); m.takes(t, rekeyOf(7)) }, want{7, 7, 0}},
		{"two in a row", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 30)); m.takes(t, dormantRekey(t, 7, 30)) }, want{7, 6, 7}},
		{"two in a row, over", func(t *testing.T, m *Member) {
			m.takes(t, dormantRekey(t, 6, 30))
			time.Sleep(10 * time.Second)
			m.takes(t, dormantRekey(t, 7, 30))
			time.Sleep(29 * time.Second)
			m.takes(t, rekeyOf(7))
		}, want{7, 7, 0}},
		{"of nobody knows when", func(t *testing.T, m *Member) { m.takes(t, dormantRekey(t, 6, 1<<40)); time.Sleep(groupcomm.MaxSpread) }, want{6, 6, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGM(t)
				m, tr, _ := phasedMember(t, g)
				if state(t, m).Version != held {
					t.Fatal("the fake has another version")
				}
				steps := func() {
					if err := tr.Sync(); err != nil {
						t.Error(err)
					}
				}
				m.cfg.OnEvent = func(Event) { steps() }
				c.steps(t, m)
				synctest.Wait()
				s := state(t, m)
				if s.Version != c.want.version || (s.Before != nil) != (c.want.reads != 0) {
					t.Errorf("state at version %d, before %v", s.Version, s.Before != nil)
				}
				if got := groupcomm.Gid(tr.Group().Gid()).String(); got != gidOf(c.want.sends).String() {
					t.Errorf("sends under %s, want version %d", got, c.want.sends)
				}
				next := ""
				if c.want.reads != 0 {
					next = gidOf(c.want.reads).String()
				}
				if got := groupcomm.Gid(tr.Group().Prepared()).String(); got != next && !(next == "" && tr.Group().Prepared() == nil) {
					t.Errorf("reads %s beside, want %q", got, next)
				}
			})
		})
	}
}

// A member that was killed between the phases goes on between them, and begins when
// its time comes.
func TestPhasesSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		m, _, _ := phasedMember(t, g)
		m.takes(t, dormantRekey(t, 6, 30))
		saved := m.Save()
		time.Sleep(10 * time.Second)
		again, err := New(Config{Group: "g1", Roles: groupcomm.Requester | groupcomm.Responder, Phased: true, Saved: saved}, g)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = again.Close() }()
		tr, err := NewTraffic(again, TrafficConfig{Grace: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Sync(); err != nil {
			t.Fatal(err)
		}
		if sends, reads := groupcomm.Gid(tr.Group().Gid()).String(), groupcomm.Gid(tr.Group().Prepared()).String(); sends != gidOf(5).String() || reads != gidOf(6).String() {
			t.Errorf("sends under %s, reads %s beside", sends, reads)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if err := tr.Sync(); err != nil {
			t.Fatal(err)
		}
		if s := state(t, again); s.Before != nil || groupcomm.Gid(tr.Group().Gid()).String() != gidOf(6).String() {
			t.Errorf("at its time: %+v", s.Before)
		}
	})
}

// One that asks while the first phase is on is told when to begin as well, and goes on
// with what is in use while it asks which Sender IDs became stale.
func TestPhasesByAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFakeGM(t)
		g.peer(0x52, groupcomm.Requester)
		m, tr, events := phasedMember(t, g)
		g.num, g.stale = 6, sids(0x52)
		g.activateIn = 20
		g.spoil = func(req *coap.Request, _ *coap.Response) {
			if s := m.state; req.Code == coap.FETCH && (!s.Installed || s.Version != 5) {
				t.Errorf("during the procedure: %+v", s)
			}
		}
		if err := m.Poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := state(t, m)
		if s.Version != 6 || s.Before == nil || s.Before.Version != 5 || len(s.Peers) != 0 || len(s.Before.Peers) != 1 {
			t.Errorf("%+v", s)
		}
		if err := tr.Sync(); err != nil || tr.Group().Prepared() == nil {
			t.Errorf("%v", err)
		}
		if last := (*events)[len(*events)-1]; last.Kind != Prepared {
			t.Errorf("%+v", last)
		}
	})
}
