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
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// grace is how much longer than a proxy relays its last response may be on its way.
const grace = time.Second

// AskGroup sends a request to a group through the proxy at the other end of t, which
// [DialDTLS] opened, and calls fn with every response that comes within wait, a number
// of whole seconds: req says by its proxy options or path which group. A response
// without [Responder] is the proxy's own, and the last. It is no error when nobody
// answers.
//
// draft-ietf-core-groupcomm-proxy-07, Section 5.1.
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
	ctx, cancel := context.WithTimeout(ctx, wait+grace)
	defer cancel()
	asked := *req
	asked.Options = req.Options.Clone()
	asked.Options.SetUint(oscore.MulticastTimeout, uint32(wait/time.Second))
	first, err := c.doWith(ctx, &asked, token)
	switch {
	case err == nil:
		fn(first)
		if _, ok := Responder(first); !ok {
			return nil
		}
	case ctx.Err() == nil || errors.Is(err, context.Canceled) || !more.acknowledged.Load():
		return err
	}
	for {
		select {
		case r := <-more.came:
			fn(r)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return nil
		case <-c.Done():
			return fmt.Errorf("%w: %s", ErrLost, c.cc.RemoteAddr())
		}
	}
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
