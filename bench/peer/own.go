package peer

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/endpoint"
	"github.com/seed4911071e/groupgate/journal"
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

	journal sync.WaitGroup     // it ends after all others
	last    context.CancelFunc // ends it
}

func newOwn(ctx context.Context, opts Options, shards int) (Server, error) {
	socks, err := listen(ctx, opts.Dir, shards)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	o := &own{at: socks[0].LocalAddr().(*net.UDPAddr).AddrPort(), stop: stop, last: func() {}}
	o.version.Store(uint64(time.Now().UnixNano())) // above those of an earlier process
	o.core = serve.New(coap.HandlerFunc(o.serve), serve.Config{PerPeerRPS: 1e9, PerPeerBurst: 1e9})
	e := endpoint.NewShards(socks, endpoint.Config{Server: o.core, Keys: o, OwnPSK: true, Ending: o.core.Freeze})
	if opts.Dir != "" {
		if err := o.keep(e, opts.Dir); err != nil {
			stop()
			return nil, err
		}
	}
	o.wg.Go(func() { _ = o.core.Run(ctx) }) // ends with ctx
	o.wg.Go(func() { _ = e.Run(ctx) })
	return o, nil
}

// listen opens the sockets: with a folder at the address of the process before.
func listen(ctx context.Context, dir string, shards int) ([]endpoint.Socket, error) {
	file := filepath.Join(dir, "addr")
	if b, err := os.ReadFile(file); dir != "" && err == nil {
		return endpoint.UDPShards(ctx, string(b), shards)
	}
	socks, err := endpoint.UDPShards(ctx, "127.0.0.1:0", shards)
	if err == nil && dir != "" {
		err = os.WriteFile(file, []byte(socks[0].LocalAddr().String()), 0o600)
	}
	return socks, err
}

// Whose a record of the journal is.
const (
	ofEndpoint byte = 'e'
	ofServe    byte = 's'
)

// stream is the journal as one owner of records sees it.
type stream struct {
	*journal.Journal
	kind byte
}

func (s stream) Append(rec []byte) { s.Journal.Append(s.kind, rec) }

// Keeps: there is one topic.
func (stream) Keeps(string) bool { return true }

// keep brings back sessions and observations, as the gateway does, and keeps them
// from then on.
func (o *own) keep(e *endpoint.Shards, dir string) error {
	var peers endpoint.Recovery
	var observers serve.Recovery
	j, _, err := journal.Open(journal.Options{
		Dir: filepath.Join(dir, "sessions"), Key: bytes.Repeat(Key, 2),
		Dump: func(emit func(byte, []byte)) bool {
			peers := e.Dump(func(rec []byte) { emit(ofEndpoint, rec) })
			return o.core.Dump(func(rec []byte) { emit(ofServe, rec) }) && peers
		},
	}, func(kind byte, rec []byte) error {
		if kind == ofEndpoint {
			return peers.Apply(rec)
		}
		return observers.Apply(rec)
	})
	if err != nil {
		return err
	}
	observers.Start = j.Boot()
	for _, p := range e.Restore(stream{j, ofEndpoint}, j.Boot(), &peers) {
		o.core.Restore(&observers, p)
	}
	o.core.Keep(stream{j, ofServe})
	ctx, stop := context.WithCancel(context.Background())
	o.last = stop
	o.journal.Go(func() {
		_ = j.Run(ctx) // ends with ctx
		_ = j.Close()
	})
	return nil
}

func (o *own) Addr() netip.AddrPort { return o.at }

func (o *own) Close() {
	o.stop()
	o.wg.Wait()
	o.last()
	o.journal.Wait()
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
