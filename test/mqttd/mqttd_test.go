package mqttd

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

const patience = 20 * time.Second

func connect(t *testing.T, addr, id string) paho.Client {
	t.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID(id).SetAutoReconnect(false))
	wait(t, c.Connect())
	t.Cleanup(func() { c.Disconnect(0) })
	return c
}

func wait(t *testing.T, tok paho.Token) {
	t.Helper()
	if !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Errorf("broker: %v", tok.Error())
	}
}

// Whoever subscribes with a wildcard gets what is retained, and may do so while
// others retain and delete. The race detector judges the second half.
func TestRetainedByWildcard(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	Start(t, l, new(Open))
	addr := l.Addr().String()

	publisher := connect(t, addr, "publisher")
	wait(t, publisher.Publish("gg/a/presence", 1, true, "here"))
	wait(t, publisher.Publish("gg/b/presence", 1, true, "here"))
	wait(t, publisher.Publish("gg/b/presence", 1, true, "")) // deleted
	wait(t, publisher.Publish("gg/c/rekey", 1, true, "of another filter"))

	gateway := connect(t, addr, "gateway")
	got := make(chan paho.Message, 8)
	wait(t, gateway.Subscribe("gg/+/presence", 1, func(_ paho.Client, m paho.Message) { got <- m }))
	wait(t, publisher.Publish("gg/d/presence", 1, false, "live"))
	for _, want := range []struct {
		topic    string
		retained bool
	}{{"gg/a/presence", true}, {"gg/d/presence", false}} {
		select {
		case m := <-got:
			if m.Topic() != want.topic || m.Retained() != want.retained {
				t.Errorf("got %s, retained %v; want %v", m.Topic(), m.Retained(), want)
			}
		case <-time.After(patience):
			t.Fatalf("nothing from %s", want.topic)
		}
	}

	var wg sync.WaitGroup
	for n := range 4 {
		c := connect(t, addr, fmt.Sprint("client", n))
		wg.Go(func() {
			for i := range 100 {
				if n%2 == 0 {
					payload := [...]string{"", "here"}[i%2]
					wait(t, c.Publish(fmt.Sprintf("gg/x%d/presence", i/2%4), 1, true, payload))
				} else {
					wait(t, c.Subscribe("gg/+/presence", 1, func(paho.Client, paho.Message) {}))
				}
			}
		})
	}
	wg.Wait()
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/+/c", "a/b/c", true},
		{"a/+/c", "a/b/d", false},
		{"a/+", "a/b/c", false},
		{"a/+/c", "a/b", false},
		{"a/#", "a/b/c", true},
		{"a/#", "a", true},
		{"#", "a/b", true},
		{"#", "$SYS/x", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
		{"a/+", "a/", true},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.filter, c.topic, got)
		}
	}
}
