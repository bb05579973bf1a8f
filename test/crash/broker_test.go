package crash

import (
	"net"
	"strings"
	"sync"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/test/mqttd"
)

// topicPrefix is the first part of the topics that the gateway publishes to.
const topicPrefix = "crash"

// tappedBroker is the operator's broker. It outlives the gateway, admits
// everybody and shows the ledger every rekey message that passes.
type tappedBroker struct {
	mqttd.Open
	addr   string
	ledger *ledger

	mu       sync.Mutex
	retained map[string]bool // rekey topics that have a retained message
	branches map[string]bool // topics of key trees that have one
}

func startBroker(t testing.TB, l *ledger) *tappedBroker {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &tappedBroker{addr: listener.Addr().String(), ledger: l, retained: map[string]bool{}, branches: map[string]bool{}}
	mqttd.Start(t, listener, b)
	return b
}

// Provides implements mqtt.Hook.
func (b *tappedBroker) Provides(call byte) bool {
	return call == mqtt.OnPublish || b.Open.Provides(call)
}

// OnPublish sees a message before anybody gets it.
func (b *tappedBroker) OnPublish(_ *mqtt.Client, p packets.Packet) (packets.Packet, error) {
	if !strings.HasPrefix(p.TopicName, topicPrefix+"/") {
		return p, nil
	}
	topics := b.retained
	switch {
	case strings.Contains(p.TopicName, "/tree/"):
		topics = b.branches
	case !strings.HasSuffix(p.TopicName, "/rekey"):
		return p, nil
	}
	if len(p.Payload) > 0 { // an empty one deletes what is retained
		b.ledger.published(p.Payload)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p.Payload) == 0 {
		delete(topics, p.TopicName)
	} else if p.FixedHeader.Retain {
		topics[p.TopicName] = true
	}
	return p, nil
}

// retainedBranches counts the nodes of key trees for which a message waits.
func (b *tappedBroker) retainedBranches() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.branches)
}

// retainedTopics counts the members for whom a message waits.
func (b *tappedBroker) retainedTopics() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.retained)
}
