//go:build interop

package broker

import (
	"bytes"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// watch is what a subscription brought, by topic.
type watch struct {
	mu  sync.Mutex
	got map[string][]paho.Message
}

func subscribe(t *testing.T, c paho.Client, filter string) *watch {
	t.Helper()
	w := &watch{got: map[string][]paho.Message{}}
	tok := c.Subscribe(filter, 1, func(_ paho.Client, m paho.Message) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got[m.Topic()] = append(w.got[m.Topic()], m)
	})
	if !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("subscribe to %s: %v", filter, tok.Error())
	}
	return w
}

func publish(t *testing.T, c paho.Client, topic, value string) {
	t.Helper()
	if tok := c.Publish(topic, 1, true, value); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("publish: %v", tok.Error())
	}
}

// of returns what came under a topic.
func (w *watch) of(topic string) []paho.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got[topic]
}

// topics returns those that something came under.
func (w *watch) topics() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for topic := range w.got {
		out = append(out, topic)
	}
	return out
}

// TestSleeper: what a member slept through is retained at the broker, the newest
// only, also after the broker was killed, and another member cannot put something
// else there. The member wakes and gets the keys; when it leaves, nothing of it is
// left.
func TestSleeper(t *testing.T) { each(t, sleeper) }

func sleeper(t *testing.T, broker *server) {
	g := newGateway(t, broker)
	asleep := g.admit(0)
	live := subscribe(t, broker.client(adminID), "groupgate/+/rekey")
	g.rekey()
	eventually(t, "a rekey is published", func() bool { return len(live.topics()) == 1 })
	topic := live.topics()[0]
	version := g.rekey()
	eventually(t, "the next rekey is published", func() bool { return len(live.of(topic)) == 2 })
	newest := live.of(topic)[1].Payload()
	if bytes.Equal(newest, live.of(topic)[0].Payload()) {
		t.Fatal("the same message came twice")
	}
	retained := func(what string) {
		t.Helper()
		c := broker.client(memberID)
		defer c.Disconnect(0)
		late := subscribe(t, c, topic)
		eventually(t, what, func() bool { return len(late.of(topic)) > 0 })
		if m := late.of(topic)[0]; !m.Retained() || !bytes.Equal(m.Payload(), newest) {
			t.Errorf("%s: retained %v, the newest %v", what, m.Retained(), bytes.Equal(m.Payload(), newest))
		}
	}
	retained("the newest is retained")

	intruder := broker.client(memberID)
	intruder.Publish(topic, 1, true, "of another member").WaitTimeout(time.Second) // refused as the broker pleases
	intruder.Disconnect(100)
	retained("the newest is still there")

	admin := broker.client(adminID)
	publish(t, admin, "groupgate/mark/rekey", "before")
	admin.Disconnect(100)
	since := time.Now()
	broker.kill()
	broker.start()
	eventually(t, "the gateway is back", func() bool {
		for _, m := range g.delivery(true).Ledger {
			for _, c := range m.Channels {
				if c.Channel == "mqtt" && c.Result == "relayed" && c.At.After(since) {
					return true
				}
			}
		}
		return false
	})
	retained("the newest is there after the broker was killed")
	admin = broker.client(adminID)
	if broker.product.keeps { // what the gateway does not publish again
		mark := subscribe(t, admin, "groupgate/mark/rekey")
		eventually(t, "the mark is there after the broker was killed", func() bool { return len(mark.of("groupgate/mark/rekey")) > 0 })
	}

	gone := subscribe(t, broker.client(adminID), topic)
	g.wake(asleep)
	eventually(t, "the sleeper has the newest", func() bool {
		d := g.delivery(false)
		s, ok := asleep.State()
		return ok && s.Installed && s.Version == version && d.Version == version && d.Delivered == 1
	})
	if err := asleep.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was retained is deleted", func() bool {
		m := gone.of(topic)
		return len(m) > 0 && len(m[len(m)-1].Payload()) == 0
	})
	publish(t, admin, "groupgate/mark/rekey", "after") // so that there is something to come
	if broker.product.literal {
		retains(t, broker.client(adminID), topic, "groupgate/mark/rekey")
		return
	}
	left := subscribe(t, admin, "groupgate/+/rekey")
	eventually(t, "the mark", func() bool { return len(left.topics()) > 0 })
	if topics := left.topics(); len(topics) != 1 {
		t.Errorf("retained: %q", topics)
	}
}

// retains checks that nothing is retained under one topic and something under another.
func retains(t *testing.T, c paho.Client, empty, full string) {
	t.Helper()
	nothing, mark := subscribe(t, c, empty), subscribe(t, c, full)
	eventually(t, "the mark", func() bool { return len(mark.of(full)) > 0 })
	if n := len(nothing.of(empty)); n > 0 {
		t.Errorf("retained under %s: %d", empty, n)
	}
}
