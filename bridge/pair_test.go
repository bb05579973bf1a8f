//go:build postgres

package bridge

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

// openPair opens one PostgreSQL schema for two gateways.
func openPair(t *testing.T) (pair [2]*store.Store) {
	t.Helper()
	dsn, err := pgtest.DSN(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if dsn == "" {
		t.Fatalf("%s names no PostgreSQL server to test with", pgtest.Env)
	}
	for i := range pair {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(context.Background(), store.Options{
			Dir: dir, DSN: dsn, SealKey: storetest.Key(), Migrations: []store.Migrations{Migrations()},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		pair[i] = s
	}
	return pair
}

// A member that joined at one gateway is connected to the broker of the other:
// it gets rekeys there, and its eviction at the first ends its session.
func TestPairBrokers(t *testing.T) {
	m, pair := newManager(t), openPair(t)
	one, _ := running(t, pair[0], m, nil, nil)
	two, _ := running(t, pair[1], m, nil, nil)
	mgt := m.join(t, one, "out", wantMQTT)
	mgt.Broker = two.BrokerURI()
	d := connect(t, mgt)
	num := m.rekey(t, one)
	if _, got := d.open(m.key.Public(), d.next()); got != num {
		t.Fatalf("version %d, want %d", got, num)
	}
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	if e := entry(t, one, "out"); e.Confirmed != num {
		t.Errorf("confirmed to the other gateway: %+v", e)
	}
	m.end(t, one, "out", groupcomm.EventEvicted)
	select {
	case <-d.lost:
	case <-time.After(15 * time.Second):
		t.Fatal("the session of the evicted member goes on at the other gateway")
	}
	for _, b := range []*Bridge{one, two} {
		eventually(t, "retained message deleted", func() bool {
			_, ok := b.broker.server.Topics.Retained.Get(mgt.Topic)
			return !ok
		})
	}
}

// One gateway serves a common broker; when it is gone the other does, within
// seconds, and nothing of what the first had rendered is rendered anew.
func TestPairCommonBroker(t *testing.T) {
	m, pair := newManager(t), openPair(t)
	l := loopbackListener(t, "127.0.0.1:0")
	operatorBroker(t, l)
	to := func(c *Config) { external(c, "mqtt://"+l.Addr().String()) }
	one, stop := running(t, pair[0], m, nil, to)
	d := connect(t, m.join(t, one, "n1", wantMQTT))
	num := m.rekey(t, one)
	d.next()
	two, _ := running(t, pair[1], m, nil, to)
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	eventually(t, "confirmed", func() bool { return entry(t, two, "n1").Confirmed == num })
	stop()
	began := time.Now()
	num = m.rekey(t, two)
	if _, got := d.open(m.key.Public(), d.next()); got != num {
		t.Errorf("version %d, want %d", got, num)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("taken over after %v", took)
	}
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	eventually(t, "confirmed to the other", func() bool { return entry(t, two, "n1").Confirmed == num })
}

// Members that register at both gateways at once are with one of them in the end,
// never with none; and those that register at one after the other, however fast, with
// the later.
func TestPairLeases(t *testing.T) {
	m, pair := newManager(t), openPair(t)
	var both [2]*Bridge
	for i := range both {
		both[i], _ = running(t, pair[i], m, nil, nil)
	}
	const members = 60
	at := func(b *Bridge, node string) {
		b.Reached(testGroup, node, coap.Peer{Link: coap.LinkID("link-" + node), Subject: subject(node)}, "", true)
	}
	var wg sync.WaitGroup
	for i := range members {
		node := fmt.Sprint("n", i)
		m.join(t, both[0], node, nil)
		wg.Go(func() {
			for turn := range 3 {
				switch i % 2 {
				case 0:
					var once sync.WaitGroup
					for _, b := range both {
						once.Go(func() { at(b, node) })
					}
					once.Wait()
				default:
					at(both[(i/2+turn)%2], node)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "every member is with one gateway", func() bool {
		for i := range members {
			k := member{testGroup, fmt.Sprint("n", i)}
			var here [2]bool
			for j, b := range both {
				here[j] = len(b.observers.links(k)) == 1
				if here[j] != b.leases.has(k) {
					return false
				}
			}
			if here[0] == here[1] || i%2 == 1 && !here[(i/2)%2] {
				return false
			}
		}
		return true
	})
}
