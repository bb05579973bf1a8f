package packetid

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	broker "github.com/mochi-mqtt/server/v2/packets"
)

const patience = 20 * time.Second

// open lets everybody do everything.
type open struct{ mqtt.HookBase }

func (open) ID() string                                             { return "open" }
func (open) Provides(b byte) bool                                   { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }
func (open) OnConnectAuthenticate(*mqtt.Client, broker.Packet) bool { return true }
func (open) OnACLCheck(*mqtt.Client, string, bool) bool             { return true }

// peer is a client that acknowledges nothing by itself.
type peer struct {
	*testing.T
	net.Conn
}

func (p peer) send(pk packets.ControlPacket) {
	p.Helper()
	if err := pk.Write(p.Conn); err != nil {
		p.Fatal(err)
	}
}

// next reads a packet of a type; others before it are an error.
func next[P packets.ControlPacket](p peer) P {
	p.Helper()
	_ = p.SetReadDeadline(time.Now().Add(patience))
	pk, err := packets.ReadPacket(p.Conn)
	if err != nil {
		p.Fatal(err)
	}
	got, ok := pk.(P)
	if !ok {
		p.Fatalf("got %v", pk)
	}
	return got
}

func (p peer) subscribe(id uint16, topic string) (code byte) {
	p.Helper()
	s := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	s.MessageID, s.Topics, s.Qoss = id, []string{topic}, []byte{1}
	p.send(s)
	ack := next[*packets.SubackPacket](p)
	if ack.MessageID != id {
		p.Errorf("SUBACK of %d, want %d", ack.MessageID, id)
	}
	return ack.ReturnCodes[0]
}

// While a client owes the acknowledgement of message 1, it subscribes, publishes and
// unsubscribes under 1: all of it is done and answered under 1, and the message is
// still owed.
func TestBothSidesUseOne(t *testing.T) {
	t.Parallel()
	s := mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	hook := new(Hook)
	for _, h := range []mqtt.Hook{new(open), hook} {
		if err := s.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("tcp", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	publish := func(topic string) {
		t.Helper()
		if err := s.Publish(topic, []byte(topic), false, 1); err != nil {
			t.Fatal(err)
		}
	}

	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := peer{t, conn}
	hello := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	hello.ProtocolName, hello.ProtocolVersion, hello.ClientIdentifier, hello.CleanSession = "MQTT", 4, "member", true
	p.send(hello)
	next[*packets.ConnackPacket](p)
	if code := p.subscribe(7, "one"); code != 1 {
		t.Fatalf("refused: %#x", code)
	}
	publish("one")
	owed := next[*packets.PublishPacket](p)

	if code := p.subscribe(owed.MessageID, "two"); code != 1 {
		t.Errorf("SUBSCRIBE under the identifier of a message: %#x", code)
	}
	publish("two")
	second := next[*packets.PublishPacket](p)
	if second.TopicName != "two" || second.MessageID == owed.MessageID {
		t.Errorf("got %v", second)
	}

	own := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	own.MessageID, own.Qos, own.TopicName = owed.MessageID, 1, "three"
	p.send(own)
	if ack := next[*packets.PubackPacket](p); ack.MessageID != owed.MessageID {
		t.Errorf("PUBACK of %d, want %d", ack.MessageID, owed.MessageID)
	}

	leave := packets.NewControlPacket(packets.Unsubscribe).(*packets.UnsubscribePacket)
	leave.MessageID, leave.Topics = second.MessageID, []string{"two"}
	p.send(leave)
	if ack := next[*packets.UnsubackPacket](p); ack.MessageID != second.MessageID {
		t.Errorf("UNSUBACK of %d, want %d", ack.MessageID, second.MessageID)
	}
	publish("two") // to nobody

	cl, ok := s.Clients.Get("member")
	if !ok || cl.State.Inflight.Len() != 2 {
		t.Fatalf("messages not acknowledged: %d, want 2", cl.State.Inflight.Len())
	}
	for _, m := range []*packets.PublishPacket{owed, second} {
		ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
		ack.MessageID = m.MessageID
		p.send(ack)
	}
	p.send(packets.NewControlPacket(packets.Pingreq)) // answered after both
	next[*packets.PingrespPacket](p)
	if n := cl.State.Inflight.Len(); n != 0 {
		t.Errorf("%d messages not acknowledged after their acknowledgements", n)
	}
	hook.lent.Range(func(any, any) bool { t.Error("an identifier is still lent"); return false })
}
