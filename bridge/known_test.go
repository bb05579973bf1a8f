package bridge

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// TestKnown: of those whose tokens were read together none is looked up by itself, all
// others are; what was read is soon old, and is not believed of the next rekey.
func TestKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *house
		var asked []string // guarded by h.mu, like all below
		var trouble error
		read := 0
		h = newHouse(t, func(d *Deps) {
			access := d.Access
			d.Access = func(ctx context.Context, p coap.Peer) error {
				h.change(func() { asked = append(asked, p.Subject.ID) })
				return access(ctx, p)
			}
			d.Tokens = func(_ context.Context, subjects []coap.Subject) (good map[coap.Subject]time.Time, err error) {
				h.change(func() {
					if err = trouble; err != nil {
						return
					}
					read++
					good = map[coap.Subject]time.Time{}
					for _, s := range subjects {
						switch {
						case h.expired[s.ID]:
						case s.ID == "node0":
							good[s] = time.Now() // ends in the moment
						default:
							good[s] = time.Time{}
						}
					}
				})
				return good, err
			}
		})
		const n = 5
		var watched []*watcher
		for i := range n {
			node := fmt.Sprint("node", i)
			h.m.join(t, h.b, node, nil)
			watched = append(watched, h.observe(h.link(node), "/ace-group/sensors"))
		}
		h.change(func() { h.expired["node1"], asked = true, nil })
		h.m.rekey(t, h.b)
		settle(time.Second)
		if read != 1 || len(asked) != 2 {
			t.Errorf("%d times tokens were read together, those of %v by itself", read, asked)
		}
		for i, w := range watched {
			got := w.responses()
			if last := got[len(got)-1].Code; len(got) != 2 || (last == coap.Unauthorized) != (i == 1) {
				t.Errorf("node%d got %d responses, the last %v", i, len(got), last)
			}
		}
		// Another gateway revokes one before the next rekey: what was read is of no use.
		h.change(func() { h.expired["node2"], asked = true, nil })
		h.m.rekey(t, h.b)
		settle(time.Second)
		if got := watched[2].responses(); read != 2 || got[len(got)-1].Code != coap.Unauthorized {
			t.Errorf("after %d readings the revoked one got %v", read, got[len(got)-1].Code)
		}
		// Nothing is read: each is looked up.
		h.change(func() { asked, trouble = nil, errors.New("the database is away") })
		h.m.rekey(t, h.b)
		settle(time.Second)
		if len(asked) != n-2 {
			t.Errorf("in the trouble %v were looked up", asked)
		}

		k := h.b.newKnown(t.Context())
		good := subject("good")
		k.of, k.read = map[coap.Subject]time.Time{good: {}}, time.Now()
		if !k.has(good) || k.has(subject("other")) {
			t.Error("what was read is not known")
		}
		time.Sleep(knownFor + 1)
		if k.has(good) {
			t.Error("it is old")
		}
	})
}
