package ace

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// A grant read after a commit shows what was committed, however many readers
// fill the cache meanwhile.
func TestGrantIsNeverStale(t *testing.T) {
	b := newBench(t)
	b.mustPost(outside(), b.token())
	s := b.handshake(popKID)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if _, err := b.Grant(t.Context(), inside(s)); err != nil {
					t.Errorf("grant: %v", err)
					return
				}
			}
		})
	}
	for i := range 30 {
		roles := []groupcomm.Roles{2, 4}[i%2]
		ns := b.mustPost(inside(s), b.token(func(c *cwt.Claims) {
			c.IssuedAt += int64(i) + 1
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g1", Roles: roles})
		}))
		if g := b.grant(s); g.Scope[0].Roles != roles || !slices.Equal(g.Challenges[0], ns) {
			t.Fatalf("post %d: stale grant with roles %v", i, g.Scope[0].Roles)
		}
	}
	stop()
	readers.Wait()
}

// Two keys that claim one identifier at one time: one is stored.
func TestConcurrentCollision(t *testing.T) {
	b := newBench(t)
	var posts sync.WaitGroup
	codes := make([]coap.Code, 8)
	for i := range codes {
		token := b.token(func(c *cwt.Claims) { c.Cnf.Key.K = slices.Repeat([]byte{byte(i)}, 16) })
		posts.Go(func() {
			_, err := b.post(outside(), token)
			codes[i] = code(err)
		})
	}
	posts.Wait()
	slices.Sort(codes)
	if codes[0] != coap.Created || codes[1] != coap.BadRequest || codes[7] != coap.BadRequest {
		t.Errorf("answers %v", codes)
	}
	if n := b.stored.Load(); n != 1 {
		t.Errorf("%d keys counted", n)
	}
}
