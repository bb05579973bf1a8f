package e2e

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// eyelid passes datagrams between one node and a server while it is open.
type eyelid struct {
	down, up net.PacketConn
	shut     atomic.Bool
	lost     atomic.Int32
}

func newEyelid(t *testing.T, server string) *eyelid {
	t.Helper()
	listen := func() net.PacketConn {
		c, err := net.ListenPacket("udp4", anyPort)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	to, err := net.ResolveUDPAddr("udp4", server)
	if err != nil {
		t.Fatal(err)
	}
	e := &eyelid{down: listen(), up: listen()}
	var from atomic.Pointer[net.Addr]
	var work sync.WaitGroup
	pass := func(in, out net.PacketConn, where func(net.Addr) net.Addr) {
		buf := make([]byte, 4096)
		for {
			n, addr, err := in.ReadFrom(buf)
			if err != nil {
				return
			}
			if to := where(addr); e.shut.Load() {
				e.lost.Add(1)
			} else if to != nil {
				_, _ = out.WriteTo(buf[:n], to)
			}
		}
	}
	work.Go(func() {
		pass(e.down, e.up, func(a net.Addr) net.Addr { from.Store(&a); return to })
	})
	work.Go(func() {
		pass(e.up, e.down, func(net.Addr) net.Addr {
			if a := from.Load(); a != nil {
				return *a
			}
			return nil
		})
	})
	t.Cleanup(func() {
		_ = e.down.Close()
		_ = e.up.Close()
		work.Wait()
	})
	return e
}

// TestJoinThroughProxy: a node behind an edge gateway joins at the Group Manager beyond
// it with the OSCORE profile, token post included, by the name that the edge has for it.
// The edge sees protected messages only. A rekey that comes while the node sleeps waits
// at the edge and reaches it when it wakes; of two the newest.
func TestJoinThroughProxy(t *testing.T) {
	t.Parallel()
	up, edge := newSite(t), newSite(t)
	up.run()
	edge.more = fmt.Sprintf("proxy:\n  hosts:\n    - {name: gm.test, upstream: \"coap://%s\", open_to_udp: true, addresses: [127.0.0.0/8]}\n  udp_rps: 1000\n", up.at["coap"])
	edge.configure()
	edge.run()

	// The simulator, as a program.
	p := up.join("walker", "--oscore", "--proxy", edge.at["coap"], "--proxy-name", "gm.test")
	if row(up.show(), p.joined.NodeName) == nil {
		t.Errorf("%s is no member there", p.joined.NodeName)
	}
	run(t, 0, "group", "rekey", "sensors", "--config", up.config)
	p.holds(1)

	lid := newEyelid(t, edge.at["coap"])
	d := up.door()
	tr := d.dial([]byte(d.client.Identity), d.client.Key.Bytes())
	a, err := node.RequestToken(soon(t), tr, node.TokenRequest{
		Audience: d.client.Audience, Scope: groupcomm.Scope{{Group: group, Roles: both}}, OSCORE: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	oscoreTr, info, err := node.DialOSCOREVia(soon(t), lid.down.LocalAddr().String(), "gm.test", a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = oscoreTr.Close() })
	m, err := node.New(node.Config{Group: group, Roles: both, Transfer: info}, oscoreTr)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Join(soon(t)); err != nil {
		t.Fatal(err)
	}
	var told sync.Map // version → true
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group)
	if _, err := oscoreTr.Observe(soon(t), req, func(r *coap.Response) {
		if k, err := groupcomm.DecodeRekeyMessage(r.Payload); err == nil {
			told.Store(uint64(k.Num), true)
		}
	}); err != nil {
		t.Fatal(err)
	}
	lid.shut.Store(true) // it sleeps
	run(t, 0, "group", "rekey", "sensors", "--config", up.config)
	p.holds(2)
	eventually(t, "the edge tries to tell", func() bool { return lid.lost.Load() > 0 })
	run(t, 0, "group", "rekey", "sensors", "--config", up.config)
	p.holds(3)
	lid.shut.Store(false)
	eventually(t, "the newest rekey reaches the node that woke", func() bool {
		if _, err := m.Num(soon(t)); err != nil { // a sign of life, and no more
			t.Log(err)
		}
		_, ok := told.Load(uint64(3))
		return ok
	})
}
