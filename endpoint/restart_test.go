package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/record"
)

// disk is a journal in memory. A crash keeps the records up to some point, which
// is not before what was committed.
type disk struct {
	mu        sync.Mutex
	recs      []diskRecord
	committed int
}

type diskRecord struct {
	core bool // of the server core
	b    []byte
}

// side is the disk as the endpoint or the server core has it.
type side struct {
	*disk
	core bool
}

func (s side) Append(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recs = append(s.recs, diskRecord{s.core, bytes.Clone(b)})
}

func (s side) Commit(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = len(s.recs)
	return nil
}

// Keeps: all are kept.
func (s side) Keeps(string) bool { return true }

// crash returns what is on disk after a crash: some of what was not committed.
func (d *disk) crash(rng *rand.Rand) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.committed + rng.IntN(len(d.recs)-d.committed+1)
	return &disk{recs: slices.Clone(d.recs[:n]), committed: n}
}

// resume makes the world of the next start from what is on disk.
func resume(t *testing.T, w *wire, d *disk, start uint32, edit ...func(*Config)) *world {
	t.Helper()
	ready := make(chan struct{})
	o := begin(t, w, true, append(edit, func(c *Config) { c.Ready = ready })...)
	var peers Recovery
	var observers serve.Recovery
	d.mu.Lock()
	for _, r := range d.recs {
		err := peers.Apply
		if r.core {
			err = observers.Apply
		}
		if err := err(r.b); err != nil {
			t.Fatal(err)
		}
	}
	d.mu.Unlock()
	for _, p := range o.all.Restore(side{d, false}, start, &peers) {
		o.core.Restore(&observers, p)
	}
	o.core.Keep(side{d, true})
	for _, e := range o.all.all {
		e.cfg.Ending = func() { o.core.Keep(nil) }
	}
	close(ready)
	return o
}

// kill ends a world as a crash does: nothing leaves it any more, and nothing is
// written.
func (o *world) kill() {
	unlock := o.w.lock()
	delete(o.w.ports, o.at)
	tap := o.w.tap
	o.w.tap = func(from, to netip.AddrPort, b []byte) bool { return from == o.at || tap != nil && tap(from, to, b) }
	unlock()
	for _, e := range o.all.all {
		e.mu.Lock()
		e.journal = nil
		e.mu.Unlock()
	}
	o.core.Keep(nil)
	o.stop()
	unlock = o.w.lock()
	o.w.tap = tap
	unlock()
}

// observe registers.
func (p *peer) observe(token string) *coap.Message {
	m := p.request(coap.GET, token, "")
	m.Options.SetUint(coap.ObserveOption, 0)
	return p.ask(m)
}

// fresh repeats a request with the Echo that it is asked for.
func (p *peer) fresh(r *coap.Message, token, payload string) *coap.Message {
	p.t.Helper()
	echo, ok := r.Options.Get(coap.Echo)
	if r.Code != coap.Unauthorized || !ok {
		p.t.Fatalf("%v, echo %x", r.Code, echo)
	}
	m := p.request(coap.POST, token, payload)
	m.Options.Add(coap.Echo, echo)
	return p.ask(m)
}

// acknowledge awaits a confirmable notification, among pings, and acknowledges it.
func (p *peer) acknowledge(payload string) *coap.Message {
	p.t.Helper()
	for {
		m := p.want()
		if m.Type != coap.Confirmable {
			continue
		}
		if p.reject(m) {
			continue
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: m.ID})
		if string(m.Payload) == payload {
			return m
		}
	}
}

