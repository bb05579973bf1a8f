package oscore

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// Lengths in bytes of the nonces of RFC 8613, Appendix B.2. R2 is S2 with its HMAC
// behind it (Appendix B.2.1), so that a server keeps nothing for a protocol run.
const (
	renewalNonce = 8
	renewalMAC   = 8
	renewalR2    = renewalNonce + renewalMAC
	maxRenewalID = 64 // of an ID Context in this protocol, of ours and of others
)

// ErrRenew says that a request is authentic, but of a context that is not the
// current one: the server answers with [Context.Refuse], which leads the client to
// a new context. The request is not to be served.
var ErrRenew = silent(coap.Unauthorized, "the request is of a context that is not current: renew it")

// ErrRenewed says that the server did not serve the request, because it wanted a
// new context first: that is made, and the client sends the request again.
var ErrRenewed = errors.New("oscore: the context was renewed; send the request again")

// Renewal derives Security Contexts again and again from the same input, with an
// ID Context to which both ends add randomness (RFC 8613, Appendix B.2). An endpoint
// that lost sequence numbers or Replay Window, or that never had any, comes back by
// it, and nothing needs to be stored. There is no forward secrecy: who learns the
// Master Secret reads everything.
//
// It stands for one peer, plays both roles, and may be used by many goroutines.
type Renewal struct {
	params Params

	mu      sync.Mutex
	current *Context // agreed with the peer; nil at first
	pending *Context // what requests use while the peer has not agreed yet
	key     []byte   // K_HMAC of Appendix B.2.1; nil: no run is under way
}

// RenewalExchange is the [Exchange] of a request made by way of a [Renewal].
type RenewalExchange struct {
	c  *Context
	ex Exchange
}

// Context is the one that protected the request.
func (x *RenewalExchange) Context() *Context { return x.c }

// Exchange is what was accepted so far.
func (x *RenewalExchange) Exchange() Exchange { return x.ex }

// NewRenewal takes what both ends have in common: p without ID Context, and
// without stored sequence numbers and window, which every new context begins anew.
func NewRenewal(p Params) (*Renewal, error) {
	if p.IDContext != nil || p.OmitIDContext || p.Sequence.Store != nil || p.Sequence.Start != 0 || p.Window != nil {
		return nil, errors.New("oscore: renewed contexts have an ID Context of their own, and no stored state")
	}
	p.MasterSalt = bytes.Clone(p.MasterSalt)
	p.SenderID, p.RecipientID = bytes.Clone(p.SenderID), bytes.Clone(p.RecipientID)
	r := &Renewal{params: p}
	_, err := r.derive(nil, nil)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Current is the context that both ends agreed on, nil when there is none.
func (r *Renewal) Current() *Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// Format prints no key.
func (r *Renewal) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "oscore.Renewal") }

// LogValue keeps keys out of logs.
func (r *Renewal) LogValue() slog.Value { return slog.StringValue("oscore.Renewal") }

// derive makes a context with an ID Context, and hint in its kid context, wrapped
// in a byte string.
func (r *Renewal) derive(id, hint []byte) (*Context, error) {
	p := r.params
	p.IDContext = append([]byte{}, id...)
	c, err := New(p)
	if err != nil {
		return nil, err
	}
	c.setKIDContext(appendCBORBytes(nil, hint))
	c.settled = &settled{idContext: string(id)}
	return c, nil
}

func randomNonce() []byte {
	b := make([]byte, renewalNonce)
	rand.Read(b)
	return b
}

// unwrap reads the byte string in a kid context.
func unwrap(kidContext []byte) ([]byte, bool) {
	b, err := cose.AsBytes(kidContext)
	return b, err == nil && len(b) > 0 && len(b) <= maxRenewalID
}

// ProtectRequest is [Context.ProtectRequest] with the newest context, which is
// made if there is none (step 1 of the protocol).
func (r *Renewal) ProtectRequest(ctx context.Context, buf *Buffer, m *coap.Message) (*coap.Message, *RenewalExchange, error) {
	c, err := r.newest()
	if err != nil {
		return nil, nil, err
	}
	p, ex, err := c.ProtectRequest(ctx, buf, m)
	if err != nil {
		return nil, nil, err
	}
	return p, &RenewalExchange{c: c, ex: ex}, nil
}

func (r *Renewal) newest() (*Context, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil && r.current == nil {
		r1 := randomNonce()
		c, err := r.derive(r1, r1)
		if err != nil {
			return nil, err
		}
		r.pending = c
	}
	if r.pending != nil {
		return r.pending, nil
	}
	return r.current, nil
}

// UnprotectResponse is [Context.UnprotectResponse]. With [ErrRenewed] the caller
// sends its request again, protected anew (steps 3 and 5 of the protocol).
func (r *Renewal) UnprotectResponse(buf *Buffer, x *RenewalExchange, m *coap.Message) (*coap.Message, error) {
	option, err := received(m)
	if err != nil {
		return nil, err
	}
	if option.KIDContext != nil && !x.c.named(option.KIDContext) {
		return nil, r.renewed(buf, x, m, &option)
	}
	p, err := x.c.unprotectResponse(buf, &x.ex, m, &option)
	if err == nil {
		r.agreed(x.c)
	}
	return p, err
}

// agreed makes a context the current one, because the peer has shown that it has
// it too.
func (r *Renewal) agreed(c *Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == c {
		c.settled.done.Store(true)
		r.current, r.pending = c, nil
	}
}

