package endpoint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// TestOvertakenModel: whatever is lost, late or twice, and however fast the state changes,
// no peer is sent an older state after a newer, none has more than one notification in a
// time-out, and each learns the last one.
func TestOvertakenModel(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			w := newWire(seed)
			o := begin(t, w, false)
			defer o.stop()
			const n = 12
			peers := make([]*peer, n)
			model := map[netip.AddrPort]*sentTo{}
			for i := range peers {
				peers[i] = o.plain()
				defer peers[i].close()
				peers[i].observe("obs")
				model[peers[i].c.port().addr] = &sentTo{ids: map[uint16]uint64{}}
			}
			unlock := w.lock()
			w.drop, w.double, w.detour = 0.4, 0.1, 0.2
			w.tap = func(from, to netip.AddrPort, b []byte) bool {
				if from == o.at {
					model[to].sent(t, b)
				} else {
					model[from].answered = true
				}
				return false
			}
			unlock()
			var answers sync.WaitGroup
			over := make(chan struct{})
			for _, p := range peers {
				answers.Go(func() { p.acknowledgeAll(over) })
			}
			version := uint64(1)
			var mu sync.Mutex
			reached := map[string]int{} // how often a peer was said to have a version
			publish := func() {
				version++
				o.core.Publish(topic, coap.Notification{
					Version: version, Confirm: true, Body: &coap.Response{Code: coap.Content, Payload: fmt.Append(nil, version)},
					Done: func(link coap.LinkID, version uint64, err error) {
						mu.Lock()
						defer mu.Unlock()
						if key := fmt.Sprint(link, version); err == nil {
							if reached[key]++; reached[key] > 1 {
								t.Errorf("seed %d: %s was acknowledged twice", seed, key)
							}
						}
					},
				})
			}
			for range 150 {
				publish()
				time.Sleep(time.Duration(rng.Int64N(int64(6 * time.Second))))
			}
			unlock = w.lock()
			w.drop, w.double, w.detour = 0, 0, 0
			unlock()
			time.Sleep(200 * time.Second)
			publish() // some may have been given up
			time.Sleep(200 * time.Second)
			close(over)
			answers.Wait()
			unlock = w.lock()
			defer unlock()
			w.tap = nil
			observers := 0
			for _, m := range model {
				if m.newest == version {
					observers++
				}
			}
			if have := len(o.core.Observers(topic)); observers != have || have < n/2 {
				t.Errorf("seed %d: %d observers, %d were sent the last state", seed, have, observers)
			}
		})
	}
}

// sentTo is what one peer was sent.
type sentTo struct {
	newest   uint64
	ids      map[uint16]uint64 // of messages: what they told
	at       time.Time         // of the last
	answered bool              // since, though that may be lost
}

// sent looks at a datagram.
func (m *sentTo) sent(t *testing.T, b []byte) {
	c, err := coap.DecodeMessage(b)
	if err != nil || c.Type != coap.Confirmable || c.Code != coap.Content {
		return
	}
	version, err := strconv.ParseUint(string(c.Payload), 10, 64)
	if err != nil {
		t.Error(err)
	}
	if old, ok := m.ids[c.ID]; ok && old != version {
		t.Errorf("message %d told of %d, and then of %d", c.ID, old, version)
	}
	if version < m.newest {
		t.Errorf("%d is sent after %d", version, m.newest)
	}
	if d := time.Since(m.at); d < ackTimeout && !m.answered {
		t.Errorf("%d is sent %v after the one before", version, d)
	}
	m.newest, m.ids[c.ID], m.at, m.answered = version, version, time.Now(), false
}

// acknowledgeAll answers what comes, until over is closed.
func (p *peer) acknowledgeAll(over <-chan struct{}) {
	for {
		select {
		case m := <-p.got:
			if m.Type == coap.Confirmable && !p.reject(m) {
				p.send(&coap.Message{Type: coap.Acknowledgement, ID: m.ID})
			}
		case <-over:
			return
		}
	}
}
