package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/protocol/alert"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// TestHandover: a session is served by every suite, with and without connection
// ID; what Admit sees is what the peer proved.
func TestHandover(t *testing.T) {
	for name, suite := range map[string]dtls.CipherSuiteID{
		"CCM_8": dtls.TLS_PSK_WITH_AES_128_CCM_8, "CCM": dtls.TLS_PSK_WITH_AES_128_CCM, "GCM": dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
	} {
		for cid, opts := range map[string][]dtls.ClientOption{
			"none": nil, "ours": {withCID}, "both": {dtls.WithConnectionIDGenerator(dtls.RandomCIDGenerator(5))},
		} {
			t.Run(name+"/"+cid, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWire(1)
					o := begin(t, w, true)
					defer o.stop()
					var n numbers
					w.tap = n.watch(o.at, map[string]int{"both": 5}[cid])
					p := o.dial("node1", append(opts, dtls.WithCipherSuites(suite))...)
					defer p.close()
					for i := range 10 {
						if r := p.ask(p.request(coap.PUT, fmt.Sprint(i), "hello")); r.Code != coap.Changed || string(r.Payload) != "hello" {
							t.Fatalf("%+v", r)
						}
					}
					synctest.Wait()
					o.mu.Lock()
					defer o.mu.Unlock()
					if len(o.admitted) != 1 || string(o.admitted[0].Identity) != "node1" || len(o.opened) != 1 {
						t.Fatalf("admitted %v, opened %d", o.admitted, len(o.opened))
					}
					who := o.opened[0].Peer()
					if who.Via != coap.DTLSPSK || who.Subject.ID != "node1" || who.Addr != p.c.port().addr || who.Link == "" {
						t.Errorf("%+v", who)
					}
					st, ok := p.conn.ConnectionState()
					if !ok {
						t.Fatal("no state")
					}
					want, err := st.ExportKeyingMaterial("EXPORTER-x", nil, 32)
					if err != nil {
						t.Fatal(err)
					}
					got, err := o.admitted[0].Exporter("EXPORTER-x", nil, 32)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("exporter: %x, not %x, %v", got, want, err)
					}
					if empty, err := o.admitted[0].Exporter("EXPORTER-x", []byte{}, 32); err != nil || bytes.Equal(empty, want) {
						t.Errorf("an empty context is as good as none: %v", err)
					}
					defer w.lock()()
					if len(n.bad) != 0 {
						t.Errorf("numbers used twice: %v", n.bad)
					}
					if len(o.e.handshakes)+len(o.e.halfByCID) != 0 {
						t.Error("the handshake is left")
					}
				})
			})
		}
	}
}

// TestLossy: handshakes and requests over a network that loses, doubles and
// reorders: all come through, no request is handled twice, no number is used
// twice.
func TestLossy(t *testing.T) {
	overLossy(t, func(o *world, from *port) (*peer, error) { return o.dialFrom(from, "node1", withCID) })
}

// overLossy has a peer shake hands, by dial, and ask over twenty such networks.
func overLossy(t *testing.T, dial func(*world, *port) (*peer, error), edit ...func(*Config)) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(seed)
				w.drop, w.double, w.detour = 0.15, 0.15, 0.2
				w.delay = 20 * time.Millisecond
				o := begin(t, w, true, edit...)
				defer o.stop()
				var n numbers
				w.tap = n.watch(o.at, 0)
				var p *peer
				for range 20 {
					var err error
					if p, err = dial(o, w.open("")); err == nil {
						break
					}
				}
				if p == nil {
					t.Fatal("no handshake comes through")
				}
				defer p.close()
				for i := range 20 {
					if r := p.ask(p.request(coap.POST, fmt.Sprint(i), "x")); r.Code != coap.Changed || string(r.Payload) != fmt.Sprintf("%d:x", i+1) {
						t.Fatalf("request %d: %v %q", i, r.Code, r.Payload)
					}
				}
				if c := o.handled(); c != 20 {
					t.Errorf("20 requests were handled %d times", c)
				}
				w.mu.Lock()
				if len(n.bad) != 0 {
					t.Errorf("numbers used twice: %v", n.bad)
				}
				w.mu.Unlock()
				time.Sleep(2 * handshakeTimeout)
				if !o.empty() {
					t.Error("handshakes are left")
				}
			})
		})
	}
}