// TestRestart: after a stop and a start a session goes on, with its observation,
// and no record number comes twice.
func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name string
		kill bool
		cid  bool
	}{{"stopped", false, true}, {"stopped without connection ID", false, false}, {"killed", true, true}, {"killed without connection ID", true, false}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(1)
				var nums numbers
				w.tap = nums.watch(netip.MustParseAddrPort("198.51.100.1:5684"), 0)
				d := &disk{}
				o := resume(t, w, d, 100)
				var opts []dtls.ClientOption
				if c.cid {
					opts = append(opts, withCID)
				}
				p := o.dial("node1", opts...)
				defer p.close()
				if r := p.observe("ob"); !r.Options.Has(coap.ObserveOption) {
					t.Fatal("not registered")
				}
				before := o.began()[0].Peer()
				ids := map[uint16]bool{}
				done := o.publish(2, true)
				ids[p.acknowledge("2").ID] = true
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if r := p.ask(p.request(coap.POST, "a", "x")); r.Code != coap.Changed {
					t.Fatal(r.Code)
				}
				time.Sleep(2 * keepEvery)
				if c.kill {
					o.kill()
				} else {
					o.stop()
				}

				for start := range uint32(3) {
					o = resume(t, w, d, 101+start)
					p.o = o
					if n := o.sessions(); n != 1 {
						t.Fatalf("%d sessions", n)
					}
					version := 10 + uint64(start)
					done := o.publish(version, true)
					m := p.acknowledge(fmt.Sprint(version))
					if ids[m.ID] {
						t.Errorf("message identifier %d comes again", m.ID)
					}
					ids[m.ID] = true
					if err := <-done; err != nil {
						t.Fatal(err)
					}
					if after := o.core.Observers(topic); len(after) != 1 || after[0] != before.Link {
						t.Errorf("observers %v, was %v", after, before.Link)
					}
					// The acknowledgement showed that the peer is there.
					if r := p.ask(p.request(coap.POST, "b", "y")); r.Code != coap.Changed {
						t.Error(r.Code)
					}
					if c.cid {
						p.c.rebind()
						if r := p.ask(p.request(coap.POST, "c", "z")); r.Code != coap.Changed {
							t.Error("after a rebind", r.Code)
						}
					}
					if n := len(o.admittedNow()); n != 0 {
						t.Errorf("%d handshakes", n)
					}
					if c.kill {
						time.Sleep(2 * keepEvery)
						o.kill()
					} else {
						o.stop()
					}
				}
				for _, bad := range nums.bad {
					t.Error("record number twice:", bad)
				}
			})
		})
	}
}

// TestFamilies: a node with a connection ID goes on over IPv6, also on a link of its
// own, and over IPv4 again, and a crash forgets none of these addresses.
func TestFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		d := &disk{}
		o := resume(t, w, d, 100)
		defer func() { o.stop() }()
		p := o.dial("node1", withCID)
		defer p.close()
		p.observe("ob")
		for i, addr := range []string{"[2001:db8::1]:7000", "[fe80::1%eth0]:7000", "[fe80::1%eth1]:7000", "203.0.113.9:7000"} {
			p.c.goTo(addr)
			if r := p.ask(p.request(coap.GET, "a", "")); r.Code != coap.Content {
				t.Fatal(addr, r.Code)
			}
			time.Sleep(2 * keepEvery)
			o.kill()
			o = resume(t, w, d, 101+uint32(i))
			p.o = o
			version := 2 + uint64(i)
			done := o.publish(version, true)
			p.acknowledge(fmt.Sprint(version))
			if err := <-done; err != nil {
				t.Error(addr, err)
			}
			if got := o.all.all[0].sessions[0].addr().String(); got != addr {
				t.Errorf("at %s, want %s", got, addr)
			}
		}
		if n := len(o.admittedNow()); n != 0 {
			t.Errorf("%d handshakes", n)
		}
	})
}

