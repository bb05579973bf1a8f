package endpoint

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// sink is a socket from which nothing comes, and that takes everything.
type sink struct{ over chan struct{} }

func (s sink) Read([]Datagram) (int, error)     { <-s.over; return 0, net.ErrClosed }
func (s sink) Write(ds []Datagram) (int, error) { return len(ds), nil }
func (s sink) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (s sink) Close() error                     { close(s.over); return nil }

// TestSteady: once its memory has grown the endpoint allocates nothing for a
// datagram that it reads or writes: a ping and its Reset, an acknowledgement that
// nobody waits for, a notification that is not confirmable.
func TestSteady(t *testing.T) {
	e := New(sink{make(chan struct{})}, Config{Server: nobody{}, Keys: nobody{}})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- e.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}()
	from := netip.MustParseAddrPort("192.0.2.1:1000")
	e.mu.Lock()
	s := e.newSession(coap.DTLSPSK, from)
	s.suite, s.cid = record.PSKCCM8, 7
	s.read.Key[0], s.write.Key[0] = 1, 2
	e.register(s)
	e.mu.Unlock()
	client, err := record.NewCipher(s.suite, &record.Keys{Key: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	seq := uint64(0)
	out := make([]byte, 0, 256)
	cid := []byte{0, 0, 0, 0, 0, 0, 0, 7}
	send := func(b []byte) {
		seq++
		out = client.Seal(out[:0], record.ApplicationData, epoch, seq, cid, b)
		e.out.throttle()
		e.arrive(Datagram{Addr: from, B: out})
	}
	note := &coap.Message{Type: coap.NonConfirmable, Code: coap.Content, Token: []byte{1}, Payload: make([]byte, 120)}
	note.Options.SetUint(coap.ObserveOption, 5)
	waiting := func() int {
		e.out.mu.Lock()
		defer e.out.mu.Unlock()
		return len(e.out.queue)
	}
	var told int
	done := func(error) { told++ }
	for name, c := range map[string]struct {
		most float64
		do   func()
	}{
		"ping":            {0, func() { send([]byte{0x40, 0, 1, 2}) }},
		"acknowledgement": {0, func() { send([]byte{0x60, 0, 1, 2}) }},
		// What tells the sender is a closure.
		"notification": {1, func() { s.Send(note, done) }},
	} {
		// A burst beyond the spare buffers allocates some; a steady stream does not.
		steady := func() {
			c.do()
			for waiting() > outboxSpare/4 {
				runtime.Gosched()
			}
		}
		for range 3 * outboxPause {
			steady()
		}
		if n := testing.AllocsPerRun(1000, steady); n > c.most {
			t.Errorf("%s: %v allocations, not %v", name, n, c.most)
		}
	}
	if told == 0 || seq == 0 {
		t.Error("nothing was done")
	}
}