// TestLastFlightLost: pion repeats our last flight until the peer shows that it
// has it.
func TestLastFlightLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true)
		defer o.stop()
		var n numbers
		watch := n.watch(o.at, 0)
		lost := 0
		w.tap = func(from, to netip.AddrPort, b []byte) bool {
			watch(from, to, b)
			if from == o.at && b[0] == record.ChangeCipherSpec && lost < 3 {
				lost++
				return true
			}
			return false
		}
		p := o.dial("node1", withCID)
		defer p.close()
		p.ask(p.request(coap.PUT, "t", ""))
		defer w.lock()()
		if lost != 3 {
			t.Errorf("%d flights were lost", lost)
		}
		if len(n.bad) != 0 {
			t.Errorf("numbers used twice: %v", n.bad)
		}
	})
}

// TestSilentAfterHandshake: a peer that says nothing is taken over too, and can
// be asked things then.
func TestSilentAfterHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		p := o.dial("node1")
		defer p.close()
		time.Sleep(takeOverAfter + time.Second)
		o.e.mu.Lock()
		if len(o.e.sessions) != 1 || len(o.e.handshakes) != 0 {
			t.Errorf("%d sessions, %d handshakes", len(o.e.sessions), len(o.e.handshakes))
		}
		o.e.mu.Unlock()
		p.ask(p.request(coap.PUT, "t", ""))
	})
}

// TestUnknownIdentity: RFC 9202, Section 3.3.2: illegal_parameter; nothing is
// left, and Admit is not asked.
func TestUnknownIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		began := time.Now()
		_, err := o.dialFrom(o.w.open(""), "mallory")
		if err == nil || !strings.Contains(err.Error(), alert.IllegalParameter.String()) {
			t.Errorf("%v", err)
		}
		if time.Since(began) > time.Second {
			t.Errorf("after %v", time.Since(began))
		}
		synctest.Wait()
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.e.handshakes)+len(o.e.sessions)+len(o.admitted) != 0 {
			t.Error("something is left")
		}
	})
}

// TestWrongKey: silence, for as long as the handshake may take; then nothing is
// left.
func TestWrongKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		_, err := o.dialFrom(o.w.open(""), "node1", dtls.WithPSK(func([]byte) ([]byte, error) { return []byte("fedcba9876543210"), nil }))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.Sleep(handshakeTimeout)
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.e.handshakes)+len(o.e.halfByCID)+len(o.e.sessions)+len(o.admitted) != 0 {
			t.Error("something is left")
		}
	})
}

// TestNotAdmitted: an association that could not be admitted is answered with
// the error until it can be.
func TestNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true)
		defer o.stop()
		o.set(func() { o.deny = coap.Errorf(coap.ServiceUnavailable, "the disk is full") })
		p := o.dial("node1")
		defer p.close()
		if r := p.ask(p.request(coap.PUT, "t", "")); r.Code != coap.ServiceUnavailable {
			t.Errorf("%v", r.Code)
		}
		o.set(func() { o.deny = nil })
		if r := p.ask(p.request(coap.PUT, "u", "")); r.Code != coap.Changed {
			t.Errorf("%v", r.Code)
		}
		synctest.Wait()
		all := o.began()
		if who := all[len(all)-1].Peer(); who.Subject.ID != "node1" {
			t.Errorf("%+v", who)
		}
	})
}

// TestGoodbye: a close_notify is answered with one; at the end of the endpoint
// every peer gets one.
func TestGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true)
		p, q := o.dial("node1", withCID), o.dial("node2")
		p.ask(p.request(coap.PUT, "t", ""))
		q.ask(q.request(coap.PUT, "t", ""))
		answered := 0
		w.mu.Lock()
		w.tap = func(from, _ netip.AddrPort, _ []byte) bool {
			if from == o.at {
				answered++
			}
			return false
		}
		w.mu.Unlock()
		_ = p.conn.Close()
		time.Sleep(time.Second)
		w.mu.Lock()
		if n := o.ended(); n != 1 || answered != 1 {
			t.Errorf("%d closed, %d records", n, answered)
		}
		w.mu.Unlock()
		o.stop()
		<-q.over // its Read ends
		if n := o.ended(); n != 2 {
			t.Errorf("%d closed", n)
		}
		p.close()
		q.close()
	})
}

