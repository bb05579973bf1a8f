package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/net/responsewriter"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"
	"github.com/plgd-dev/go-coap/v3/udp/client"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/dtls12"
)

// Transport carries requests of a node to its Group Manager.
//
// An error of Do or Observe means that no response came; a response that
// refuses is no error. Observe calls fn for the first response too, before it
// returns, and for every later one in order; fn must not block. A response
// without an Observe option is the last. The message that fn was called with
// is acknowledged when fn has returned.
type Transport interface {
	Do(ctx context.Context, req *coap.Request) (*coap.Response, error)
	Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (cancel func(context.Context) error, err error)
	Close() error
}

// Doner is a [Transport] that notices its own end, for instance a
// close_notify of the peer.
type Doner interface {
	Done() <-chan struct{}
}

// Limits and times of a transport.
const (
	// requestTimeout bounds a request whose context has no deadline: what four
	// retransmissions take with an ACK_TIMEOUT of 2 s would be 93 s (RFC 7252,
	// Section 4.8.2), longer than a person or a node on battery waits.
	requestTimeout = 30 * time.Second
	// handshakeTimeout bounds a handshake whose context has no deadline.
	handshakeTimeout = 15 * time.Second
	// tick is how often go-coap looks at what to retransmit; its own 4 s
	// would double the first retransmission.
	tick = 200 * time.Millisecond
	// idleTick is how often it looks while nothing is under way: only old
	// state is dropped then. A program with thousands of nodes notices.
	idleTick = 5 * time.Second
	// blockTimeout bounds one blockwise transfer.
	blockTimeout = 10 * time.Second
	// maxBody bounds a response of a Group Manager: the credentials of a group of
	// 10,000 members are 0.6 MB.
	maxBody = 1 << 20
	// maxMessage bounds one message: a block, its options, and what protects it.
	maxMessage = 2048
)

// conn is a [Transport] over go-coap.
type conn struct {
	cc   *client.Conn
	dtls *dtls.Conn   // nil over plain UDP
	raw  *dtls12.Conn // in its place, with raw public keys
	host string       // goes into Uri-Host; "": none
	stop chan struct{}
	wg   sync.WaitGroup
	once sync.Once
	err  error

	taker  atomic.Pointer[func(*coap.Request) *coap.Response]
	active atomic.Int32  // requests and registrations under way
	busy   chan struct{} // one slot: active rose

	separates separates // with wire set before cc
}

func newConn(d *dtls.Conn) *conn {
	return &conn{dtls: d, stop: make(chan struct{}), busy: make(chan struct{}, 1)}
}

// DialUDP opens plain CoAP to addr, "host:port". Only a token post and
// discovery belong there: a key never does.
func DialUDP(ctx context.Context, addr string) (Transport, error) {
	raw, err := dialSocket(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := newConn(nil)
	c.separates.wire = raw
	c.cc = udp.Client(raw, c.options()...)
	return c, nil
}

// dialMessages is DialUDP for messages that something above cuts into blocks.
func dialMessages(ctx context.Context, addr string) (*conn, error) {
	raw, err := dialSocket(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := newConn(nil)
	c.separates.wire = raw
	c.cc = udp.Client(raw, append(c.options(), options.WithBlockwise(false, 0, 0), options.WithMaxMessageSize(maxMessage))...)
	return c, nil
}

// DialDTLS opens CoAP over DTLS 1.2 with a pre-shared key. identity goes into
// psk_identity as given: [Access.Identity], the access token itself, or a
// configured identity.
//
// RFC 9202, Section 3.3.2: TLS_PSK_WITH_AES_128_CCM_8 is mandatory, so it is
// offered first. A Connection ID (RFC 9146) for the own records is offered, so
// that a node behind a NAT outlives a new binding, and the extended master
// secret (RFC 7627) is required: an exporter value is no proof without it.
func DialDTLS(ctx context.Context, addr string, identity, psk []byte) (Transport, error) {
	if len(psk) == 0 {
		return nil, errors.New("node: dial: no pre-shared key")
	}
	ctx, cancel := withDeadline(ctx, handshakeTimeout)
	defer cancel()
	raw, err := dialSocket(ctx, addr)
	if err != nil {
		return nil, err
	}
	key := bytes.Clone(psk)
	d, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(raw), raw.RemoteAddr(),
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }),
		dtls.WithPSKIdentityHint(bytes.Clone(identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
	)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("node: dial %s: %w", addr, err)
	}
	if err := d.HandshakeContext(ctx); err != nil {
		d.Close()
		raw.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			// A server cannot answer a Finished that it cannot verify.
			return nil, fmt.Errorf("node: dial %s: handshake timed out (no DTLS server there, or the pre-shared key is wrong): %w", addr, err)
		}
		return nil, fmt.Errorf("node: dial %s: %w", addr, err)
	}
	c := newConn(d)
	c.separates.wire = d
	c.cc = coapdtls.Client(d, c.options()...)
	return c, nil
}

