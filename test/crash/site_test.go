package crash

import (
	"context"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"
)

// pairPatience is how long a client waits for one of two gateways.
const pairPatience = 3 * time.Second

// site is one of the gateways that share a store: its folder and addresses.
type site struct {
	config string
	at     ports
	gw     *gateway
	down   atomic.Bool
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

// where the client connects next.
func (c *client) where() ports {
	s := c.pin
	if s == nil {
		s = c.w.somewhere()
	}
	c.site.Store(s)
	if s == nil {
		return c.w.at
	}
	return s.at
}

// cut says whether a failure is explained by the end of the gateway that the
// client connected to last.
func (c *client) cut(ctx context.Context) bool {
	s := c.site.Load()
	return c.w.cut(ctx) || s != nil && s.down.Load()
}
