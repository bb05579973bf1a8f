package endpoint

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// wire is a network in memory, made of the time package: in a bubble of
// testing/synctest its minutes take no time.
type wire struct {
	mu                   sync.Mutex
	rng                  *rand.Rand
	ports                map[netip.AddrPort]*port
	drop, double, detour float64
	delay                time.Duration
	tap                  func(from, to netip.AddrPort, b []byte) (lose bool) // called with mu held
	next                 uint16
	carried              time.Duration                 // so many nanoseconds later the next arrives: in order
	pins                 map[netip.AddrPort]netip.Addr // at which address of the server a client is; guarded by mu, as
	from                 map[netip.AddrPort]netip.Addr // the one that it was answered from
}

func newWire(seed uint64) *wire {
	return &wire{rng: rand.New(rand.NewPCG(seed, 7)), ports: map[netip.AddrPort]*port{}, delay: time.Millisecond, next: 1000}
}

// port is one address of the network.
type port struct {
	w    *wire
	addr netip.AddrPort
	in   chan Datagram
	wake chan struct{}

	mu      sync.Mutex
	over    bool
	expired bool
}

func (w *wire) open(addr string) *port {
	w.mu.Lock()
	defer w.mu.Unlock()
	if addr == "" {
		w.next++
		addr = fmt.Sprintf("192.0.2.1:%d", w.next)
	}
	p := &port{w: w, addr: netip.MustParseAddrPort(addr), in: make(chan Datagram, 4096), wake: make(chan struct{}, 1)}
	w.ports[p.addr] = p
	return p
}

// lock guards what a tap writes.
func (w *wire) lock() (unlock func()) {
	w.mu.Lock()
	return w.mu.Unlock
}

// carry takes a datagram into the network.
func (w *wire) carry(from, to netip.AddrPort, b []byte) {
	b = bytes.Clone(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tap != nil && w.tap(from, to, b) || w.rng.Float64() < w.drop {
		return
	}
	copies := 1
	if w.rng.Float64() < w.double {
		copies = 2
	}
	for i := range copies {
		w.carried++
		delay := w.delay*time.Duration(i+1) + w.carried
		if w.rng.Float64() < w.detour {
			delay += w.delay * time.Duration(5+w.rng.IntN(20))
		}
		time.AfterFunc(delay, func() {
			w.mu.Lock()
			p := w.ports[to]
			w.mu.Unlock()
			if p == nil {
				return
			}
			select {
			case p.in <- Datagram{Addr: from, B: b}:
			default:
			}
		})
	}
}

func (p *port) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// receive waits for a datagram.
func (p *port) receive() (Datagram, error) {
	for {
		p.mu.Lock()
		over, expired := p.over, p.expired
		p.mu.Unlock()
		switch {
		case over:
			return Datagram{}, net.ErrClosed
		case expired:
			return Datagram{}, os.ErrDeadlineExceeded
		}
		select {
		case d := <-p.in:
			return d, nil
		case <-p.wake:
		}
	}
}

func (p *port) Read(ds []Datagram) (int, error) {
	d, err := p.receive()
	if err != nil {
		return 0, err
	}
	ds[0].Addr, ds[0].B = d.Addr, ds[0].B[:copy(ds[0].B, d.B)]
	defer p.w.lock()()
	ds[0].Local = p.w.pins[d.Addr]
	return 1, nil
}

func (p *port) Write(ds []Datagram) (int, error) {
	for _, d := range ds {
		p.w.carry(p.addr, d.Addr, d.B)
		unlock := p.w.lock()
		if p.w.from != nil {
			p.w.from[d.Addr] = d.Local
		}
		unlock()
	}
	return len(ds), nil
}

func (p *port) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(p.addr) }

func (p *port) Close() error {
	p.w.mu.Lock()
	if p.w.ports[p.addr] == p {
		delete(p.w.ports, p.addr)
	}
	p.w.mu.Unlock()
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.signal()
	return nil
}

// client is a port as pion uses it; its address may change.
type client struct {
	mu sync.Mutex
	p  *port
}

func (c *client) port() *port {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.p
}

// rebind gives the client another address, as a NAT does.
func (c *client) rebind() *port { return c.goTo("") }

