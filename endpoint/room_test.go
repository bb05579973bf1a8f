package endpoint

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// TestOrder compares who goes with a model: a sorted list of all. Between any two
// departures sessions come, are heard, work, and become somebody else.
func TestOrder(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			e := New(sink{make(chan struct{})}, Config{Server: nobody{}, Keys: nobody{}, MaxSessions: 40,
				Standing: func(context.Context, coap.Peer) Standing { return unasked }})
			defer e.crew.end()
			var all []*session
			now := stamp(0)
			tick := func() stamp { now++; return now }
			add := func(v Standing) *session {
				s := e.newSession(coap.DTLSPSK, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(now >> 8), byte(now)}), 1))
				s.setSubject(coap.Subject{Kind: coap.SubjectPoP, ID: fmt.Sprint(now)})
				s.suite, s.cid, s.standing, s.heard = record.PSKCCM8, uint64(now)+1, v, tick()
				return s
			}
			// first is the model: the least of those that may go for a newcomer.
			first := func(most Standing) *session {
				var may []*session
				for _, s := range all {
					if s.standing >= Stranger && s.standing <= most {
						may = append(may, s)
					}
				}
				if len(may) == 0 {
					return nil
				}
				return slices.MinFunc(may, func(a, b *session) int {
					if a.standing != b.standing {
						return int(a.standing) - int(b.standing)
					}
					return order(candidate{a, a.heard, !a.idle()}, candidate{b, b.heard, !b.idle()})
				})
			}
			went := map[Standing]int{}
			for range 2000 {
				time.Sleep(freshFor)
				switch n := len(all); {
				case n > 0 && rng.IntN(3) == 0:
					all[rng.IntN(n)].heard = tick()
				case n > 0 && rng.IntN(3) == 0:
					s := all[rng.IntN(n)]
					s.stand(Standing(rng.IntN(int(standings))))
				case n > 0 && rng.IntN(4) == 0:
					// Who works was just heard, and is again when it is done.
					s := all[rng.IntN(n)]
					s.heard = tick()
					if s.idle() {
						s.activity().work = []*exchange{{s: s}}
					} else {
						s.act.work = nil
						s.settle()
					}
				default:
					s := add(Standing(rng.IntN(int(standings))))
					want := (*session)(nil)
					if n == e.cfg.MaxSessions {
						want = first(min(max(s.standing, Stranger), Guest))
					}
					ok := e.register(s)
					if ok != (n < e.cfg.MaxSessions || want != nil) || ok == s.gone {
						t.Fatalf("seed %d: registered %v, %v should go", seed, ok, want)
					}
					if want != nil {
						if !want.gone {
							t.Fatalf("seed %d: not %v, heard %d, went for %v", seed, want.standing, want.heard, s.standing)
						}
						went[want.standing]++
					}
					all = slices.DeleteFunc(all, func(s *session) bool { return s.gone })
					if ok {
						all = append(all, s)
					}
					if len(all) != len(e.sessions) {
						t.Fatalf("seed %d: %d sessions, not %d", seed, len(e.sessions), len(all))
					}
				}
				var count [standings]int
				for _, s := range all {
					count[s.standing]++
				}
				if count != e.room.count {
					t.Fatalf("seed %d: counted %v, not %v", seed, e.room.count, count)
				}
			}
			if went[Stranger] == 0 || went[Guest] == 0 || went[Member]+went[unasked] > 0 {
				t.Errorf("seed %d: went %v", seed, went)
			}
		})
	}
}

// value reads a metric: a gauge's or a counter's only sample.
func value(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil || len(all) != 1 || len(all[0].Metric) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	return all[0].Metric[0].GetGauge().GetValue() + all[0].Metric[0].GetCounter().GetValue()
}

// byName has a peer be what its identity says.
func byName(c *Config) {
	c.Standing = func(_ context.Context, p coap.Peer) Standing {
		switch {
		case strings.Contains(p.Subject.ID, "member"):
			return Member
		case strings.Contains(p.Subject.ID, "guest"):
			return Guest
		}
		return Stranger
	}
}