func dialSocket(ctx context.Context, addr string) (*net.UDPConn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("node: dial: %w", err)
	}
	return raw.(*net.UDPConn), nil
}

// options are the same for UDP and DTLS. go-coap's own error output goes to
// the standard output and its parallelism to one request at a time.
func (c *conn) options() []udp.Option {
	return []udp.Option{
		options.WithErrors(func(error) {}), // what matters comes back from Do
		options.WithPeriodicRunner(c.runPeriodic),
		options.WithBlockwise(true, blockwise.SZX1024, blockTimeout),
		options.WithMaxMessageSize(maxBody),
		options.WithLimitClientParallelRequest(0),
		options.WithLimitClientEndpointParallelRequest(0),
		options.WithCloseSocket(),
		options.WithHandlerFunc(c.handle),
		options.WithProcessReceivedMessageFunc(c.separates.receive),
	}
}

// Take has fn answer the requests of the other end, one after the other; nil:
// 4.04.
func (c *conn) Take(fn func(*coap.Request) *coap.Response) {
	if fn == nil {
		c.taker.Store(nil)
		return
	}
	c.taker.Store(&fn)
}

// handle is called by go-coap for messages that answer nothing of ours.
func (c *conn) handle(w *responsewriter.ResponseWriter[*client.Conn], m *pool.Message) {
	if code := coap.Code(m.Code()); !code.IsRequest() {
		return // a notification after its observation ended
	}
	answer := &coap.Response{Code: coap.NotFound}
	if fn := c.taker.Load(); fn != nil {
		r, err := response(m)
		if err != nil {
			return
		}
		answer = (*fn)(&coap.Request{Code: coap.Code(m.Code()), Options: r.Options, Payload: r.Payload})
	}
	out := w.Message()
	out.SetCode(codes.Code(answer.Code))
	out.ResetOptionsTo(messageOptions(answer.Options))
	if len(answer.Payload) > 0 {
		out.SetBody(bytes.NewReader(answer.Payload))
	}
}

// runPeriodic retransmits while something is under way, until the connection
// ends.
func (c *conn) runPeriodic(f func(time.Time) bool) {
	c.wg.Go(func() {
		t := time.NewTimer(tick)
		defer t.Stop()
		for f(time.Now()) {
			busy := c.busy
			if c.active.Load() > 0 {
				busy = nil // it is soon, whatever begins meanwhile
				t.Reset(tick)
			} else {
				t.Reset(idleTick)
			}
			for ticked := false; !ticked; {
				select {
				case <-t.C:
					ticked = true
				case <-busy:
					busy = nil
					t.Reset(tick)
				case <-c.stop:
					ticked = true
				}
			}
		}
	})
}

// working says that something is under way until done is called.
func (c *conn) working() (done func()) {
	c.active.Add(1)
	select {
	case c.busy <- struct{}{}:
	default:
	}
	return func() { c.active.Add(-1) }
}

// Do sends one request and waits for its response.
func (c *conn) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	r, err := c.doWith(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	// A server that was restarted asks whether we are there now, before it does
	// what the request says (RFC 9175, Section 2.3).
	echo, ok := r.Options.Get(coap.Echo)
	if !ok || r.Code != coap.Unauthorized {
		return r, nil
	}
	again := *req
	again.Options = slices.Clone(req.Options)
	again.Options.Set(coap.Echo, echo)
	return c.doWith(ctx, &again, nil)
}

// doWith is Do with a token, which is a fresh one when it is nil.
func (c *conn) doWith(ctx context.Context, req *coap.Request, token message.Token) (*coap.Response, error) {
	defer c.working()()
	ctx, cancel := withDeadline(ctx, requestTimeout)
	defer cancel()
	m, err := c.message(ctx, req)
	if err != nil {
		return nil, err
	}
	defer c.cc.ReleaseMessage(m)
	if token != nil {
		m.SetToken(token)
	}
	r, err := c.cc.Do(m)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	defer c.cc.ReleaseMessage(r)
	resp, err := response(r)
	if err != nil || req.Options.Has(coap.Echo) {
		return resp, err
	}
	if echo, ok := c.asksBack(resp); ok {
		again := req.Clone()
		again.Options.Set(coap.Echo, echo)
		return c.doWith(ctx, again, token)
	}
	return resp, nil
}

