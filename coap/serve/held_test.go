package serve_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// Who is held takes nothing from the budget: who is not is told at once, and who
// wakes need not wait for its turn.
func TestHeldTakeNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{version: 1}
		s := start(t, r, serve.Config{NotifyRate: 1}) // 20 messages would take as many seconds
		const n = 20
		var links [n]*coaptest.Link
		var boxes [n]*inbox
		var mu sync.Mutex
		held := map[coap.LinkID]bool{}
		for i := range n {
			name := coap.LinkID(fmt.Sprintf("node%02d", i))
			links[i] = namedLink(t, s, name, coaptest.Options{})
			boxes[i], _ = observe(t, links[i], get("/t"))
			held[name] = i != n-1
		}
		wait := func(p coap.Peer) bool {
			mu.Lock()
			defer mu.Unlock()
			return held[p.Link]
		}
		wake := func(name coap.LinkID) {
			mu.Lock()
			defer mu.Unlock()
			held[name] = false
		}
		note := r.set(2)
		note.Wait = wait
		s.Publish("t", note)
		settle(100 * time.Millisecond)
		want(t, "who is awake", boxes[n-1], "[2.05 v1 2.05 v2]")
		want(t, "who is held", boxes[0], "[2.05 v1]")

		wake("node00")
		if _, err := links[0].Do(t.Context(), get("/t")); err != nil {
			t.Fatal(err)
		}
		settle(100 * time.Millisecond)
		want(t, "who woke", boxes[0], "[2.05 v1 2.05 v2]")

		// Those that are resumed while they still wait take no turn either.
		wake("node05")
		for i := 1; i < n-1; i++ {
			s.Resume("t", coap.LinkID(fmt.Sprintf("node%02d", i)))
		}
		settle(1100 * time.Millisecond)
		want(t, "who was resumed", boxes[5], "[2.05 v1 2.05 v2]")
		want(t, "who still waits", boxes[6], "[2.05 v1]")

		// A newer version takes the place of the one that is kept.
		note = r.set(3)
		note.Wait = wait
		s.Publish("t", note)
		wake("node06")
		s.Resume("t", "node06")
		settle(5 * time.Second)
		want(t, "who slept through one", boxes[6], "[2.05 v1 2.05 v3]")
		want(t, "who was resumed", boxes[5], "[2.05 v1 2.05 v2 2.05 v3]")
	})
}