// TestFloodOfStrangers: peers whose handshakes succeed, but who are in no group,
// cannot push out a member or a guest; they push out each other. When only members
// are left nobody comes in, but a member that begins anew.
func TestFloodOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = 8
		w := newWire(1)
		d := &disk{}
		o := resume(t, w, d, 1, byName, func(c *Config) { c.MaxSessions = room })
		enter := func(name string) *peer {
			p := o.dial("node-"+name, withCID)
			p.send(p.request(coap.PUT, "t", "x"))
			return p
		}
		members, others := []*peer{}, []*peer{}
		defer func() {
			for _, p := range append(members, others...) {
				p.close()
			}
			o.stop()
		}()
		serves := func(p *peer) {
			t.Helper()
			if r := p.ask(p.request(coap.PUT, "s", "y")); r.Code != coap.Changed {
				t.Fatalf("a member is served %v", r.Code)
			}
		}
		for i := range room - 3 {
			members = append(members, enter(fmt.Sprintf("member%d", i)))
			serves(members[i])
		}
		others = append(others, enter("guest"))
		time.Sleep(3 * time.Second) // they are asked for
		for i := range 30 {
			others = append(others, enter(fmt.Sprintf("stranger%d", i)))
			time.Sleep(time.Second)
		}
		serves(others[0]) // the guest
		for _, p := range members {
			serves(p)
		}
		if n := value(t, o.e.metrics.evicted.WithLabelValues("stranger")); n != 28 {
			t.Errorf("%v strangers went, not 28", n)
		}
		for i := range 3 {
			members = append(members, enter(fmt.Sprintf("member1%d", i)))
			time.Sleep(2 * time.Second)
			serves(members[len(members)-1])
		}
		// All places are members' now, and the guest and the strangers are gone.
		for i := range 3 {
			p := enter(fmt.Sprintf("stranger10%d", i))
			<-p.over // is told
			others = append(others, p)
		}
		if n := value(t, o.e.metrics.turned.WithLabelValues("stranger")); n != 3 {
			t.Errorf("%v were turned away, not 3", n)
		}
		others = append(others, members[0])
		members[0] = enter("member0")
		serves(members[0])
		<-others[len(others)-1].over // its old association ended
		p := enter("member99")
		<-p.over
		others = append(others, p)
		for _, p := range members {
			serves(p)
		}
		if n := value(t, o.e.metrics.evicted.WithLabelValues("member")); n != 1 {
			t.Errorf("%v members went, not 1, for itself", n)
		}
		// Whoever went is not on disk any more.
		o.all.Keep()
		var kept Recovery
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, r := range d.recs {
			if !r.core {
				if err := kept.Apply(r.b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if kept.Len() != room {
			t.Errorf("%d sessions are on disk, not %d", kept.Len(), room)
		}
		for _, s := range kept.sessions {
			if !strings.Contains(s.subject.ID, "member") {
				t.Errorf("%s is on disk", s.subject.ID)
			}
		}
	})
}

// elsewhere is memory that others hold.
type elsewhere struct{ n atomic.Int64 }

func (h *elsewhere) Held() int { return int(h.n.Load()) }

// TestMemory: what is held elsewhere counts, too: when it grows strangers go, then
// guests, and members stay although there is too little room.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &elsewhere{}
		const share = 64 << 10
		o := begin(t, newWire(1), true, byName, func(c *Config) {
			c.MaxHandshakes, c.MaxBytes, c.Memory = 4, share+HandshakeReserve(4), h
		})
		defer o.stop()
		enter := func(name string) *peer {
			p := o.dial("node-"+name, withCID)
			p.ask(p.request(coap.PUT, "t", "x"))
			return p
		}
		names := []string{"stranger1", "guest1", "member1", "stranger2", "guest2", "member2"}
		for _, n := range names {
			defer enter(n).close()
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Minute) // answers are remembered no more
		left := func() (out []string) {
			o.e.mu.Lock()
			defer o.e.mu.Unlock()
			for _, s := range o.e.sessions {
				out = append(out, strings.TrimPrefix(s.whose, "node-"))
			}
			slices.Sort(out)
			return out
		}
		if got := left(); len(got) != len(names) {
			t.Fatalf("%v are left", got)
		}
		for _, c := range []struct {
			rest int // for so many sessions
			left []string
		}{
			{6, []string{"guest1", "guest2", "member1", "member2", "stranger1", "stranger2"}},
			{5, []string{"guest1", "guest2", "member1", "member2", "stranger2"}},
			{3, []string{"guest2", "member1", "member2"}},
			{1, []string{"member1", "member2"}},
			{0, []string{"member1", "member2"}},
		} {
			h.n.Store(int64(share - c.rest*sessionSize))
			time.Sleep(3 * lookEvery)
			if got := left(); !slices.Equal(got, c.left) {
				t.Errorf("room for %d: %v are left, not %v", c.rest, got, c.left)
			}
		}
		if n := value(t, o.e.metrics.held); int(n) != h.Held()+2*sessionSize {
			t.Errorf("%v bytes held", n)
		}
		// Handshakes go before anybody else.
		h.n.Store(0)
		time.Sleep(2 * lookEvery)
		for i := range 2 {
			o.w.carry(netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 1), o.at, clientHello(byte(i)))
		}
		time.Sleep(10 * time.Millisecond)
		half := func() int {
			o.e.mu.Lock()
			defer o.e.mu.Unlock()
			return len(o.e.handshakes)
		}
		if n := half(); n != 2 {
			t.Fatalf("%d handshakes", n)
		}
		h.n.Store(int64(share + HandshakeReserve(3)))
		time.Sleep(2 * lookEvery)
		if n := half(); n != 0 {
			t.Errorf("%d handshakes are left", n)
		}
		if got := left(); len(got) != 2 {
			t.Errorf("%v are left", got)
		}
	})
}

// TestJoinCounts: a stranger that became a member is not taken for a stranger.
func TestJoinCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var joined atomic.Value // whose subject
		joined.Store("")
		o := begin(t, newWire(1), true, func(c *Config) {
			c.MaxSessions = 2
			c.Standing = func(_ context.Context, p coap.Peer) Standing {
				if p.Subject.ID == joined.Load() {
					return Member
				}
				return Stranger
			}
		})
		defer o.stop()
		a, b := o.dial("node-a", withCID), o.dial("node-b", withCID)
		defer a.close()
		defer b.close()
		a.ask(a.request(coap.GET, "t", ""))
		b.ask(b.request(coap.GET, "t", ""))
		time.Sleep(2 * lookEvery) // both are strangers
		joined.Store("node-a")
		a.ask(a.request(coap.POST, "u", "join"))
		time.Sleep(time.Minute)
		b.ask(b.request(coap.GET, "v", "")) // was heard later
		c := o.dial("node-c", withCID)
		defer c.close()
		c.ask(c.request(coap.GET, "t", ""))
		<-b.over
		a.ask(a.request(coap.GET, "w", ""))
	})
}