// TestLongAway: that the gateway was away for longer than a session may be silent, or that
// its clock says so, ends no session; silence before and after that does.
func TestLongAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 20 * time.Minute
		w := newWire(1)
		d := &disk{}
		o := resume(t, w, d, 100, func(c *Config) { c.Idle = idle })
		defer func() { o.stop() }()
		before := o.dial("node1", withCID)
		defer before.close()
		if r := before.ask(before.request(coap.GET, "a", "")); r.Code != coap.Content {
			t.Fatal(r.Code)
		}
		time.Sleep(idle - 8*time.Minute)
		p := o.dial("node2", withCID)
		defer p.close()
		if r := p.observe("ob"); !r.Options.Has(coap.ObserveOption) {
			t.Fatal("not registered")
		}
		time.Sleep(2 * keepEvery)
		o.stop()
		time.Sleep(30 * 24 * time.Hour)
		o = resume(t, w, d, 101, func(c *Config) { c.Idle = idle })
		before.o, p.o = o, o
		time.Sleep(4 * time.Minute)
		if n := o.sessions(); n != 2 {
			t.Fatalf("%d sessions", n)
		}
		done := o.publish(2, true)
		p.acknowledge("2")
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(6 * time.Minute)
		if n := o.sessions(); n != 1 {
			t.Errorf("%d sessions after the first was silent for too long", n)
		}
		time.Sleep(idle + 2*time.Minute)
		if n := o.sessions(); n != 0 {
			t.Errorf("%d sessions after the other was", n)
		}
	})
}

func (o *world) admittedNow() []Proof {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.admitted
}

// TestStale: on a restored session nothing with side effects is done before the
// peer showed that it is there: by Echo, or, if it knows no Echo, by its answer
// to a ping.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(2)
		d := &disk{}
		o := resume(t, w, d, 7)
		knows, not := o.dial("node1", withCID), o.dial("node2", withCID)
		defer knows.close()
		defer not.close()
		knows.ask(knows.request(coap.GET, "g", ""))
		not.ask(not.request(coap.GET, "g", ""))
		o.stop()

		o = resume(t, w, d, 8)
		defer o.stop()
		knows.o, not.o = o, o
		if r := knows.ask(knows.request(coap.GET, "h", "")); r.Code != coap.Content {
			t.Errorf("a safe request: %v", r.Code)
		}
		calls := o.handled()
		r := knows.ask(knows.request(coap.POST, "i", "x"))
		if o.handled() != calls {
			t.Error("a request of a stale session was served")
		}
		if r = knows.fresh(r, "j", "x"); r.Code != coap.Changed {
			t.Errorf("with Echo: %v", r.Code)
		}
		if r := knows.ask(knows.request(coap.POST, "k", "y")); r.Code != coap.Changed {
			t.Errorf("a later one: %v", r.Code)
		}
		// A wrong Echo is none.
		m := not.request(coap.POST, "l", "z")
		m.Options.Add(coap.Echo, []byte("12345678"))
		if r := not.ask(m); r.Code != coap.Unauthorized {
			t.Errorf("with a wrong Echo: %v", r.Code)
		}
		for m := not.next(time.Second); m != nil; m = not.next(time.Second) {
			not.reject(m)
		}
		if r := not.ask(not.request(coap.POST, "m", "z")); r.Code != coap.Changed {
			t.Errorf("after the ping: %v", r.Code)
		}
		// To give up an observation is a change; to register is none.
		if effects(&coap.Message{Code: coap.GET}) || !effects(&coap.Message{Code: coap.DELETE}) {
			t.Error("effects")
		}
	})
}

