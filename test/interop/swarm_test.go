//go:build interop

package interop

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// TestSwarmAtLibcoap: the nodes that all benchmarks are driven with are right by the
// word of a server that is not ours: libcoap's takes their handshakes, answers what
// they ask with what they put there, and tells them what they observe.
func TestSwarmAtLibcoap(t *testing.T) {
	const nodes = 50
	at := netip.MustParseAddrPort(fmt.Sprint("127.0.0.1:", libcoapServer(t)+1))
	told := make([]atomic.Int32, nodes)
	s, err := swarm.New(swarm.Config{Gateway: at, Nodes: nodes, Notified: func(i int, m *coap.Message) {
		if m.Code == coap.Content && len(m.Payload) > 0 {
			told[i].Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	var over sync.WaitGroup
	defer over.Wait()
	defer cancel()
	over.Go(func() { _ = s.Run(ctx) }) // ends with ctx
	each := func(what string, f func(ctx context.Context, i int) error) {
		t.Helper()
		if failed, err := swarm.Each(ctx, 0, nodes, 8, nil, f); err != nil || failed > 0 {
			t.Fatalf("%s: %d nodes failed: %v", what, failed, err)
		}
	}
	ask := func(ctx context.Context, i int, code coap.Code, path, payload string, observe bool) (*coap.Message, error) {
		m := &coap.Message{Type: coap.Confirmable, Code: code, Payload: []byte(payload)}
		m.Options.SetPath(path)
		if observe {
			m.Options.SetUint(coap.ObserveOption, 0)
		}
		r, err := s.Do(ctx, i, m)
		if err == nil && !r.Code.IsSuccess() {
			err = fmt.Errorf("%v %s", r.Code, r.Payload)
		}
		return r, err
	}
	each("handshake", func(ctx context.Context, i int) error {
		return s.Open(ctx, i, swarm.Credential{Identity: fmt.Append(nil, "node", i), Key: []byte(originKey)})
	})
	each("PUT and GET", func(ctx context.Context, i int) error {
		path, value := fmt.Sprint("of", i), fmt.Sprint("value ", i)
		if _, err := ask(ctx, i, coap.PUT, path, value, false); err != nil {
			return err
		}
		r, err := ask(ctx, i, coap.GET, path, "", false)
		if err == nil && string(r.Payload) != value {
			err = fmt.Errorf("%q, not %q", r.Payload, value)
		}
		return err
	})
	each("registration", func(ctx context.Context, i int) error {
		r, err := ask(ctx, i, coap.GET, "time", "", true)
		if err == nil && !r.Options.Has(coap.ObserveOption) {
			err = fmt.Errorf("it is not observed")
		}
		return err
	})
	// A notification of each second, some of them confirmable: who does not
	// acknowledge those is told nothing more.
	const enough = 10
	for i := range told {
		for told[i].Load() < enough {
			select {
			case <-ctx.Done():
				t.Fatalf("node %d was told %d times", i, told[i].Load())
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	st := s.Stats()
	if st.Open != nodes || st.Failed+st.Timeouts+st.Undecipherable+st.Closed != 0 || st.Acknowledged < nodes {
		t.Errorf("%+v", st)
	}
}
