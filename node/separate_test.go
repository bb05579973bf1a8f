package node

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// slowServer is a server whose bodies come late, in blocks: each first block in a
// confirmable message of its own, twice, as if an acknowledgement was lost.
type slowServer struct {
	conn  net.PacketConn
	body  []byte
	wrong chan string // what a server cannot understand
	seen  map[uint16]bool
}

const slowBlock = 1024

func (s *slowServer) send(to net.Addr, m *coap.Message) {
	if b, err := m.MarshalBinary(); err == nil {
		_, _ = s.conn.WriteTo(b, to)
	}
}

// part is block num of the body.
func (s *slowServer) part(m *coap.Message, num uint32) {
	off := int(num) * slowBlock
	end := min(off+slowBlock, len(s.body))
	m.Code, m.Payload = coap.Content, s.body[off:end]
	m.Options.SetBlock(coap.Block2, coap.Block{Num: num, More: end < len(s.body), SZX: 6})
}

func (s *slowServer) run() {
	buf := make([]byte, 2048)
	for id := uint16(4000); ; id++ {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		m, err := coap.DecodeMessage(bytes.Clone(buf[:n]))
		if err != nil {
			s.wrong <- err.Error()
			continue
		}
		switch block, _ := m.Options.Block(coap.Block2); {
		case m.Type == coap.Acknowledgement && m.Code == coap.Empty:
			continue
		case !m.Code.IsRequest() || m.Type != coap.Confirmable:
			s.wrong <- m.Type.String() + " " + m.Code.String()
		case block != nil && block.Num > 0:
			r := &coap.Message{Type: coap.Acknowledgement, ID: m.ID, Token: m.Token}
			s.part(r, block.Num)
			s.send(from, r)
		case s.seen[m.ID]:
		default:
			s.seen[m.ID] = true
			r := &coap.Message{Type: coap.Acknowledgement, ID: m.ID}
			_, observe := m.Options.Uint(coap.ObserveOption)
			if observe { // what comes first is small
				r.Token, r.Code, r.Payload = m.Token, coap.Content, []byte("first")
				r.Options.SetUint(coap.ObserveOption, 1)
			}
			s.send(from, r)
			late := &coap.Message{Type: coap.Confirmable, ID: id, Token: m.Token}
			if observe {
				late.Options.SetUint(coap.ObserveOption, 2)
			}
			s.part(late, 0)
			s.send(from, late)
			s.send(from, late)
		}
	}
}

// TestSeparateBlocks: a response that takes long and a notification come whole when
// they are larger than a block.
func TestSeparateBlocks(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slowServer{conn: conn, body: bytes.Repeat([]byte("groupgate "), 250), wrong: make(chan string, 64), seen: map[uint16]bool{}}
	over := make(chan struct{})
	go func() { defer close(over); s.run() }()
	defer func() { _ = conn.Close(); <-over }()
	tr, err := DialUDP(t.Context(), conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	req := &coap.Request{Code: coap.POST, Payload: []byte("ask")}
	req.Options.SetPath("slow")
	r, err := tr.Do(t.Context(), req)
	if err != nil || !bytes.Equal(r.Payload, s.body) {
		t.Errorf("a response: %v", err)
	}
	got := make(chan []byte, 8)
	watch := &coap.Request{Code: coap.GET}
	watch.Options.SetPath("slow")
	if _, err := tr.Observe(t.Context(), watch, func(r *coap.Response) { got <- r.Payload }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", string(s.body)} {
		select {
		case b := <-got:
			if string(b) != want {
				t.Errorf("%d bytes, want %d", len(b), len(want))
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("waited in vain for %d bytes", len(want))
		}
	}
	select {
	case w := <-s.wrong:
		t.Errorf("the node sent what is no message: %s", w)
	default:
	}
}
