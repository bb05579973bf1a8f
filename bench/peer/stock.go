package peer

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	piondtls "github.com/pion/dtls/v3"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/dtls/server"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"
)

// Values of the stock server: its defaults, but for what would end sleeping
// clients; tuned, what serves it best under load. More garbage between collections
// (GOGC) does not make it faster.
const (
	stockIdle = 24 * time.Hour // its default is 16 s
	// stockWriters is how many confirmable notifications are under way at a time:
	// go-coap blocks a goroutine for each until it is acknowledged, and a
	// goroutine for each observer costs it more. More acknowledgements at once than
	// these overrun the buffer of its socket, and it looks for what to repeat only
	// every 4 s.
	stockWriters = 128
)

// stock is a go-coap server over pion/dtls with a list of observers, which
// go-coap does not have.
type stock struct {
	l   net.Listener
	srv *server.Server
	// tuned has it without blockwise transfer, which copies each message, and with
	// stockWriters; otherwise each observer has a goroutine.
	tuned bool

	mu        sync.Mutex
	observers map[mux.Conn]*observer
}

type observer struct {
	token message.Token
	seq   uint32
}

// listener has the listener of pion for go-coap.
type listener struct{ net.Listener }

func (l listener) AcceptWithContext(ctx context.Context) (net.Conn, error) {
	c, err := l.Accept()
	if err != nil && ctx.Err() != nil {
		return nil, coapnet.ErrListenerIsClosed
	}
	return c, err
}

func newStock(tuned bool) (Server, error) {
	l, err := piondtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
		piondtls.WithPSK(func([]byte) ([]byte, error) { return Key, nil }),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		piondtls.WithExtendedMasterSecret(piondtls.RequireExtendedMasterSecret),
		piondtls.WithConnectionIDGenerator(piondtls.RandomCIDGenerator(8)),
	)
	if err != nil {
		return nil, err
	}
	s := &stock{l: l, tuned: tuned, observers: make(map[mux.Conn]*observer)}
	opts := []server.Option{
		options.WithMux(mux.HandlerFunc(s.serve)), options.WithErrors(func(error) {}),
		options.WithInactivityMonitor(stockIdle, func(cc *udpclient.Conn) { _ = cc.Close() }),
	}
	if tuned {
		opts = append(opts, options.WithBlockwise(false, 0, 0))
	}
	s.srv = coapdtls.NewServer(opts...)
	go func() { _ = s.srv.Serve(listener{l}) }() // until Close
	return s, nil
}

func (s *stock) Addr() netip.AddrPort { return netip.MustParseAddrPort(s.l.Addr().String()) }

func (s *stock) Close() {
	s.srv.Stop()
	_ = s.l.Close()
}

func (s *stock) serve(w mux.ResponseWriter, r *mux.Message) {
	var err error // of a client that is gone: the nodes count what they miss
	switch r.Code() {
	case codes.GET:
		o := &observer{token: bytes.Clone(r.Token()), seq: 2}
		if v, e := r.Options().Observe(); e == nil && v == 0 {
			s.mu.Lock()
			s.observers[w.Conn()] = o
			s.mu.Unlock()
			w.Conn().AddOnClose(func() {
				s.mu.Lock()
				delete(s.observers, w.Conn())
				s.mu.Unlock()
			})
			err = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader([]byte("state")), message.Option{ID: message.Observe, Value: []byte{2}})
		} else {
			err = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader([]byte("state")))
		}
	case codes.POST:
		var body []byte
		if r.Body() != nil {
			body, err = io.ReadAll(r.Body())
		}
		if err == nil {
			err = w.SetResponse(codes.Changed, message.TextPlain, bytes.NewReader(body))
		}
	default:
		err = w.SetResponse(codes.MethodNotAllowed, message.TextPlain, nil)
	}
	_ = err
}

func (s *stock) Publish(confirm bool, size int) {
	type target struct {
		conn mux.Conn
		o    *observer
	}
	s.mu.Lock()
	all := make([]target, 0, len(s.observers))
	for c, o := range s.observers {
		all = append(all, target{c, o})
	}
	s.mu.Unlock()
	body := make([]byte, size)
	if !confirm {
		for _, t := range all {
			t.o.notify(t.conn, message.NonConfirmable, body)
		}
		return
	}
	var wg sync.WaitGroup
	if !s.tuned {
		for _, t := range all {
			wg.Go(func() { t.o.notify(t.conn, message.Confirmable, body) })
		}
		wg.Wait()
		return
	}
	work := make(chan target)
	for range min(stockWriters, len(all)) {
		wg.Go(func() {
			for t := range work {
				t.o.notify(t.conn, message.Confirmable, body)
			}
		})
	}
	for _, t := range all {
		work <- t
	}
	close(work)
	wg.Wait()
}

func (o *observer) notify(c mux.Conn, kind message.Type, body []byte) {
	m := c.AcquireMessage(c.Context())
	defer c.ReleaseMessage(m)
	o.seq++
	m.SetCode(codes.Content)
	m.SetToken(o.token)
	m.SetObserve(o.seq)
	m.SetType(kind)
	m.SetBody(bytes.NewReader(body))
	_ = c.WriteMessage(m) // what is lost is counted by the nodes
}