// TestReplayAfterKill: records from before a crash, whether their receipt was on
// disk or not, cause nothing but reads when they come again after it.
func TestReplayAfterKill(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			w := newWire(seed)
			at := netip.MustParseAddrPort("198.51.100.1:5684")
			var nums numbers
			watch := nums.watch(at, 0)
			type sent struct {
				from netip.AddrPort
				b    []byte
			}
			var old []sent
			w.tap = func(from, to netip.AddrPort, b []byte) bool {
				if to == at && len(b) > 0 && b[0] == record.ConnectionID {
					old = append(old, sent{from, bytes.Clone(b)})
				}
				return watch(from, to, b)
			}
			d := &disk{}
			o := resume(t, w, d, 1)
			p := o.dial("node1", withCID)
			defer p.close()
			p.observe("ob")
			for i := range 5 + rng.IntN(20) {
				p.ask(p.request(coap.POST, fmt.Sprint(i), "x"))
				time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
			}
			o.kill()
			d = d.crash(rng)

			o = resume(t, w, d, 2)
			defer func() { o.stop() }()
			p.o = o
			s := o.only()
			edge := s.window.Next()
			from := w.open("203.0.113.9:999") // who replays
			unlock := w.lock()
			again := slices.Clone(old)
			unlock()
			for _, r := range again {
				src := r.from
				if rng.IntN(2) == 0 {
					src = from.addr
				}
				w.carry(src, at, r.b)
			}
			time.Sleep(10 * time.Second)
			o.e.mu.Lock()
			if s.window.Next() < edge {
				t.Errorf("the edge went from %d to %d", edge, s.window.Next())
			}
			stale := s.stale
			o.e.mu.Unlock()
			if !stale {
				t.Error("a replay passed for a sign of life")
			}
			if n := o.handled(); n > 1 { // the registration, whose receipt may not be on disk
				t.Errorf("%d requests were served again", n)
			}
			// The peer itself goes on.
			r := p.ask(p.request(coap.POST, "new", "y"))
			if r.Code == coap.Unauthorized {
				r = p.fresh(r, "new2", "y")
			}
			if r.Code != coap.Changed {
				t.Error(r.Code)
			}
			calls := o.handled()
			for _, r := range again {
				w.carry(r.from, at, r.b)
			}
			time.Sleep(10 * time.Second)
			if n := o.handled(); n != calls {
				t.Errorf("%d requests were served again after the peer had spoken", n-calls)
			}
			for _, bad := range nums.bad {
				t.Error("record number twice:", bad)
			}
		})
	}
}

// only is the one session.
func (o *world) only() *session {
	o.t.Helper()
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	if len(o.e.sessions) != 1 {
		o.t.Fatalf("%d sessions", len(o.e.sessions))
	}
	for _, s := range o.e.sessions {
		return s
	}
	return nil
}

// TestAnsweredBefore: the copy of a request that was served before a restart
// gets the answer of then.
func TestAnsweredBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(3)
		d := &disk{}
		o := resume(t, w, d, 1)
		p := o.dial("node1", withCID)
		defer p.close()
		m := p.request(coap.POST, "t", "x")
		first := p.ask(m)
		o.kill()
		for range 2 { // from the log, and from a snapshot
			o = resume(t, w, d, 2)
			p.o = o
			again := p.ask(m)
			if again.Code != coap.Changed || !bytes.Equal(again.Payload, first.Payload) || o.handled() != 0 {
				t.Errorf("%v %q, was %q; %d calls", again.Code, again.Payload, first.Payload, o.handled())
			}
			d = &disk{}
			o.all.Dump(side{d, false}.Append)
			o.core.Dump(side{d, true}.Append)
			o.kill()
		}
		// Long after nobody repeats it.
		time.Sleep(exchangeLifetime)
		o = resume(t, w, d, 3)
		defer o.stop()
		p.o = o
		if r := p.ask(m); r.Code != coap.Unauthorized {
			t.Error(r.Code)
		}
	})
}

