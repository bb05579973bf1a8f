package bridge

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// wiretap records everything that passes the embedded broker.
type wiretap struct {
	mu  sync.Mutex
	got map[string][][]byte
}

func (w *wiretap) all() (out [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ps := range w.got {
		for _, p := range ps {
			if len(p) > 0 { // an empty message deletes a retained one
				out = append(out, p)
			}
		}
	}
	return out
}

func (w *wiretap) has(topic string, payload []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.got[topic] {
		if bytes.Equal(p, payload) {
			return true
		}
	}
	return false
}

// tap subscribes to topics with the gateway's own credential. It names them:
// the library's search for retained messages by wildcard is not safe beside
// publications, and nothing but tests would use it.
func (b *Bridge) tap(t testing.TB, topics ...string) *wiretap {
	t.Helper()
	w := &wiretap{got: map[string][][]byte{}}
	o := paho.NewClientOptions().AddBroker("tcp://embedded").SetClientID("tap").SetProtocolVersion(4).
		SetUsername(internalUser).SetPassword(b.broker.secret()).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second).
		SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return b.broker.dial(t.Context()) })
	c := paho.NewClient(o)
	if err := wait(c.Connect()); err != nil {
		t.Fatalf("tap: %v", err)
	}
	t.Cleanup(func() { c.Disconnect(50) })
	filters := map[string]byte{}
	for _, topic := range topics {
		filters[topic] = 1
	}
	err := wait(c.SubscribeMultiple(filters, func(_ paho.Client, m paho.Message) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got[m.Topic()] = append(w.got[m.Topic()], bytes.Clone(m.Payload()))
	}))
	if err != nil {
		t.Fatalf("tap: %v", err)
	}
	return w
}
