package plugin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// inside is an association of the gateway with itself: what delegates have with
// the embedded Authorization Server and the local Group Manager. Requests take
// the way of all others but for the socket: the server core, the budgets, the
// router, and the grant that is looked up at every request.
type inside struct {
	g    *Gateway
	peer coap.Peer
	ctx  context.Context // ends with Close, and with the gateway
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	token   uint64                          // guarded by mu
	watches map[string]func(*coap.Response) // guarded by mu: observations by token
}

var (
	_ node.Transport = (*inside)(nil)
	_ coap.Link      = insideLink{}
)

func (g *Gateway) inside(subject coap.Subject) *inside {
	id := make([]byte, 8)
	rand.Read(id)
	t := &inside{
		g: g, watches: map[string]func(*coap.Response){},
		peer: coap.Peer{Link: coap.LinkID("inside-" + hex.EncodeToString(id)), Via: coap.Internal, Subject: subject},
	}
	t.ctx, t.stop = context.WithCancel(g.stopped)
	return t
}

// Do sends a request through the gateway.
func (t *inside) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	return t.send(ctx, req, t.newToken())
}

func (t *inside) send(ctx context.Context, req *coap.Request, token []byte) (*coap.Response, error) {
	if t.ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", node.ErrLost, coap.ErrGone)
	}
	m := front{t.g}.Handle(ctx, insideLink{t}, &coap.Message{
		Type: coap.Confirmable, Code: req.Code, Token: token, Options: slices.Clone(req.Options), Payload: req.Payload,
	})
	switch {
	case m != nil:
		return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return &coap.Response{Code: coap.Changed}, nil // it asked for No-Response
}

// Observe registers for a resource.
func (t *inside) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	token := t.newToken()
	first := make(chan struct{}) // notifications wait for the answer to the registration
	var once sync.Once
	opened := func() { once.Do(func() { close(first) }) }
	defer opened()
	t.mu.Lock()
	t.watches[string(token)] = func(r *coap.Response) {
		<-first
		fn(r)
	}
	t.mu.Unlock()
	register := req.Clone()
	register.Options.SetUint(coap.ObserveOption, 0)
	resp, err := t.send(ctx, register, token)
	if err != nil {
		t.forget(token)
		return nil, err
	}
	fn(resp)
	return func(ctx context.Context) error {
		t.forget(token)
		end := req.Clone()
		end.Options.SetUint(coap.ObserveOption, 1)
		_, err := t.send(ctx, end, token)
		return err
	}, nil
}

func (t *inside) forget(token []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.watches, string(token))
}

func (t *inside) newToken() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token++
	return binary.BigEndian.AppendUint64(nil, t.token)
}

// Done is closed when the association is over.
func (t *inside) Done() <-chan struct{} { return t.ctx.Done() }

// Close ends the association and what it observes.
func (t *inside) Close() error {
	t.mu.Lock()
	t.stop()
	t.mu.Unlock()
	t.g.server.Closed(t.peer.Link)
	t.wg.Wait()
	return nil
}

// insideLink is the association as the server core sees it.
type insideLink struct{ t *inside }

func (l insideLink) Peer() coap.Peer { return l.t.peer }

// OwnsBlockwise: bodies go whole.
func (l insideLink) OwnsBlockwise() bool { return true }

// Send takes a notification. It is acknowledged once the observer has seen it.
func (l insideLink) Send(m *coap.Message, done func(error)) {
	t := l.t
	t.mu.Lock()
	fn := t.watches[string(m.Token)]
	over := t.ctx.Err() != nil
	if fn != nil && !over {
		t.wg.Add(1)
	}
	t.mu.Unlock()
	switch {
	case over:
		done(coap.ErrGone)
	case fn == nil:
		done(coap.ErrReset)
	default:
		r := &coap.Response{Code: m.Code, Options: slices.Clone(m.Options), Payload: slices.Clone(m.Payload)}
		go func() {
			defer t.wg.Done()
			fn(r)
			done(nil)
		}()
	}
}

// home is how delegates reach the gateway's own Authorization Server and Group
// Manager.
type home struct {
	g   *Gateway
	ace *ace.Server
}

// AS opens an association with the embedded Authorization Server as a client of it.
func (h home) AS(client string) node.Transport {
	return h.g.inside(coap.Subject{Kind: coap.SubjectPSK, ID: client})
}

// GM posts the access token and opens an association with the local Group Manager, as
// whoever has the key that the token confirms.
func (h home) GM(ctx context.Context, a *node.Access) (node.Transport, *groupcomm.TokenTransferResponse, error) {
	plain := h.g.inside(coap.Subject{})
	transfer, err := node.PostToken(ctx, plain, a)
	_ = plain.Close() // nothing is left to lose
	if err != nil {
		return nil, nil, err
	}
	// What a handshake would prove: that the key is the one of the stored token.
	identity := a.Identity()
	key, err := h.ace.PSK(ctx, identity)
	if err != nil {
		return nil, nil, err
	}
	if !hmac.Equal(key, a.Key.Bytes()) {
		return nil, nil, fmt.Errorf("%w: the stored token has another key", node.ErrUnauthorized)
	}
	subject, _ := h.ace.Subject(identity)
	if subject.Kind != coap.SubjectPoP {
		return nil, nil, fmt.Errorf("%w: the token is not stored", node.ErrLost)
	}
	return h.g.inside(subject), transfer, nil
}
