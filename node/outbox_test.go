package node

import (
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// TestOutbox: a message that is marked as a duplicate is not the one that is sent.
func TestOutbox(t *testing.T) {
	o := newOutbox()
	o.Open()
	sent := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	sent.Payload = []byte("x")
	o.Put("o.1", sent)
	for range 2 {
		again, ok := o.Get("o.1").(*packets.PublishPacket)
		if !ok || again.Dup || string(again.Payload) != "x" {
			t.Fatalf("%+v", again)
		}
		again.Dup = true
	}
	if sent.Dup {
		t.Error("the message under way is marked")
	}
	if m := o.Get("o.2"); m != nil {
		t.Errorf("%+v", m)
	}
	o.Put("o.2", packets.NewControlPacket(packets.Pubrel))
	if _, ok := o.Get("o.2").(*packets.PubrelPacket); !ok {
		t.Error("another packet is not kept")
	}
}