// TestBeginsAnew: RFC 6347, Section 4.2.8: a node that restarts on its old
// port: the old association serves until the new one is proven.
func TestBeginsAnew(t *testing.T) {
	for _, opts := range [][]dtls.ClientOption{nil, {withCID}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(1)
			o := begin(t, w, true)
			defer o.stop()
			p := o.dial("node1", opts...)
			p.ask(p.request(coap.PUT, "t", ""))
			// A ClientHello that leads nowhere, from anybody who can write the
			// address.
			forged := clientHello(7)
			w.carry(p.c.port().addr, o.at, forged)
			time.Sleep(time.Second)
			p.ask(p.request(coap.PUT, "u", ""))
			time.Sleep(handshakeTimeout)
			p.ask(p.request(coap.PUT, "v", ""))
			if o.ended() != 0 {
				t.Fatal("the association is gone")
			}
			// Now the node itself, without a goodbye.
			at := p.c.port().addr
			_ = p.c.Close()
			<-p.over
			q, err := o.dialFrom(w.open(at.String()), "node1", opts...)
			if err != nil {
				t.Fatal(err)
			}
			defer q.close()
			synctest.Wait()
			if o.ended() != 0 {
				t.Error("closed before the new one was proven")
			}
			q.ask(q.request(coap.PUT, "w", ""))
			time.Sleep(time.Second)
			if n := o.ended(); n != 1 || o.sessions() != 1 {
				t.Errorf("%d closed, %d sessions", n, o.sessions())
			}
		})
	}
}

// clientHello is one without cookie for TLS_PSK_WITH_AES_128_CCM_8.
func clientHello(random byte) []byte {
	body := append([]byte{0xfe, 0xfd}, bytes.Repeat([]byte{random}, 32)...)
	body = append(body, 0, 0, 0, 2, 0xc0, 0xa8, 1, 0)
	n := byte(len(body))
	return record.AppendPlain(nil, record.Handshake, 0, append([]byte{1, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, n}, body...))
}

// TestFlood: ClientHellos from invented addresses are bounded, and an honest
// node gets in while they come.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true, func(c *Config) { c.MaxHandshakes = 8 })
		defer o.stop()
		over := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				w.carry(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 5684), o.at, clientHello(byte(i)))
				select {
				case <-over:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}()
		for i := range 5 {
			p, err := o.dialFrom(w.open(""), fmt.Sprintf("node%d", i), withCID)
			if err != nil {
				t.Errorf("node %d: %v", i, err)
				continue
			}
			p.ask(p.request(coap.PUT, "t", ""))
			p.close()
		}
		o.e.mu.Lock()
		if n := len(o.e.handshakes); n > 8 {
			t.Errorf("%d handshakes", n)
		}
		o.e.mu.Unlock()
		close(over)
		<-ended
		time.Sleep(handshakeTimeout + time.Second)
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		if n := len(o.e.handshakes); n != 0 {
			t.Errorf("%d handshakes are left", n)
		}
	})
}

// TestFull: beyond the bound the peer goes that is missed least.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), true, func(c *Config) { c.MaxSessions = 3 })
		defer o.stop()
		var ps []*peer
		for i := range 4 {
			p := o.dial(fmt.Sprintf("node%d", i), withCID)
			defer p.close()
			ps = append(ps, p)
			time.Sleep(time.Second)
			p.ask(p.request(coap.PUT, "t", ""))
			if i == 1 {
				ps[0].ask(ps[0].request(coap.PUT, "u", "")) // it was heard later than node1
			}
		}
		<-ps[1].over // was told
		for _, i := range []int{0, 2, 3} {
			ps[i].ask(ps[i].request(coap.PUT, "v", ""))
		}
	})
}

// TestKept: an address on plain UDP is forgotten after a while, unless it is
// said to stay.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keep atomic.Value // coap.LinkID
		keep.Store(coap.LinkID(""))
		o := begin(t, newWire(1), false, func(c *Config) {
			c.Keep = func(id coap.LinkID) bool { return id == keep.Load() }
		})
		defer o.stop()
		p, q := o.plain(), o.plain()
		defer p.close()
		defer q.close()
		p.ask(p.request(coap.PUT, "t", ""))
		o.e.mu.Lock()
		keep.Store(o.e.sessions[0].id)
		o.e.mu.Unlock()
		q.ask(q.request(coap.PUT, "t", ""))
		time.Sleep(10 * plainIdle)
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		if s := o.e.byAddr.Get(p.c.port().addr); len(o.e.sessions) != 1 || s == nil {
			t.Errorf("%d sessions", len(o.e.sessions))
		}
	})
}
