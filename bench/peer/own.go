package peer

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/endpoint"
)

// topic is that of /state.
const topic = "bench/state"

// own is the gateway's endpoint under the server core.
type own struct {
	core    *serve.Server
	at      netip.AddrPort
	version atomic.Uint64
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func newOwn(ctx context.Context, _ Options) (Server, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	o := &own{at: conn.LocalAddr().(*net.UDPAddr).AddrPort(), stop: stop}
	o.core = serve.New(coap.HandlerFunc(o.serve), serve.Config{PerPeerRPS: 1e9, PerPeerBurst: 1e9})
	e := endpoint.New(endpoint.UDP(conn), endpoint.Config{Server: o.core, Keys: o, OwnPSK: true})
	o.wg.Go(func() { _ = o.core.Run(ctx) }) // ends with ctx
	o.wg.Go(func() { _ = e.Run(ctx) })
	return o, nil
}

func (o *own) Addr() netip.AddrPort { return o.at }

func (o *own) Close() {
	o.stop()
	o.wg.Wait()
}

// PSK has one key for everybody.
func (o *own) PSK(context.Context, []byte) ([]byte, error) { return Key, nil }

// Admit takes the identity as the subject.
func (o *own) Admit(_ context.Context, p endpoint.Proof) (coap.Subject, error) {
	return coap.Subject{Kind: coap.SubjectPSK, ID: string(p.Identity)}, nil
}

func (o *own) serve(_ context.Context, req *coap.Request) (*coap.Response, error) {
	switch {
	case req.Code == coap.GET:
		return &coap.Response{Code: coap.Content, Payload: []byte("state"), Observe: &coap.Observation{Topic: topic, Version: o.version.Load()}}, nil
	case req.Code == coap.POST:
		return &coap.Response{Code: coap.Changed, Payload: append([]byte(nil), req.Payload...)}, nil
	}
	return nil, coap.Errorf(coap.MethodNotAllowed, "GET and POST")
}

func (o *own) Publish(confirm bool, size int) {
	o.core.Publish(topic, coap.Notification{
		Version: o.version.Add(1), Confirm: confirm, Body: &coap.Response{Code: coap.Content, Payload: make([]byte, size)},
	})
}