// TestHibernate: a silent session is compacted, keeps its observation, and wakes
// by a record of the peer or a message to it.
func TestHibernate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(6)
		d := &disk{}
		o := resume(t, w, d, 1)
		defer func() { o.stop() }()
		p := o.dial("node1", withCID)
		defer p.close()
		p.observe("ob")
		began := o.began()[0]
		first := began.Status()
		if first.Hibernated || first.Restored || time.Since(first.Began) > time.Minute {
			t.Errorf("%+v", first)
		}
		silent := func() Status {
			time.Sleep(exchangeLifetime + defaultHibernate)
			synctest.Wait()
			return o.began()[0].Status()
		}
		if st := silent(); !st.Hibernated || st.Began != first.Began || time.Since(st.Heard) < exchangeLifetime {
			t.Errorf("after silence: %+v", st)
		}
		p.ask(p.request(coap.GET, "a", ""))
		if st := o.began()[0].Status(); st.Hibernated || time.Since(st.Heard) > time.Minute {
			t.Errorf("after a request: %+v", st)
		}
		silent()
		done := o.publish(2, true)
		p.acknowledge("2")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		p.c.rebind()
		p.ask(p.request(coap.GET, "b", ""))
		if st := o.began()[0].Status(); st.Hibernated || st.Moves != 1 {
			t.Errorf("after a move: %+v", st)
		}
		// It is written as it sleeps.
		silent()
		o.stop()
		o = resume(t, w, d, 2)
		p.o = o
		st := o.only().Status()
		if !st.Restored || !st.Stale || st.Moves != 1 || st.Began.Unix() != first.Began.Unix() || time.Since(st.Heard) < exchangeLifetime {
			t.Errorf("after a restart: %+v, at first %+v", st, first)
		}
		if n, lost := o.core.Watching(o.only().id); n != 1 || lost != 0 {
			t.Errorf("%d observations, %d lost", n, lost)
		}
		done = o.publish(3, true)
		for m := p.want(); ; m = p.want() {
			if m.Type == coap.Confirmable && string(m.Payload) == "3" {
				p.send(&coap.Message{Type: coap.Reset, ID: m.ID})
				break
			}
		}
		<-done
		if n, lost := o.core.Watching(o.only().id); n != 0 || lost != 1 {
			t.Errorf("rejected: %d observations, %d lost", n, lost)
		}
	})
}

// TestNumbersUsedUp: a start has 2^16 record numbers for a session. Where no more of
// them can be had the peer is told goodbye, and shakes hands anew.
func TestNumbersUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(4)
		at := netip.MustParseAddrPort("198.51.100.1:5684")
		var highest uint64
		w.tap = func(from, _ netip.AddrPort, b []byte) bool {
			if r, _, err := record.Next(b, 0); err == nil && from == at && r.Epoch == 1 {
				highest = max(highest, r.Seq)
			}
			return false
		}
		d := &disk{}
		o := resume(t, w, d, 5)
		p := o.dial("node1")
		defer p.close()
		p.ask(p.request(coap.GET, "a", ""))
		o.stop()
		o = resume(t, w, d, 6)
		defer o.stop()
		p.o = o
		s := o.only()
		o.e.mu.Lock()
		if s.sent != 5<<40|1<<16 {
			t.Errorf("begins with %#x", s.sent)
		}
		s.sent = 5<<40 | 2<<16 - 3
		o.e.mu.Unlock()
		p.ask(p.request(coap.GET, "b", ""))
		p.ask(p.request(coap.GET, "c", ""))
		<-p.over // close_notify
		synctest.Wait()
		unlock := w.lock()
		defer unlock()
		if highest != 2<<16-1 {
			t.Errorf("the last number is %#x", highest)
		}
		if n := o.sessions(); n != 0 {
			t.Errorf("%d sessions", n)
		}
	})
}

// reserving is a disk that takes numbers of starts.
type reserving struct {
	side
	fails atomic.Bool
	taken atomic.Uint32
}

func (r *reserving) Reserve(n uint32) error {
	if r.fails.Load() {
		return errors.New("the disk is full")
	}
	r.taken.Store(n)
	return nil
}

