package serve

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// pacer spreads what the gateway sends unasked over time, so that a rekey of a
// large group, or of many groups at once, neither floods a network nor holds up
// who asks for something. Topics take turns, and within a topic its subnets:
// each gets a fair share of the budget. What one peer may have outstanding is
// another matter (NSTART, RFC 7252, Section 4.7).
type pacer struct {
	rate   float64 // messages per second of the gateway; 0: no limit
	subnet float64 // and of one subnet; 0: no limit

	mu      sync.Mutex
	topics  []*pacedTopic // with something waiting, in turn
	byName  map[string]*pacedTopic
	waiting int
	budget  bucket
	subnets map[netip.Prefix]*bucket
	armed   bool // a pump is under way or will be
	closed  bool
	work    sync.WaitGroup // pumps under way or armed
}

// pacedTopic is what waits of a topic.
type pacedTopic struct {
	name   string
	queues []*pacedQueue // of its subnets, in turn
	byNet  map[netip.Prefix]*pacedQueue
}

type pacedQueue struct {
	net  netip.Prefix
	jobs []pacedJob
}

type pacedJob struct {
	link coap.Link // over which it sends; nil: it tells none
	note *note     // which; nil likewise
	run  func()
}

// bucket holds the messages that may be sent now.
type bucket struct {
	tokens float64
	at     time.Time
}

// fill adds what was earned since the last time, up to what a pause of
// paceEvery earns, but one message at least.
func (b *bucket) fill(rate float64, now time.Time) {
	most := max(1, rate*paceEvery.Seconds())
	if b.at.IsZero() {
		b.tokens = most
	} else {
		b.tokens = min(most, b.tokens+rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

func newPacer(rate, subnet float64) *pacer {
	return &pacer{rate: rate, subnet: subnet, byName: map[string]*pacedTopic{}, subnets: map[netip.Prefix]*bucket{}}
}

// subnetOf is what shares a budget: an IPv4 /24, an IPv6 /64.
func subnetOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // a link without an address
	}
	return p
}

// free says that nothing is limited.
func (p *pacer) free() bool { return p.rate == 0 && p.subnet == 0 }

// add runs job in its turn: at once, in this goroutine, where nothing is limited. What
// it sends over its link goes together with what the others of a portion send.
func (p *pacer) add(topic string, a netip.Addr, job pacedJob) {
	if p.free() {
		job.run()
		return
	}
	var net netip.Prefix
	if p.subnet != 0 {
		net = subnetOf(a)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	t := p.byName[topic]
	if t == nil {
		t = &pacedTopic{name: topic, byNet: map[netip.Prefix]*pacedQueue{}}
		p.byName[topic] = t
		p.topics = append(p.topics, t)
	}
	q := t.byNet[net]
	if q == nil {
		q = &pacedQueue{net: net}
		t.byNet[net] = q
		t.queues = append(t.queues, q)
	}
	q.jobs = append(q.jobs, job)
	p.waiting++
	if !p.armed {
		p.armed = true
		p.work.Add(1)
		// Not in this goroutine: whoever publishes to many goes on meanwhile.
		time.AfterFunc(0, p.pump)
	}
	p.mu.Unlock()
}

// close drops what waits, and waits for what is under way.
func (p *pacer) close() {
	p.mu.Lock()
	p.closed = true
	p.waiting, p.topics = 0, nil
	clear(p.byName)
	p.mu.Unlock()
	p.work.Wait()
}

// pump runs what the budget allows, and comes again while something waits.
func (p *pacer) pump() {
	var out outlets
	var some []pacedJob
	for more := true; more; {
		some = some[:0]
		for len(some) < paceTogether {
			job := p.take()
			if more = job.run != nil; !more {
				break
			}
			some = append(some, job)
		}
		announce(some)
		for i, job := range some {
			if job.link != nil {
				out.hold(job.link)
			}
			job.run()
			some[i] = pacedJob{}
		}
	}
	out.release()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 {
		p.armed = false
		clear(p.subnets) // a pause is enough to earn all that they may have
		p.work.Done()
		return
	}
	// Jitter keeps gateways that were started together from sending together.
	time.AfterFunc(time.Duration(float64(paceEvery)*(0.75+rand.Float64()/2)), p.pump)
}

// announce tells notifications to whom they are about to go.
func announce(some []pacedJob) {
	var of map[coap.Readier][]coap.Peer
	for _, job := range some {
		if job.note == nil || job.note.Ready == nil {
			continue
		}
		if of == nil {
			of = map[coap.Readier][]coap.Peer{}
		}
		of[job.note.Ready] = append(of[job.note.Ready], job.link.Peer())
	}
	for r, peers := range of {
		r.Ready(peers)
	}
}

// take removes the next job that the budget allows; one without run when none does.
func (p *pacer) take() pacedJob {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 {
		return pacedJob{}
	}
	now := time.Now()
	if p.rate != 0 {
		if p.budget.fill(p.rate, now); p.budget.tokens < 1 {
			return pacedJob{}
		}
	}
	for range len(p.topics) {
		t := p.topics[0]
		p.topics = append(p.topics[1:], t)
		for range len(t.queues) {
			q := t.queues[0]
			t.queues = append(t.queues[1:], q)
			if !p.spend(q.net, now) {
				continue
			}
			p.budget.tokens--
			p.waiting--
			job := q.jobs[0]
			q.jobs[0] = pacedJob{}
			if q.jobs = q.jobs[1:]; len(q.jobs) == 0 {
				delete(t.byNet, q.net)
				t.queues = t.queues[:len(t.queues)-1]
			}
			if len(t.queues) == 0 {
				delete(p.byName, t.name)
				p.topics = p.topics[:len(p.topics)-1]
			}
			return job
		}
	}
	return pacedJob{}
}

// spend takes a message from the budget of a subnet.
func (p *pacer) spend(net netip.Prefix, now time.Time) bool {
	if p.subnet == 0 {
		return true
	}
	b := p.subnets[net]
	if b == nil {
		b = &bucket{}
		p.subnets[net] = b
	}
	if b.fill(p.subnet, now); b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// paceKey is what shares the budget as one: the topics of a group, which begin
// with two segments in common.
func paceKey(topic string) string {
	for i, slashes := 0, 0; i < len(topic); i++ {
		if topic[i] == '/' {
			if slashes++; slashes == 2 {
				return topic[:i]
			}
		}
	}
	return topic
}

// Pace waits for the turn of a request of ours that is one of many; its topic
// shares the budget with the notifications.
func (s *Server) Pace(ctx context.Context, topic string, peer coap.Peer) error {
	turn := make(chan struct{})
	s.pacer.add(paceKey(topic), peer.Addr.Addr(), pacedJob{run: func() { close(turn) }})
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
