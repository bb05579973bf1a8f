package coaptest

import (
	"context"
	"errors"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
)

// observation is one of the client's (RFC 7641, Section 3).
type observation struct {
	token []byte
	req   *coap.Request
	fn    func(*coap.Response)
	queue chan *coap.Message // of notifications, in the order of arrival
	done  chan struct{}
	seq   uint32 // newest seen; guarded by Link.mu
	begun bool   // guarded by Link.mu
	over  bool   // guarded by Link.mu
}

// requester sends the client's requests with the type that Options ask for.
type requester struct {
	l     *Link
	token []byte // of the next request only; nil: a new one
}

func (r *requester) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	c := *m
	if r.l.opts.NonConf {
		c.Type = coap.NonConfirmable
	}
	// RFC 7641, Section 3.1: the token of the registration is that of the last
	// request of the transfer, which bears the Observe option; of the later
	// blocks none may have it.
	if r.token != nil && c.Options.Has(coap.ObserveOption) {
		c.Token = r.token
	}
	return r.l.client.exchange(ctx, &c)
}

// Do sends a request as the client, in blocks where needed, and waits for the
// response.
func (l *Link) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	return l.roundTrip(ctx, &requester{l: l}, req)
}

func (l *Link) roundTrip(ctx context.Context, r coap.Requester, req *coap.Request) (*coap.Response, error) {
	if l.opts.Whole {
		m, err := r.Do(ctx, &coap.Message{Code: req.Code, Options: req.Options, Payload: req.Payload})
		if err != nil {
			return nil, err
		}
		return &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}, nil
	}
	return serve.RoundTrip(ctx, r, req, l.opts.BlockSize, l.opts.MaxBody)
}

// Exchange sends one message as the client, as it is, and waits for the first
// response with its token. Type, token and options are the caller's; an empty
// token is replaced, the message identifier always. For tests of what no client
// of good will sends.
func (l *Link) Exchange(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	return l.client.exchange(ctx, m)
}

// Inject puts bytes on the way to the server, or to the client, which need not
// be a message.
func (l *Link) Inject(toServer bool, b []byte) { l.carry(toServer, slices.Clone(b)) }

// Observe registers for the resource (RFC 7641). fn gets the response to the
// registration first and then every notification that is newer than all before,
// whole; its calls follow each other. The last may be an error that ended the
// observation. When the server answers without registering, fn gets the answer
// and err is [ErrNotObserved].
//
// cancel deregisters; fn is not called after it has returned.
func (l *Link) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (cancel func(context.Context) error, err error) {
	o := &observation{token: l.newToken(false), req: req.Clone(), fn: fn,
		queue: make(chan *coap.Message, 256), done: make(chan struct{})}
	o.req.Options.SetUint(coap.ObserveOption, 0)
	l.mu.Lock()
	l.observed[string(o.token)] = o
	l.mu.Unlock()

	first, err := l.roundTrip(ctx, &requester{l, o.token}, o.req)
	if err != nil {
		l.forget(o)
		return nil, err
	}
	seq, ok := first.Options.Uint(coap.ObserveOption)
	fn(first)
	if !ok {
		l.forget(o)
		return nil, ErrNotObserved
	}
	l.mu.Lock()
	if !o.begun {
		o.begun, o.seq = true, seq
	}
	l.mu.Unlock()
	l.goroutine(func() { l.follow(o) })
	return func(ctx context.Context) error {
		if !l.forget(o) {
			return nil
		}
		req := o.req.Clone()
		req.Options.SetUint(coap.ObserveOption, 1)
		_, err := l.roundTrip(ctx, &requester{l, o.token}, req)
		return err
	}, nil
}

// ErrNotObserved is the error of an observation that the server did not accept.
var ErrNotObserved = errors.New("coaptest: the server does not register the observation")

// Forget makes the client forget all its observations, as after a restart:
// notifications are rejected from then on.
func (l *Link) Forget() {
	l.mu.Lock()
	var all []*observation
	for _, o := range l.observed {
		all = append(all, o)
	}
	l.mu.Unlock()
	for _, o := range all {
		l.forget(o)
	}
}

// forget removes the observation; false when it is over already.
func (l *Link) forget(o *observation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.over {
		return false
	}
	o.over = true
	delete(l.observed, string(o.token))
	close(o.done)
	return true
}

// notified takes a response that nobody waits for; false rejects it.
func (l *Link) notified(m *coap.Message) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.observed[string(m.Token)]
	if o == nil {
		return l.opts.Patient
	}
	if seq, ok := m.Options.Uint(coap.ObserveOption); ok {
		// RFC 7641, Section 3.4, without its clause on time: the server's
		// numbers follow a clock.
		const mask = 1<<24 - 1
		if d := (seq - o.seq) & mask; o.begun && (d == 0 || d >= 1<<23) {
			return true // known, and older
		}
		o.begun, o.seq = true, seq
	}
	select {
	case o.queue <- m:
	default: // a test that does not keep up
	}
	return true
}

// follow hands notifications to the test until the observation ends.
func (l *Link) follow(o *observation) {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-o.done:
			return
		case m := <-o.queue:
			r := &coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}
			if !l.opts.Whole {
				var err error
				// RFC 7641, Section 3.4, with RFC 7959, Section 2.6: the rest
				// is fetched under a token of its own.
				r, err = serve.Gather(l.ctx, &requester{l: l}, o.req, m, l.opts.MaxBody)
				if err != nil {
					continue
				}
			}
			last := !m.Options.Has(coap.ObserveOption)
			l.mu.Lock()
			over := o.over
			l.mu.Unlock()
			if over {
				return
			}
			o.fn(r)
			if last {
				l.forget(o)
				return
			}
		}
	}
}