// TestNumbersTaken: a session that needs more record numbers than a start has gets
// those of further starts, which no later start has; when the disk refuses it is
// tried again.
func TestNumbersTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(4)
		d := &disk{}
		o := resume(t, w, d, 5)
		p := o.dial("node1")
		defer p.close()
		p.ask(p.request(coap.GET, "a", ""))
		j := &reserving{side: side{d, false}}
		s := o.only()
		use := func(n sent) {
			t.Helper()
			s.e.mu.Lock()
			s.e.journal, s.sent = j, 5<<40|n
			s.e.mu.Unlock()
			p.ask(p.request(coap.GET, "b", ""))
			synctest.Wait()
		}
		use(10)
		if n := j.taken.Load(); n != 0 {
			t.Errorf("start %d is taken without need", n)
		}
		j.fails.Store(true)
		use(1 << 15)
		j.fails.Store(false)
		use(1<<15 + 10)
		if n := j.taken.Load(); n != 0 {
			t.Errorf("start %d is taken at once after the disk refused", n)
		}
		time.Sleep(startsAgain)
		use(1<<15 + 20)
		if n := j.taken.Load(); n != 5+startsMore {
			t.Errorf("start %d is taken", n)
		}
		use(1<<16 + 20)
		use((startsMore+1)<<16 - 10)
		if n := j.taken.Load(); n != 5+2*startsMore {
			t.Errorf("start %d is taken", n)
		}
		o.stop()
		o = resume(t, w, d, 6+2*startsMore)
		defer o.stop()
		if s := o.only(); s.sent.seq() != (1+2*startsMore)<<16 {
			t.Errorf("goes on with %#x", s.sent)
		}
	})
}

// TestNotKept: without a journal a stop is the end, and peers are told; what a
// peer ended is not brought back.
func TestNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(5)
		o := begin(t, w, true)
		p := o.dial("node1")
		p.ask(p.request(coap.GET, "a", ""))
		o.stop()
		<-p.over
		p.close()

		d := &disk{}
		o = resume(t, w, d, 1)
		gone, stays := o.dial("node1"), o.dial("node2")
		defer stays.close()
		gone.ask(gone.request(coap.GET, "a", ""))
		stays.observe("ob")
		gone.close()
		time.Sleep(time.Second)
		o.stop()
		select {
		case <-stays.over:
			t.Error("a peer that is kept was told goodbye")
		default:
		}
		o = resume(t, w, d, 2)
		defer o.stop()
		if n := o.sessions(); n != 1 {
			t.Errorf("%d sessions", n)
		}
	})
}

// TestDumpEnds: a dump of all sessions says so when they are given up meanwhile, for
// then they are missing in it although they go on after the next start.
func TestDumpEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := resume(t, newWire(1), &disk{}, 1)
		p := o.dial("node1", withCID)
		defer p.close()
		p.observe("o")
		n := 0
		emit := func([]byte) { n++ }
		if !o.all.Dump(emit) || !o.core.Dump(emit) || n < 2 {
			t.Errorf("%d records", n)
		}
		o.stop()
		if o.all.Dump(emit) || o.core.Dump(emit) {
			t.Error("all is there, after the end")
		}
	})
}

// kept are records of each kind.
func kept() [][]byte {
	id := [linkSize]byte{1, 2, 3, 4, 5, 6, 7, 8}
	m := mark{edge: 99, nextID: 7, heard: 1e9, moves: 3, addr: netip.MustParseAddrPort("[fe80::1%eth0]:5684")}
	i := image{id: id, via: coap.DTLSPSK, suite: record.PSKCCM8, cid: 5, peerCID: "abc", subject: coap.Subject{Kind: coap.SubjectPoP, ID: "kid"}, began: 1e9, mark: m}
	r := replyImage{id: id, mid: 4, at: 1e9, token: "to", reply: "reply"}
	j, n := i, m
	j.local, n.local = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	return [][]byte{i.append(nil), appendMark(nil, id, &m), r.append(nil), appendEnd(nil, id), j.append(nil), appendMark(nil, id, &n)}
}

// encodeKept is the inverse of decodeKept.
func encodeKept(v any) []byte {
	switch v := v.(type) {
	case *image:
		return v.append(nil)
	case marked:
		return appendMark(nil, v.id, &v.mark)
	case *replyImage:
		return v.append(nil)
	}
	return appendEnd(nil, v.(ended))
}