// goTo is rebind to an address; "" is any.
func (c *client) goTo(addr string) *port {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.p
	c.p = old.w.open(addr)
	_ = old.Close()
	return c.p
}

func (c *client) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p := c.port()
		d, err := p.receive()
		if err != nil && c.port() != p {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		return copy(b, d.B), net.UDPAddrFromAddrPort(d.Addr), nil
	}
}

func (c *client) WriteTo(b []byte, to net.Addr) (int, error) {
	p := c.port()
	p.w.carry(p.addr, to.(*net.UDPAddr).AddrPort(), b)
	return len(b), nil
}

func (c *client) Close() error                     { return c.port().Close() }
func (c *client) LocalAddr() net.Addr              { return c.port().LocalAddr() }
func (c *client) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *client) SetWriteDeadline(time.Time) error { return nil }
func (c *client) SetReadDeadline(t time.Time) error {
	p := c.port()
	p.mu.Lock()
	p.expired = !t.IsZero() && !t.After(time.Now())
	p.mu.Unlock()
	p.signal()
	return nil
}

// world is an endpoint under a server core, on a wire.
type world struct {
	t    *testing.T
	w    *wire
	e    *Endpoint // the first of all
	all  *Shards
	core *serve.Server
	at   netip.AddrPort
	stop func()

	mu       sync.Mutex
	admitted []Proof
	opened   []Peer
	closed   []coap.LinkID
	deny     error // of Admit
	known    [][]byte
	roots    *x509.CertPool
	calls    int    // of the handler
	version  uint64 // of the state
	layer    *secure.Layer
	slow     time.Duration
	wait     chan struct{} // what the handler waits for
}

// front is what world's endpoint asks.
type front struct{ *world }

func (f front) Handle(ctx context.Context, l coap.Link, m *coap.Message) *coap.Message {
	return f.core.Handle(ctx, l, m)
}
func (f front) Doubt(id coap.LinkID, token []byte)  { f.core.Doubt(id, token) }
func (f front) Cancel(id coap.LinkID, token []byte) { f.core.Cancel(id, token) }
func (f front) Closed(id coap.LinkID) {
	f.mu.Lock()
	f.closed = append(f.closed, id)
	f.mu.Unlock()
	f.core.Closed(id)
}

const topic = "state"

// key is the pre-shared key of identities that begin with "node".
var key = []byte("0123456789abcdef")

func (f front) PSK(_ context.Context, identity []byte) ([]byte, error) {
	if !bytes.HasPrefix(identity, []byte("node")) {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, identity)
	}
	return key, nil
}

func (f front) Admit(_ context.Context, p Proof) (coap.Subject, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.admitted = append(f.admitted, p)
	if f.deny != nil {
		return coap.Subject{}, f.deny
	}
	if p.PublicKey != nil {
		return coap.Subject{Kind: coap.SubjectKeyHash, ID: string(p.PublicKey)}, nil
	}
	return coap.Subject{Kind: coap.SubjectPoP, ID: string(p.Identity)}, nil
}

func (f front) Known(_ context.Context, spki []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.known {
		if bytes.Equal(k, spki) {
			return nil
		}
	}
	return fmt.Errorf("%w: public key", ErrUnknown)
}

