package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// grace is how much longer than a proxy relays its last response may be on its way.
const grace = time.Second

// stopTime bounds how long a proxy is told that no more responses are wanted.
const stopTime = 3 * time.Second

// AskGroup sends a request to a group through the proxy at the other end of t, which
// [DialDTLS] opened, and calls fn with every response that comes within wait, a number
// of whole seconds: req says by its proxy options or path which group. A response
// without [Responder] is the proxy's own, and the last. It is no error when nobody
// answers.
//
// With Observe in req (RFC 7641) the notifications of the members follow, until ctx
// ends or the proxy says that it is over. A ctx that ends has the proxy told.
//
// draft-ietf-core-groupcomm-proxy-07, Sections 5.1 and 5.1.3.
func AskGroup(ctx context.Context, t Transport, req *coap.Request, wait time.Duration, fn func(*coap.Response)) error {
	c, ok := t.(*conn)
	if !ok {
		return errors.New("node: ask a group: not over this transport")
	}
	token, err := c.cc.GetToken()
	if err != nil {
		return fmt.Errorf("node: token: %w", err)
	}
	more, forget := c.separates.expect(token)
	defer forget()
	timed, cancel := context.WithTimeout(ctx, wait+grace)
	defer cancel()
	asked := *req
	asked.Options = req.Options.Clone()
	asked.Options.SetUint(oscore.MulticastTimeout, uint32(wait/time.Second))
	over := timed.Done()
	last := func(r *coap.Response) bool {
		if r.Options.Has(coap.ObserveOption) && req.Options.Has(coap.ObserveOption) {
			over = ctx.Done()
		}
		fn(r)
		_, relayed := Responder(r)
		return !relayed
	}
	first, err := c.doWith(timed, &asked, token)
	switch {
	case err == nil:
		if last(first) {
			return nil
		}
	case ctx.Err() != nil:
		c.stopRelaying(ctx, token)
		if errors.Is(err, context.Canceled) || !more.acknowledged.Load() {
			return err
		}
		return nil
	case timed.Err() == nil || !more.acknowledged.Load():
		return err
	}
	for {
		select {
		case r := <-more.came:
			if last(r) {
				return nil
			}
		case <-over:
			if ctx.Err() != nil {
				c.stopRelaying(ctx, token)
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return nil
		case <-c.Done():
			return fmt.Errorf("%w: %s", ErrLost, c.cc.RemoteAddr())
		}
	}
}

// stopRelaying sends an Early Stop Request: the token of the request, and no address. It
// is acknowledged, and not answered; a proxy that does not hear it finds out with the
// association.
func (c *conn) stopRelaying(ctx context.Context, token message.Token) {
	defer c.working()()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	m := c.cc.AcquireMessage(ctx)
	defer c.cc.ReleaseMessage(m)
	m.SetCode(codes.GET)
	m.SetToken(token)
	m.ResetOptionsTo(message.Options{{ID: message.OptionID(oscore.MulticastTimeout)}})
	_ = c.cc.WriteMessage(m)
}

// Responder is the server that a response relayed by a proxy is from: its Reply-From,
// a CRI of scheme and authority [-1, [address, ? port]], as ADDRESS:PORT, or in
// hexadecimal when it is another. ok: the response has one.
func Responder(r *coap.Response) (who string, ok bool) {
	raw, ok := r.Options.Get(oscore.ReplyFrom)
	if !ok {
		return "", false
	}
	who = fmt.Sprintf("%x", raw)
	raw = ofMember(raw)
	var scheme int64
	var address []byte
	port := uint16(5683)
	cri, err := cose.DecodeArray(raw)
	if err != nil || len(cri) != 2 || cose.Unmarshal(cri[0], &scheme) != nil || scheme != -1 {
		return who, true
	}
	authority, err := cose.DecodeArray(cri[1])
	if err != nil || len(authority) < 1 || len(authority) > 2 || cose.Unmarshal(authority[0], &address) != nil {
		return who, true
	}
	if len(authority) == 2 && cose.Unmarshal(authority[1], &port) != nil {
		return who, true
	}
	if ip, good := netip.AddrFromSlice(address); good {
		who = netip.AddrPortFrom(ip, port).String()
	}
	return who, true
}

// ofMember is the CRI of the member where a reverse proxy tells, before it, how it is
// reached itself: a sequence of the proxy's, and a reference with the authority alone.
//
// draft-ietf-core-groupcomm-proxy-07, Sections 3 and 6.1.
func ofMember(raw []byte) []byte {
	const array2, null = 0x82, 0xf6
	for i := 1; i < len(raw)-1; i++ {
		if raw[i] == array2 && raw[i+1] == null {
			if cri, err := cose.DecodeArray(raw[:i]); err == nil && len(cri) == 2 {
				return append([]byte{array2, 0x20}, raw[i+2:]...)
			}
		}
	}
	return raw
}

// further takes the responses to one request, of which go-coap knows the first alone.
type further struct {
	token        message.Token
	came         chan *coap.Response // after the first
	acknowledged atomic.Bool         // somebody is there

	// What came before; guarded by separates.mu.
	begun, piggybacked bool
	seen               map[int32]bool // message identifiers of the other end
}

// maxFurther bounds the responses that wait to be read.
const maxFurther = 1024

// expect has responses with a token taken until forget is called.
func (s *separates) expect(token message.Token) (f *further, forget func()) {
	f = &further{token: token, came: make(chan *coap.Response, maxFurther), seen: map[int32]bool{}}
	s.further.Store(f)
	return f, func() { s.further.CompareAndSwap(f, nil) }
}

// take says whether a message is not for go-coap.
func (s *separates) take(f *further, m *pool.Message) bool {
	code, kind := coap.Code(m.Code()), m.Type()
	if kind == message.Acknowledgement {
		f.acknowledged.Store(true)
	}
	if !code.IsResponse() || !bytes.Equal(m.Token(), f.token) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	again := f.piggybacked
	if kind == message.Acknowledgement {
		f.piggybacked = true
	} else {
		again = f.seen[m.MessageID()]
		if len(f.seen) < maxFurther {
			f.seen[m.MessageID()] = true
		}
	}
	first := !f.begun
	f.begun = true
	if first {
		return false
	}
	if kind == message.Confirmable {
		s.acknowledge(m)
	}
	if r, err := response(m); err == nil && !again {
		select {
		case f.came <- r:
		default:
		}
	}
	return kind != message.Acknowledgement // which ends the retransmission of the request
}
