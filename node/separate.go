package node

import (
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/options/config"
	"github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/seed4911071e/groupgate/coap"
)

// keptSeparates is how many first blocks are known by their message identifiers:
// more than come within the time in which one is sent again.
const keptSeparates = 16

// separates mends how go-coap takes the first block of a body in a confirmable
// message of its own: a response that took long, or a notification. It would put
// the request for the next block into the acknowledgement, which is no message of
// CoAP (RFC 7252, Section 4.3, Table 1), and servers ignore it.
type separates struct {
	wire  io.Writer // takes a message; go-coap itself would make another of it
	mu    sync.Mutex
	known []int32 // message identifiers, the newest last

	further atomic.Pointer[further] // nil: one response to a request
}

// first says whether a first block was not there before.
func (s *separates) first(id int32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.known, id) {
		return false
	}
	if s.known = append(s.known, id); len(s.known) > keptSeparates {
		s.known = s.known[1:]
	}
	return true
}

func (s *separates) acknowledge(m *pool.Message) {
	ack := coap.Message{Type: coap.Acknowledgement, ID: uint16(m.MessageID())}
	if b, err := ack.MarshalBinary(); err == nil {
		_, _ = s.wire.Write(b) // else it comes again
	}
}

// receive is told of every message: a first block is acknowledged here, and goes on
// as one that was non-confirmable (RFC 7252, Section 5.2.2).
func (s *separates) receive(m *pool.Message, cc *client.Conn, handle config.HandlerFunc[*client.Conn]) {
	if f := s.further.Load(); f != nil && s.take(f, m) {
		return
	}
	if block, err := m.GetOptionUint32(message.Block2); err == nil && block&8 != 0 &&
		m.Type() == message.Confirmable && coap.Code(m.Code()).IsResponse() {
		s.acknowledge(m)
		if !s.first(m.MessageID()) {
			return
		}
		m.SetType(message.NonConfirmable)
	}
	cc.ProcessReceivedMessageWithHandler(m, handle)
}
