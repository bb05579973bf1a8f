package e2e

import (
	"slices"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestOvertaken: a node that hears nothing while the group is rekeyed twice is told of the
// newest version only, by the retransmission that its deafness ends with, and not of the
// one before it (RFC 7641, Section 4.5.2; docs/protocol.md, Section 4). It takes the
// seconds of a real retransmission.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	g := serve(t)
	ears := g.join() // shares the topic, and hears
	ears.follow()
	r := newRelay(t, g.coaps)
	g.coaps = r.addr()
	var mu sync.Mutex
	var told []groupcomm.Version
	a := g.token()
	cfg := g.config(a)
	cfg.Transfer = g.post(a)
	m := g.enter(a, cfg, &wire{Transport: g.as(a), heard: func(resp *coap.Response) {
		if n, err := groupcomm.DecodeRekeyMessage(resp.Payload); err == nil {
			mu.Lock()
			told = append(told, n.Num)
			mu.Unlock()
		}
	}})
	m.follow()
	before := g.rekey()
	m.reaches(before)
	ears.reaches(before)
	g.everyone(before)
	mu.Lock()
	told = nil
	mu.Unlock()

	lost := r.lost.Load()
	r.loss.Store(100)
	first := g.rekey()
	ears.reaches(first)
	eventually(t, "the first is sent, and lost", func() bool { return r.lost.Load() > lost })
	second := g.rekey()
	ears.reaches(second) // the deaf one waits for its retransmission by now
	r.loss.Store(0)
	m.reaches(second)
	g.everyone(second)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(told, []groupcomm.Version{second}) {
		t.Errorf("told of versions %v, the newest is %d", told, second)
	}
}

// asked tells of what the gateway asks a node.
type asked struct {
	*wire
	by func(*coap.Request)
}

func (a asked) Take(fn func(*coap.Request) *coap.Response) {
	a.wire.Take(func(req *coap.Request) *coap.Response { a.by(req); return fn(req) })
}

// TestCallOvertaken: a node with a control_uri that hears nothing while the group is
// rekeyed twice is sent the newest version only, when it hears again.
func TestCallOvertaken(t *testing.T) {
	t.Parallel()
	g := serve(t)
	ears := g.join() // hears when the gateway tells
	ears.follow()
	r := newRelay(t, g.coaps)
	g.coaps = r.addr()
	var mu sync.Mutex
	var told []groupcomm.Version
	a := g.token()
	cfg := g.config(a)
	cfg.Transfer, cfg.ControlURI = g.post(a), "coap://node.example/grp-rek"
	g.enter(a, cfg, asked{&wire{Transport: g.as(a)}, func(req *coap.Request) {
		if n, err := groupcomm.DecodeRekeyMessage(req.Payload); err == nil {
			mu.Lock()
			told = append(told, n.Num)
			mu.Unlock()
		}
	}})
	before := g.rekey()
	g.everyone(before)
	mu.Lock()
	told = nil
	mu.Unlock()

	lose := func(what string) {
		t.Helper()
		lost := r.lost.Load()
		ears.reaches(g.rekey())
		eventually(t, what+" is sent, and lost", func() bool { return r.lost.Load() > lost })
	}
	r.loss.Store(100)
	lose("the first")
	lose("the second")
	r.loss.Store(0)
	g.everyone(before + 2)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(told, []groupcomm.Version{before + 2}) {
		t.Errorf("told of versions %v, the newest is %d", told, before+2)
	}
}

// everyone waits until the gateway knows that all members have a version.
func (g *gateway) everyone(v groupcomm.Version) {
	g.t.Helper()
	eventually(g.t, "the gateway knows who has the version", func() bool {
		for _, mb := range g.show().Members {
			if mb.State != "current" || mb.Version != v {
				return false
			}
		}
		return true
	})
}