func TestKeptRecords(t *testing.T) {
	for _, b := range kept() {
		v, err := decodeKept(b)
		if err != nil {
			t.Fatalf("%q: %v", b[0], err)
		}
		if again := encodeKept(v); !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
		for n := range b {
			if _, err := decodeKept(b[:n]); err == nil {
				t.Errorf("%q: a prefix of %d bytes is read", b[0], n)
			}
		}
		if _, err := decodeKept(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%q: a byte too many is read", b[0])
		}
	}
	if _, err := decodeKept([]byte("Sshort")); err == nil {
		t.Error("a session of an older version without its whole name is read")
	}
	if s := fmt.Sprint(errKept); strings.Contains(s, "abc") {
		t.Error(s)
	}
}

func FuzzKept(f *testing.F) {
	for _, b := range kept() {
		f.Add(b)
	}
	f.Add([]byte("Sof an older version, and what it knew"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeKept(b)
		if err != nil {
			return
		}
		want := b
		if b[0]&^keptPinned == keptBefore { // is read as the end of what it names, whatever else it says
			want = append([]byte{keptEnd}, b[1:1+linkSize]...)
		}
		if again := encodeKept(v); !bytes.Equal(again, want) {
			t.Errorf("%x is encoded as %x", b, again)
		}
		var r Recovery
		_ = r.Apply(b)
	})
}

// TestIdentifiersAfterQuickStarts: processes that die before they have written which
// message identifiers they used do not use the same ones: a peer would take a new
// message for a copy of an old one (RFC 7252, Section 4.5).
func TestIdentifiersAfterQuickStarts(t *testing.T) {
	var used []uint16
	for start := uint32(70); start < 70+idLeaps; start++ {
		e := New(nowhere{newWire(1).open("")}, Config{Server: front{&world{}}, Keys: front{&world{}}})
		var r Recovery
		if err := r.Apply(one(1)); err != nil {
			t.Fatal(err)
		}
		e.Restore(blackHole{}, start, &r)
		id := e.sessions[0].nextID
		for _, other := range append(used, 0) { // 0 is on disk
			if d := min(id-other, other-id); d < idLeap {
				t.Errorf("start %d goes on at %d, another at %d", start, id, other)
			}
		}
		used = append(used, id)
	}
}

// TestClockSet: what was written by another clock is compared with what is written since.
// Of two sessions that were heard a moment ago none was silent for a month.
func TestClockSet(t *testing.T) {
	for _, by := range []time.Duration{-30 * 24 * time.Hour, 30 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWire(1), &disk{}
			o := resume(t, w, d, 100)
			defer func() { o.stop() }()
			asleep, awake := o.dial("node1", withCID), o.dial("node2", withCID)
			defer asleep.close()
			defer awake.close()
			for _, p := range []*peer{asleep, awake} {
				if r := p.ask(p.request(coap.GET, "a", "")); r.Code != coap.Content {
					t.Fatal(r.Code)
				}
			}
			time.Sleep(2 * keepEvery)
			d.heardEarlier(t, by)
			o.all.ClockSet()
			if r := awake.ask(awake.request(coap.GET, "b", "")); r.Code != coap.Content {
				t.Fatal(r.Code)
			}
			time.Sleep(2 * keepEvery)
			o.kill()
			o = resume(t, w, d, 101)
			if n := o.sessions(); n != 2 {
				t.Errorf("clock set by %v: %d sessions", by, n)
			}
		})
	}
}

// heardEarlier makes the times of all that is on disk those of a clock that was behind by
// some time.
func (d *disk) heardEarlier(t *testing.T, by time.Duration) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, r := range d.recs {
		if r.core {
			continue
		}
		v, err := decodeKept(r.b)
		if err != nil {
			t.Fatal(err)
		}
		switch v := v.(type) {
		case *image:
			v.heard -= int64(by / time.Second)
			d.recs[i].b = v.append(nil)
		case marked:
			v.mark.heard -= int64(by / time.Second)
			d.recs[i].b = appendMark(nil, v.id, &v.mark)
		}
	}
}
