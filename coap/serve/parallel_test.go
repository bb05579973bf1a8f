package serve_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// silentLink is one that nothing is sent on.
type silentLink struct{ peer coap.Peer }

func (m *silentLink) Peer() coap.Peer                     { return m.peer }
func (m *silentLink) Send(_ *coap.Message, f func(error)) { f(nil) }
func (m *silentLink) OwnsBlockwise() bool                 { return false }

// BenchmarkHandle has as many goroutines as there are cores hand requests to the
// core, each those of a thousand peers of its own, as the shards of an endpoint do. The
// handler does nothing and there is no endpoint, so that the core's lock is asked for
// ten times as often as under one: with -cpu 1,2 and -mutexprofile it tells what one
// lock for all costs (docs/endpoint.md, "Shards").
func BenchmarkHandle(b *testing.B) {
	s := serve.New(coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) {
		return &coap.Response{Code: coap.Changed}, nil
	}), serve.Config{PerPeerRPS: 1e9, PerPeerBurst: 1e9})
	var shards atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		shard := shards.Add(1)
		links := make([]*silentLink, 1000)
		for i := range links {
			links[i] = &silentLink{coap.Peer{Link: coap.LinkID(fmt.Sprint(shard, "-", i)), Via: coap.DTLSPSK}}
		}
		m := &coap.Message{Type: coap.Confirmable, Code: coap.POST, Token: []byte("t"), Payload: make([]byte, 40)}
		m.Options.SetPath("echo")
		for i := 0; pb.Next(); i++ {
			if r := s.Handle(b.Context(), links[i%len(links)], m); r == nil || r.Code != coap.Changed {
				b.Errorf("%+v", r)
				return
			}
		}
	})
}
