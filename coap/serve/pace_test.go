package serve

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// A storm of many topics keeps to the budget, and each topic gets its share
// while it has something to send.
func TestPacerSharesTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1000, 0)
		var mu sync.Mutex
		sent := map[string]int{}
		for topic, n := range map[string]int{"large": 5000, "small": 500, "middle": 1000} {
			for range n {
				p.add(topic, netip.Addr{}, pacedJob{run: func() { mu.Lock(); sent[topic]++; mu.Unlock() }})
			}
		}
		at := func(d time.Duration) map[string]int {
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			out := map[string]int{"all": 0}
			for k, v := range sent {
				out[k] = v
				out["all"] += v
			}
			return out
		}
		got := at(time.Second)
		if got["all"] < 900 || got["all"] > 1050 {
			t.Errorf("%d messages in a second", got["all"])
		}
		for _, topic := range []string{"large", "small", "middle"} {
			if n := got[topic]; n < got["all"]/3-12 || n > got["all"]/3+12 {
				t.Errorf("%s got %d of %d", topic, n, got["all"])
			}
		}
		if got := at(7 * time.Second); got["all"] != 6500 {
			t.Errorf("%d messages at the end", got["all"])
		}
	})
}

// A subnet that is full does not hold up the others, nor those of another topic.
func TestPacerSubnets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(0, 10)
		var mu sync.Mutex
		sent := map[string]int{}
		for i := range 300 {
			for _, net := range []string{"192.0.2", "198.51.100"} {
				p.add(fmt.Sprint("topic", i%2), netip.MustParseAddr(fmt.Sprintf("%s.%d", net, i%250)), pacedJob{run: func() { mu.Lock(); sent[net]++; mu.Unlock() }})
			}
		}
		p.add("topic0", netip.MustParseAddr("2001:db8::1"), pacedJob{run: func() { mu.Lock(); sent["alone"]++; mu.Unlock() }})
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		for _, net := range []string{"192.0.2", "198.51.100"} {
			if n := sent[net]; n < 9 || n > 12 {
				t.Errorf("%s: %d messages in a second", net, n)
			}
		}
		if sent["alone"] != 1 {
			t.Error("one was held up by others")
		}
		mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if sent["192.0.2"] != 300 || sent["198.51.100"] != 300 {
			t.Errorf("at the end: %v", sent)
		}
	})
}

// Without limits nothing waits.
func TestPacerWithoutLimits(t *testing.T) {
	ran := false
	newPacer(0, 0).add("topic", netip.Addr{}, pacedJob{run: func() { ran = true }})
	if !ran {
		t.Error("waits")
	}
}

// batcher is a link with an outlet, and that outlet: it tells how many were sent
// together.
type batcher struct {
	wire
	held, together int
	portions       []int
}

func (b *batcher) Outlet() coap.Outlet { return b }
func (b *batcher) Hold()               { b.held++ }
func (b *batcher) Release() {
	b.portions = append(b.portions, b.together)
	b.held, b.together = b.held-1, 0
}

// What the budget allows at a time is sent together.
func TestPacerSendsPortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1000, 0) // 10 in a pause
		b := &batcher{}
		for range 100 {
			p.add("topic", netip.Addr{}, pacedJob{link: b, run: func() {
				if b.held != 1 {
					t.Errorf("held %d times", b.held)
				}
				b.together++
			}})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		sum, most := 0, 0
		for _, n := range b.portions {
			sum, most = sum+n, max(most, n)
		}
		if sum != 100 || most < 5 || most > 10 || b.held != 0 {
			t.Errorf("portions of %v, held %d times", b.portions, b.held)
		}
	})
}
