package endpoint

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// nobody answers nothing.
type nobody struct{}

func (nobody) Handle(_ context.Context, _ coap.Link, m *coap.Message) *coap.Message {
	return &coap.Message{Code: coap.Content, Token: m.Token, Payload: m.Payload}
}
func (nobody) Closed(coap.LinkID)                          {}
func (nobody) Cancel(coap.LinkID, []byte)                  {}
func (nobody) PSK(context.Context, []byte) ([]byte, error) { return nil, ErrUnknown }
func (nobody) Admit(context.Context, Proof) (coap.Subject, error) {
	return coap.Subject{}, nil
}

// FuzzMessages: whatever comes over UDP, or inside a session, does no harm.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{0x40, 0, 1, 2}, []byte{0x44, 1, 0, 1, 1, 2, 3, 4})
	f.Add([]byte{0x61, 0x45, 1, 2, 9}, []byte{0x70, 0, 1, 2})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		e := New(newWire(1).open("198.51.100.1:5684"), Config{Server: nobody{}})
		from := netip.MustParseAddrPort("192.0.2.1:1000")
		for _, x := range [][]byte{a, b, a} {
			e.arrive(Datagram{Addr: from, B: x})
		}
		e.mu.Lock()
		s := e.newSession(coap.DTLSPSK, netip.MustParseAddrPort("192.0.2.2:1000"))
		s.suite = record.PSKCCM8
		e.register(s)
		if len(a)%2 == 0 {
			s.rare().probe = &probe{before: s.addr()}
		}
		for _, x := range [][]byte{b, a, b} {
			s.message(x, s.addr(), time.Now())
		}
		s.alerted(a)
		e.mu.Unlock()
		e.stop()
		e.crew.end()
		e.goodbye()
	})
}

// arrive has a datagram read.
func (e *Endpoint) arrive(d Datagram) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lately = time.Now()
	e.datagram(d, e.lately)
}

// FuzzRecords: whatever comes to the DTLS port does no harm.
func FuzzRecords(f *testing.F) {
	f.Add(clientHello(1), []byte{25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 'x'})
	f.Add([]byte{22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		e := New(newWire(1).open("198.51.100.1:5684"), Config{Server: nobody{}, Keys: nobody{}, MaxHandshakes: 1})
		from := netip.MustParseAddrPort("192.0.2.1:1000")
		e.mu.Lock()
		s := e.newSession(coap.DTLSPSK, from)
		s.suite = record.PSKCCM8
		e.register(s)
		e.mu.Unlock()
		for _, x := range [][]byte{a, b, a} {
			e.arrive(Datagram{Addr: from, B: x})
			e.arrive(Datagram{Addr: netip.MustParseAddrPort("192.0.2.3:1000"), B: x})
		}
		e.stop()
		e.endHandshakes()
		e.crew.end()
		e.goodbye()
	})
}

// FuzzHandshake: whatever comes to a handshake of our own does no harm, and leaves
// nothing when it is over.
func FuzzHandshake(f *testing.F) {
	raw := rawKey(f)
	hello := dtls12.Connect(&dtls12.Config{Key: rawKey(f), CID: []byte{}}, time.Unix(1, 0)).Output()[0]
	f.Add(hello, []byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 14, 11, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 2, 1, 2}, []byte{})
	f.Add(clientHello(1), []byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 14, 16, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0}, []byte{20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 1})
	f.Fuzz(func(t *testing.T, first, a, b []byte) {
		e := New(newWire(1).open("198.51.100.1:5684"), Config{
			Server: nobody{}, Keys: nobody{}, RawKey: func() *dtls12.Key { return raw }, OwnPSK: true, MaxHandshakes: 2,
		})
		from := netip.MustParseAddrPort("192.0.2.1:1000")
		e.mu.Lock()
		if r, _, err := record.Next(first, 0); err == nil {
			if hello := dtls12.ReadClientHello(&r); hello != nil {
				e.beginOwn(hello, from) // as if it had its cookie
			}
		}
		e.mu.Unlock()
		for _, x := range [][]byte{a, b, first, a} {
			e.arrive(Datagram{Addr: from, B: x})
			e.arrive(Datagram{Addr: netip.MustParseAddrPort("192.0.2.3:1000"), B: x})
		}
		e.stop()
		e.endHandshakes()
		e.crew.end()
		e.goodbye()
		if len(e.own.byAddr)+len(e.own.byCID) != 0 {
			t.Fatal("a handshake is left")
		}
	})
}