func (f front) Certified(_ context.Context, chain []*x509.Certificate) error {
	above := x509.NewCertPool()
	for _, c := range chain[1:] {
		above.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: f.roots, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return err
}

// serveCoAP shows state to GET, counts calls, and takes its time when told to.
func (o *world) serveCoAP(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	o.mu.Lock()
	o.calls++
	layer := o.layer
	n, slow, wait, version := o.calls, o.slow, o.wait, max(1, o.version)
	o.mu.Unlock()
	if layer != nil && req.Options.Has(coap.OSCOREOption) {
		return layer.ServeCoAP(ctx, req)
	}
	if slow > 0 {
		time.Sleep(slow) // in a bubble
	}
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
	switch req.Code {
	case coap.GET:
		return &coap.Response{Code: coap.Content, Payload: fmt.Append(nil, version), Observe: &coap.Observation{Topic: topic, Version: version}}, nil
	case coap.POST:
		return &coap.Response{Code: coap.Changed, Payload: append(fmt.Appendf(nil, "%d:", n), req.Payload...)}, nil
	case coap.PUT:
		return &coap.Response{Code: coap.Changed, Payload: req.Payload}, nil
	case coap.FETCH: // as if of a group
		return &coap.Response{Code: coap.Content, Payload: []byte("first"), More: func(_ context.Context, send func(*coap.Response) error) error {
			for _, further := range []string{"second", "third"} {
				if err := send(&coap.Response{Code: coap.Content, Payload: []byte(further)}); err != nil {
					return err
				}
			}
			return nil
		}}, nil
	}
	return nil, coap.Errorf(coap.MethodNotAllowed, "")
}

// begin makes a world; secure says whether it speaks DTLS.
func begin(t *testing.T, w *wire, secure bool, edit ...func(*Config)) *world {
	t.Helper()
	o := &world{t: t, w: w}
	o.core = serve.New(coap.HandlerFunc(o.serveCoAP), serve.Config{PerPeerRPS: 1e6, PerPeerBurst: 1e6, MaxPeerRequests: 64})
	cfg := Config{Server: front{o}, Opened: func(p Peer) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.opened = append(o.opened, p)
	}}
	if secure {
		cfg.Keys = front{o}
	}
	for _, f := range edit {
		f(&cfg)
	}
	p := w.open("198.51.100.1:5684")
	o.at = p.addr
	o.all = NewShards(w.split(p, max(1, shards)), cfg)
	o.e = o.all.all[0]
	ctx, cancel := context.WithCancel(context.Background())
	var over sync.WaitGroup
	over.Go(func() {
		if err := o.all.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	over.Go(func() { _ = o.core.Run(ctx) })
	o.stop = sync.OnceFunc(func() { cancel(); over.Wait() })
	return o
}

// sessions counts those of all shards.
func (o *world) sessions() (n int) {
	for _, e := range o.all.all {
		e.mu.Lock()
		n += len(e.sessions)
		e.mu.Unlock()
	}
	return n
}

func (o *world) handled() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls
}

// ended counts the links that are gone, and began those that were let in.
func (o *world) ended() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.closed)
}

func (o *world) began() []Peer {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.opened
}

func (o *world) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// publish tells of a version, and the outcome.
func (o *world) publish(version uint64, confirm bool) <-chan error {
	done := make(chan error, 8)
	o.core.Publish(topic, coap.Notification{
		Version: version, Confirm: confirm, Body: &coap.Response{Code: coap.Content, Payload: fmt.Append(nil, version)},
		Done: func(_ coap.LinkID, _ uint64, err error) { done <- err },
	})
	return done
}

// peer is a client that speaks for itself, over DTLS or not.
type peer struct {
	t    *testing.T
	o    *world
	c    *client
	conn *dtls.Conn   // nil: plain UDP, or
	raw  *dtls12.Conn // an association with raw public keys
	got  chan *coap.Message
	over chan struct{}
	mid  uint16
}

// plain opens a client over UDP.
func (o *world) plain() *peer {
	p := &peer{t: o.t, o: o, c: &client{p: o.w.open("")}, got: make(chan *coap.Message, 256), over: make(chan struct{})}
	go func() {
		defer close(p.over)
		b := make([]byte, 2048)
		for {
			n, _, err := p.c.ReadFrom(b)
			if err != nil {
				return
			}
			p.take(b[:n])
		}
	}()
	return p
}

// dialFrom opens a client over DTLS.
func (o *world) dialFrom(port *port, identity string, opts ...dtls.ClientOption) (*peer, error) {
	return o.dialWith(port, append([]dtls.ClientOption{
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint([]byte(identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
	}, opts...)...)
}

// dialWith opens a client over DTLS with whatever credentials.
func (o *world) dialWith(port *port, opts ...dtls.ClientOption) (*peer, error) {
	p := &peer{t: o.t, o: o, c: &client{p: port}, got: make(chan *coap.Message, 256), over: make(chan struct{})}
	conn, err := dtls.ClientWithOptions(p.c, net.UDPAddrFromAddrPort(o.at), opts...)
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		_ = p.c.Close()
		return nil, err
	}
	p.conn = conn
	go func() {
		defer close(p.over)
		b := make([]byte, 2048)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			p.take(b[:n])
		}
	}()
	return p, nil
}

