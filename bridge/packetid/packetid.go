// Package packetid keeps the packet identifiers of an MQTT broker's clients apart
// from the broker's own.
//
// Either side chooses identifiers for what it sends (MQTT 3.1.1, Section 2.3.1: both
// may use one at the same time). The broker library looks up a client's among its
// own: a SUBSCRIBE under the identifier of a message that the client has not
// acknowledged is refused, an UNSUBSCRIBE does nothing, and a PUBLISH has that
// message forgotten and its place in the send window lost. Both sides count up
// from 1, so it does happen: to a member that follows its path in a key tree, for
// one, while rekeys come in.
package packetid

import (
	"math"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Hook gives what a client sends under an identifier of the broker's another one
// until it is answered. The zero value is ready.
type Hook struct {
	mqtt.HookBase
	lent sync.Map // of *mqtt.Client: loan
}

// loan is the packet that a client waits for an answer to. The broker answers one
// before it reads the next, so there is one at most.
type loan struct {
	own, lent uint16
	answer    byte // type of the packet
}

// ID implements mqtt.Hook.
func (*Hook) ID() string { return "packet identifiers" }

// Provides implements mqtt.Hook.
func (*Hook) Provides(b byte) bool {
	return b == mqtt.OnPacketRead || b == mqtt.OnPacketEncode || b == mqtt.OnDisconnect
}

// OnPacketRead implements mqtt.Hook.
func (h *Hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	var answer byte
	switch {
	case pk.FixedHeader.Type == packets.Subscribe:
		answer = packets.Suback
	case pk.FixedHeader.Type == packets.Unsubscribe:
		answer = packets.Unsuback
	case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 1:
		answer = packets.Puback
	default:
		return pk, nil
	}
	h.lent.Delete(cl) // what was refused without an answer
	if _, used := cl.State.Inflight.Get(pk.PacketID); !used || pk.PacketID == 0 {
		return pk, nil
	}
	// From above: the broker counts from below.
	for id := uint16(math.MaxUint16); id > 0; id-- {
		if _, used := cl.State.Inflight.Get(id); !used {
			h.lent.Store(cl, loan{own: pk.PacketID, lent: id, answer: answer})
			pk.PacketID = id
			break
		}
	}
	return pk, nil
}

// OnPacketEncode implements mqtt.Hook.
func (h *Hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	switch pk.FixedHeader.Type {
	case packets.Suback, packets.Unsuback, packets.Puback:
	default:
		return pk
	}
	v, ok := h.lent.Load(cl)
	if !ok {
		return pk
	}
	if l := v.(loan); l.answer == pk.FixedHeader.Type && l.lent == pk.PacketID {
		h.lent.Delete(cl)
		pk.PacketID = l.own
	}
	return pk
}

// OnDisconnect implements mqtt.Hook.
func (h *Hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) { h.lent.Delete(cl) }
