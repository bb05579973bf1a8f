package swarm

import (
	"context"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// Limits of the requests of a [Node].
const (
	blockSize = 1024
	maxBody   = 1 << 20
)

// Node is one node of a swarm as a transport of package node: with it a node of
// the swarm joins groups. It does one thing at a time.
type Node struct {
	s    *Swarm
	i    int
	turn chan struct{}
}

// Node makes the transport of node i. There is to be one of each node.
func (s *Swarm) Node(i int) *Node { return &Node{s: s, i: i, turn: make(chan struct{}, 1)} }

// single sends messages that are not cut into blocks.
type single struct{ n *Node }

func (x single) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	return x.n.s.Do(ctx, x.n.i, m)
}

func (n *Node) enter(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) leave() { <-n.turn }

// Do sends one request, in blocks where needed, and waits for its response.
func (n *Node) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	if err := n.enter(ctx); err != nil {
		return nil, err
	}
	defer n.leave()
	return serve.RoundTrip(ctx, single{n}, req, blockSize, maxBody)
}

// Observe registers (RFC 7641) and calls fn for the first response, before it
// returns, and for every later one. A request that wants no response on success
// (RFC 7967) has no first one.
func (n *Node) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	if err := n.enter(ctx); err != nil {
		return nil, err
	}
	defer n.leave()
	r := coap.Request{Code: req.Code, Options: slices.Clone(req.Options), Payload: req.Payload}
	r.Options.SetUint(coap.ObserveOption, 0)
	token := randomBytes(8)
	m, err := n.s.do(ctx, n.i, &coap.Message{Code: r.Code, Token: token, Options: r.Options, Payload: r.Payload},
		func(m *coap.Message) { n.notified(&r, m, fn) })
	if err != nil {
		return nil, err
	}
	if m.Code != coap.Empty {
		first, err := serve.Gather(ctx, single{n}, &r, m, maxBody)
		if err != nil {
			return nil, err
		}
		fn(first)
	}
	return func(ctx context.Context) error {
		if err := n.enter(ctx); err != nil {
			return err
		}
		defer n.leave()
		end := slices.Clone(r.Options)
		end.SetUint(coap.ObserveOption, 1)
		_, err := n.s.Do(ctx, n.i, &coap.Message{Code: r.Code, Token: token, Options: end, Payload: r.Payload})
		n.s.mu.Lock()
		n.s.nodes[n.i].unwatch(token)
		n.s.mu.Unlock()
		return err
	}, nil
}

// notified gives fn a notification, whole; mu is held.
func (n *Node) notified(req *coap.Request, m *coap.Message, fn func(*coap.Response)) {
	m = m.Clone()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		if n.enter(ctx) != nil {
			return
		}
		whole, err := serve.Gather(ctx, single{n}, req, m, maxBody)
		n.leave()
		if err == nil {
			fn(whole)
		}
	}()
}

// ExportEmptyContext gives keying material of the association (RFC 5705) with a
// context that is present and empty; only with [Credential.Keep].
func (n *Node) ExportEmptyContext(label string, size int) ([]byte, error) {
	n.s.mu.Lock()
	x := n.s.nodes[n.i].state
	n.s.mu.Unlock()
	if x == nil {
		return nil, fmt.Errorf("swarm: the secrets of the handshake of node %d were not kept", n.i)
	}
	return x.Exporter(label, []byte{}, size)
}

// Close forgets the association. It says no goodbye.
func (n *Node) Close() error {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	n.s.shut(&n.s.nodes[n.i])
	return nil
}