func (o *world) dial(identity string, opts ...dtls.ClientOption) *peer {
	o.t.Helper()
	p, err := o.dialFrom(o.w.open(""), identity, opts...)
	if err != nil {
		o.t.Fatal(err)
	}
	return p
}

// withCID has the client send to a connection ID of the server's choice.
var withCID = dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator())

func (p *peer) take(b []byte) {
	if m, err := coap.DecodeMessage(bytes.Clone(b)); err == nil {
		p.got <- m
	}
}

func (p *peer) close() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.raw != nil {
		_ = p.raw.Close()
	}
	_ = p.c.Close()
	<-p.over
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	var err error
	if p.raw != nil {
		_, err = p.raw.Write(b)
	} else if p.conn != nil {
		_, err = p.conn.Write(b)
	} else {
		_, err = p.c.WriteTo(b, net.UDPAddrFromAddrPort(p.o.at))
	}
	if err != nil {
		p.t.Error(err)
	}
}

func (p *peer) send(m *coap.Message) {
	p.t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(b)
}

// next is the next message that comes within a while; nil: none.
func (p *peer) next(within time.Duration) *coap.Message {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case m := <-p.got:
		return m
	case <-t.C:
		return nil
	}
}

// want is the next message, which must come.
func (p *peer) want() *coap.Message {
	p.t.Helper()
	m := p.next(5 * time.Minute)
	if m == nil {
		p.t.Fatal("nothing comes")
	}
	return m
}

func (p *peer) request(code coap.Code, token, payload string) *coap.Message {
	p.mid++
	m := &coap.Message{Type: coap.Confirmable, Code: code, ID: p.mid, Token: []byte(token), Payload: []byte(payload)}
	m.Options.SetPath("x")
	return m
}

// ask sends a request until its response comes, as RFC 7252, Section 4.2, has it.
func (p *peer) ask(m *coap.Message) *coap.Message {
	p.t.Helper()
	wait := 2 * time.Second
	acked := false
	for try := 0; ; {
		if !acked {
			if try++; try > 8 {
				p.t.Fatalf("no answer to %v", m.Code)
			}
			p.send(m)
		}
		for late := time.Now().Add(wait); time.Now().Before(late); {
			r := p.next(time.Until(late))
			if r == nil {
				break
			}
			if r.Type == coap.Confirmable && !p.reject(r) {
				p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
			}
			if r.Type == coap.Acknowledgement && r.ID == m.ID && r.Code == coap.Empty {
				acked = true
			}
			if r.Code.IsResponse() && bytes.Equal(r.Token, m.Token) {
				return r
			}
		}
		wait = min(2*wait, 20*time.Second)
		if acked {
			wait = time.Minute
		}
	}
}

// reject answers a ping.
func (p *peer) reject(m *coap.Message) bool {
	if m.Type != coap.Confirmable || m.Code != coap.Empty {
		return false
	}
	p.send(&coap.Message{Type: coap.Reset, ID: m.ID})
	return true
}

// numbers watches the records of the endpoint: a sequence number that occurs
// twice in an epoch with different bytes is a nonce that was used twice.
type numbers struct {
	seen map[string][]byte
	bad  []string
}

// watch is a tap. cid is the length of the client's connection IDs.
func (n *numbers) watch(server netip.AddrPort, cid int) func(from, to netip.AddrPort, b []byte) bool {
	n.seen = map[string][]byte{}
	return func(from, to netip.AddrPort, b []byte) bool {
		if from != server {
			return false
		}
		for len(b) > 0 {
			r, rest, err := record.Next(b, cid)
			if err != nil {
				break
			}
			if r.Epoch > 0 {
				key := string(binary.BigEndian.AppendUint64([]byte(to.String()), uint64(r.Epoch)<<48|r.Seq))
				whole := b[:len(b)-len(rest)]
				if old, ok := n.seen[key]; ok && !bytes.Equal(old, whole) {
					n.bad = append(n.bad, fmt.Sprintf("%v, epoch %d, %d", to, r.Epoch, r.Seq))
				}
				n.seen[key] = bytes.Clone(whole)
			}
			b = rest
		}
		return false
	}
}