// renewed takes R2 from a response that is protected with the second context, and
// makes the third (step 3).
func (r *Renewal) renewed(buf *Buffer, x *RenewalExchange, m *coap.Message, option *Option) error {
	r2, ok := unwrap(option.KIDContext)
	if !ok || len(r2)+len(x.c.idContext) > maxRenewalID {
		return ErrContext
	}
	second, err := r.second(r2, x.c)
	if err != nil {
		return err
	}
	ex := x.ex
	p, err := second.unprotectResponse(buf, &ex, m, option)
	if err != nil {
		return err
	}
	if p.Code != coap.Unauthorized {
		return fmt.Errorf("%w: %v comes with a new context", ErrInner, p.Code)
	}
	id3 := append(r2, randomNonce()...)
	third, err := r.derive(id3, id3)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	x.ex.done = true
	// Another request in flight may have brought a newer context already.
	if r.pending == x.c || r.pending == nil && r.current == x.c {
		r.pending = third
	}
	return ErrRenewed
}

// UnprotectRequest is [Context.UnprotectRequest] with the context that the request
// names (steps 2 and 4 of the protocol), which it returns for the response. With
// [ErrRenew] the request is not to be served, and Refuse of the context that
// comes with it makes the response.
func (r *Renewal) UnprotectRequest(buf *Buffer, m *coap.Message) (*Context, *coap.Message, Exchange, error) {
	option, err := received(m)
	if err != nil {
		return nil, nil, Exchange{}, err
	}
	if !bytes.Equal(option.KID, r.params.RecipientID) {
		return nil, nil, Exchange{}, ErrContext
	}
	c, p, ex, err := r.unprotectRequest(buf, m, &option)
	if err != nil && !errors.Is(err, ErrRenew) {
		c = nil
	}
	return c, p, ex, err
}

func (r *Renewal) unprotectRequest(buf *Buffer, m *coap.Message, option *Option) (*Context, *coap.Message, Exchange, error) {
	r.mu.Lock()
	current, pending, key := r.current, r.pending, r.key
	r.mu.Unlock()
	if option.KIDContext == nil {
		if current == nil {
			return nil, nil, Exchange{}, ErrContext
		}
		p, ex, err := current.unprotectRequest(buf, m, option)
		return current, p, ex, err
	}
	for _, c := range []*Context{current, pending} {
		if c != nil && c.named(option.KIDContext) {
			p, ex, err := c.unprotectRequest(buf, m, option)
			if err == nil {
				r.agreed(c)
			}
			return c, p, ex, err
		}
	}
	// In the protocol the ID Context is wrapped; in requests of a context that was
	// agreed on and got lost here it is not, and may look as if it were.
	id, ok := unwrap(option.KIDContext)
	if ok {
		c, p, ex, err := r.step(buf, m, option, key, id)
		if !errors.Is(err, ErrDecrypt) {
			return c, p, ex, err
		}
	}
	if len(option.KIDContext) > maxRenewalID {
		return nil, nil, Exchange{}, ErrContext
	}
	return r.step(buf, m, option, key, option.KIDContext)
}

// step verifies a request with a context that is not known yet.
func (r *Renewal) step(buf *Buffer, m *coap.Message, option *Option, key, id []byte) (*Context, *coap.Message, Exchange, error) {
	c, err := r.derive(id, id)
	if err != nil {
		return nil, nil, Exchange{}, err
	}
	p, ex, err := c.unprotectRequest(buf, m, option)
	if err != nil {
		return nil, nil, Exchange{}, err
	}
	if len(id) > renewalR2 && key != nil && hmac.Equal(renewalTag(key, id[:renewalNonce]), id[renewalNonce:renewalR2]) {
		if r.complete(key, c) {
			return c, p, ex, nil
		}
		// The run was completed by another request, or by this one, meanwhile.
		return r.unprotectRequest(buf, m, option)
	}
	return r.challenge(c, ex)
}

// complete puts the third context in its place, and ends the run: from now on no
// request leads to a context by the R2 of it (step 4).
func (r *Renewal) complete(key []byte, c *Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !bytes.Equal(r.key, key) {
		return false
	}
	c.settled.done.Store(true)
	r.current, r.pending, r.key = c, nil, nil
	return true
}

// challenge makes the second context, which protects response #1 (step 2).
func (r *Renewal) challenge(first *Context, ex Exchange) (*Context, *coap.Message, Exchange, error) {
	if renewalR2+len(first.idContext) > maxRenewalID {
		return nil, nil, Exchange{}, ErrContext
	}
	r.mu.Lock()
	if r.key == nil {
		r.key = make([]byte, sha256.Size)
		rand.Read(r.key)
	}
	key := r.key
	r.mu.Unlock()
	s2 := randomNonce()
	r2 := append(s2, renewalTag(key, s2)...)
	second, err := r.second(r2, first)
	if err != nil {
		return nil, nil, Exchange{}, err
	}
	return second, nil, ex, ErrRenew
}

// second makes the second context, in which the response to a request of the first
// has the nonce of that, as it was there, or a Partial IV of its own.
func (r *Renewal) second(r2 []byte, first *Context) (*Context, error) {
	c, err := r.derive(append(bytes.Clone(r2), first.idContext...), r2)
	if err != nil {
		return nil, err
	}
	c.requestIV = first.commonIV
	return c, nil
}

// renewalTag is the HMAC over S2, truncated to eight bytes.
func renewalTag(key, s2 []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(s2)
	return h.Sum(nil)[:renewalMAC]
}
