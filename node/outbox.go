package node

import (
	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// outbox is where the MQTT library keeps messages until the broker acknowledges
// them. What it takes from there after it connected again it marks as a duplicate
// (MQTT 3.1.1, Section 3.3.1.1) while the same message may be on its way for the
// first time: each has to have a copy of its own.
type outbox struct{ mqtt.Store }

func newOutbox() mqtt.Store { return outbox{mqtt.NewMemoryStore()} }

// Put keeps a copy.
func (o outbox) Put(key string, m packets.ControlPacket) { o.Store.Put(key, copied(m)) }

// Get gives a copy; nil when there is none.
func (o outbox) Get(key string) packets.ControlPacket { return copied(o.Store.Get(key)) }

func copied(m packets.ControlPacket) packets.ControlPacket {
	if p, ok := m.(*packets.PublishPacket); ok {
		c := *p
		return &c
	}
	return m
}
