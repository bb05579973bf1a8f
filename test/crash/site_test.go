package crash

import (
	"context"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"
)

// pairPatience is how long a client waits for one of two gateways that lives.
const pairPatience = 20 * time.Second

// site is one of the gateways that share a store: its folder and addresses.
type site struct {
	config string
	at     doors
	gw     *gateway
	down   atomic.Bool
	// life ends when the gateway is gone, and what it had begun is on disk or
	// never will be: only then may its clients go on, because nothing of what
	// they asked for can still happen.
	life atomic.Pointer[siteLife]
}

type siteLife struct {
	context.Context
	end context.CancelFunc
}

// begin starts another life.
func (s *site) begin() {
	ctx, end := context.WithCancel(context.Background())
	s.life.Store(&siteLife{ctx, end})
	s.down.Store(false)
}

// somewhere picks a gateway that is up; nil when there is only one.
func (w *world) somewhere() *site {
	if len(w.pair) == 0 {
		return nil
	}
	i := mathrand.IntN(len(w.pair))
	if s := w.pair[i]; !s.down.Load() {
		return s
	}
	return w.pair[(i+1)%len(w.pair)]
}

// toward says where the client connects next. ctx ends with that gateway's life;
// arrived is called when the attempt is over, well or not: until then, and if it
// failed, what is asked over the association that is there hangs on the life of
// another gateway.
func (c *client) toward(ctx context.Context) (to doors, bound context.Context, arrived func(well bool)) {
	s := c.pin
	if s == nil {
		s = c.w.somewhere()
	}
	if s == nil {
		return c.w.at, ctx, func(bool) {}
	}
	l := s.life.Load()
	bound, end := context.WithCancel(ctx)
	stop := context.AfterFunc(l, end)
	c.site.Store(s)
	return s.at, bound, func(well bool) {
		stop()
		end()
		if well {
			c.siteLife.Store(l)
		}
	}
}

// during is the context of one step: with two gateways it outlives the load,
// so that no request is given up that still may be worked on, and ends with
// the life of the gateway.
func (c *client) during(ctx context.Context) (step context.Context, cancel func()) {
	l := c.siteLife.Load()
	if l == nil {
		return ctx, func() {}
	}
	if l.Err() != nil {
		c.hangUp() // on to the other gateway
		c.siteLife.Store(nil)
		return c.during(ctx)
	}
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), pairPatience)
	stop := context.AfterFunc(l, end)
	return ctx, func() { stop(); end() }
}

// cut says whether a failure is explained by the end of the gateway that the
// client connected to last.
func (c *client) cut(ctx context.Context) bool {
	s, l := c.site.Load(), c.siteLife.Load()
	return c.w.cut(ctx) || s != nil && s.down.Load() || l != nil && l.Err() != nil
}

// settle waits until nothing that a gateway had begun before it was ended can
// still happen.
func (w *world) settle() {
	for _, s := range w.pair {
		if s.down.Load() {
			<-s.life.Load().Done()
		}
	}
}