// asksBack says whether a proxy wants a request again, with an Echo value, to see
// whether the address is ours (RFC 9175, Section 2.3).
func (c *conn) asksBack(r *coap.Response) (echo []byte, ok bool) {
	echo, ok = r.Options.Get(coap.Echo)
	return echo, ok && c.host != "" && r.Code == coap.Unauthorized && !r.Options.Has(coap.OSCOREOption)
}

// Done is closed when the connection ended, whoever ended it.
func (c *conn) Done() <-chan struct{} { return c.cc.Done() }

// Close says close_notify over DTLS, ends everything under way and returns
// when no goroutine of the connection is left.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.cc.Close()
		close(c.stop)
		<-c.cc.Done()
		c.wg.Wait()
	})
	return c.err
}

// ExportEmptyContext gives keying material of the DTLS session, see
// [ExportEmptyContext].
func (c *conn) ExportEmptyContext(label string, n int) ([]byte, error) {
	if c.raw != nil {
		return c.raw.Result().Export(label, []byte{}, n)
	}
	if c.dtls == nil {
		return nil, fmt.Errorf("%w: no DTLS session", errExporter)
	}
	state, ok := c.dtls.ConnectionState()
	if !ok {
		return nil, fmt.Errorf("%w: no session state", errExporter)
	}
	return ExportEmptyContext(&state, label, n)
}

// Challenge gives N_S of an association whose psk_identity was the access
// token itself.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.1.
func Challenge(t Transport) ([]byte, error) {
	x, ok := t.(interface {
		ExportEmptyContext(label string, n int) ([]byte, error)
	})
	if !ok {
		return nil, fmt.Errorf("%w: the transport has none", errExporter)
	}
	return x.ExportEmptyContext(ExporterLabel, exporterSize)
}

// lost says why no response came: the caller gave up, or the other end is not
// there any more. Silence counts as the latter, since a server that restarted
// without its sessions drops our records.
func (c *conn) lost(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: no response from %s", ErrLost, c.cc.RemoteAddr())
	}
	return fmt.Errorf("%w: %s: %w", ErrLost, c.cc.RemoteAddr(), err)
}

func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// silent reports whether the request wants no 2.xx response (RFC 7967,
// Section 2.1: the bit of value 2).
func silent(req *coap.Request) bool {
	v, ok := req.Options.Uint(coap.NoResponse)
	return ok && v&2 != 0
}

// message makes a go-coap message with a fresh token.
func (c *conn) message(ctx context.Context, req *coap.Request) (*pool.Message, error) {
	token, err := c.cc.GetToken()
	if err != nil {
		return nil, fmt.Errorf("node: token: %w", err)
	}
	m := c.cc.AcquireMessage(ctx)
	m.SetCode(codes.Code(req.Code))
	m.SetToken(token)
	opts := req.Options
	if c.host != "" {
		opts = opts.Clone()
		opts.Set(coap.UriHost, []byte(c.host))
	}
	m.ResetOptionsTo(messageOptions(opts))
	if len(req.Payload) > 0 {
		m.SetBody(bytes.NewReader(req.Payload))
	}
	return m, nil
}

func messageOptions(in coap.Options) message.Options {
	opts := make(message.Options, 0, len(in))
	for _, o := range in {
		opts = append(opts, message.Option{ID: message.OptionID(o.ID), Value: o.Value})
	}
	return opts
}

// response copies a go-coap message out of its pool. Blockwise transfer is
// over, so its options mean nothing any more.
func response(m *pool.Message) (*coap.Response, error) {
	body, err := m.ReadBody()
	if err != nil {
		return nil, fmt.Errorf("node: response body: %w", err)
	}
	r := &coap.Response{Code: coap.Code(m.Code()), Payload: bytes.Clone(body)}
	for _, o := range m.Options() {
		switch id := coap.OptionID(o.ID); id {
		case coap.Block1, coap.Block2, coap.Size1, coap.Size2:
		default:
			r.Options.Add(id, bytes.Clone(o.Value))
		}
	}
	return r, nil
}
