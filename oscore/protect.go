package oscore

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
)

// errExchange: a mistake of the caller, or a context that was replaced.
var errExchange = errors.New("oscore: the exchange is not one of this context")

// ProtectRequest protects a request (RFC 8613, Section 8.1). The result refers to
// token and outer options of m, and is otherwise written to buf. The Exchange is
// for the responses. ctx is for the store of sequence numbers.
func (c *Context) ProtectRequest(ctx context.Context, buf *Buffer, m *coap.Message) (*coap.Message, Exchange, error) {
	if !m.Code.IsRequest() {
		return nil, Exchange{}, errNoRequest
	}
	out, err := c.span.outgoing(m)
	if err != nil {
		return nil, Exchange{}, err
	}
	if buf == nil {
		buf = new(Buffer)
	}
	if err := c.plaintext(buf, out); err != nil {
		return nil, Exchange{}, err
	}
	n, err := c.seq.Next(ctx)
	if err != nil {
		return nil, Exchange{}, err
	}
	hint, hintStr := c.hint()
	ex := newExchange(c.senderID, n, hintStr)
	ex.client = true
	if v, ok := out.Options.Uint(coap.ObserveOption); ok && v == 0 {
		ex.observe = true
	}
	if v, ok := out.Options.Get(MulticastTimeout); ok && len(v) > 0 && c.span == toHop {
		ex.several = true
	}
	var room [maxPIV]byte
	option := Option{PIV: appendPIV(room[:0], n), KIDContext: hint, KID: c.senderID}
	p, err := c.seal(buf, out, &option, c.setNonce(buf, c.senderID, n), c.setAAD(buf, c.senderID, n))
	return p, ex, err
}

// ProtectResponse protects a response to the request of ex (RFC 8613, Section
// 8.3): the first one with the nonce of the request, every further one with a
// Partial IV of its own, as notifications need it (Section 4.1.3.5.2). No nonce is
// used twice, whatever copies of ex there are.
func (c *Context) ProtectResponse(ctx context.Context, buf *Buffer, ex Exchange, m *coap.Message) (*coap.Message, error) {
	return c.protectResponse(ctx, buf, ex, m, responseFirst)
}

// ProtectFurther is ProtectResponse for a response that is not the first, whether that
// was made yet or not: it has a Partial IV of its own, as notifications and the
// responses of a group need it that a proxy relays (RFC 8613, Section 8.3.1;
// draft-ietf-core-oscore-capable-proxies-07, Section 2.5.1).
func (c *Context) ProtectFurther(ctx context.Context, buf *Buffer, ex Exchange, m *coap.Message) (*coap.Message, error) {
	return c.protectResponse(ctx, buf, ex, m, responseOwnPIV)
}

// How a response comes by its nonce, and what its option carries beside.
type responseForm uint8

const (
	responseFirst   responseForm = iota // with the nonce of the request, if it is not used yet
	responseOwnPIV                      // with a Partial IV of its own
	responseRenewal                     // with the nonce of the request and the kid context: response #1 of Appendix B.2
)

// Challenge is the response to a request that was refused with [ErrNotFresh]: a
// protected 4.01 with nothing but an Echo option (RFC 8613, Appendix B.1.2). The
// client sends its request again with that option (RFC 9175, Section 2.3).
func (c *Context) Challenge(ctx context.Context, buf *Buffer, ex Exchange) (*coap.Message, error) {
	m := coap.Message{Code: coap.Unauthorized, Options: coap.Options{{ID: coap.Echo, Value: c.echo[:]}}}
	return c.protectResponse(ctx, buf, ex, &m, responseOwnPIV)
}

// Refuse is the response to a request that UnprotectRequest refused: the simple
// error of [coap.ErrorResponse], or what leads to freshness: a [Context.Challenge], or
// the next step of a [Renewal]. c is nil where no context was found. The caller sets type,
// message ID and token.
func (c *Context) Refuse(ctx context.Context, buf *Buffer, ex Exchange, err error) (*coap.Message, error) {
	if c != nil && errors.Is(err, ErrNotFresh) {
		return c.Challenge(ctx, buf, ex)
	}
	if c != nil && errors.Is(err, ErrRenew) {
		return c.protectResponse(ctx, buf, ex, &coap.Message{Code: coap.Unauthorized}, responseRenewal)
	}
	r := coap.ErrorResponse(err)
	return &coap.Message{Code: r.Code, Options: r.Options, Payload: r.Payload}, nil
}

func (c *Context) protectResponse(ctx context.Context, buf *Buffer, ex Exchange, m *coap.Message, form responseForm) (*coap.Message, error) {
	if !m.Code.IsResponse() {
		return nil, errNoResponse
	}
	if ex.client || !bytes.Equal(ex.kid[:ex.kidLen], c.recipientID) {
		return nil, errExchange
	}
	out, err := c.span.outgoing(m)
	if err != nil {
		return nil, err
	}
	if buf == nil {
		buf = new(Buffer)
	}
	if err := c.plaintext(buf, out); err != nil {
		return nil, err
	}
	var option Option
	var room [maxPIV]byte
	var nonce []byte
	switch {
	case form == responseRenewal:
		// This context is for this response alone, which is always the same.
		option.KIDContext = c.kidContext
		nonce = c.setRequestNonce(buf, c.recipientID, ex.piv)
	case form == responseFirst && c.window.Claim(ex.piv):
		nonce = c.setRequestNonce(buf, c.recipientID, ex.piv)
	default:
		n, err := c.seq.Next(ctx)
		if err != nil {
			return nil, err
		}
		option.PIV = appendPIV(room[:0], n)
		nonce = c.setNonce(buf, c.senderID, n)
	}
	return c.seal(buf, out, &option, nonce, c.setAAD(buf, c.recipientID, ex.piv))
}

// plaintext writes the plaintext to the buffer, with room for what follows it.
func (c *Context) plaintext(buf *Buffer, m *coap.Message) error {
	n := plaintextBound(m) + c.sender.Overhead() + 1 + maxPIV + 1 + max(len(c.kidContext), len(c.idContext)) + len(c.senderID)
	if cap(buf.data) < n {
		buf.data = make([]byte, 0, n)
	}
	var err error
	if buf.data, err = c.span.appendPlaintext(buf.data[:0], m); err != nil {
		return err
	}
	if len(buf.data)+c.sender.Overhead() > c.max {
		return ErrTooLarge
	}
	return nil
}

// seal encrypts the plaintext in its place and writes the option behind it.
func (c *Context) seal(buf *Buffer, m *coap.Message, option *Option, nonce, aad []byte) (*coap.Message, error) {
	data := c.sender.Seal(buf.data[:0], nonce, buf.data, aad)
	end := len(data)
	data, err := option.Append(data)
	if err != nil {
		return nil, err
	}
	buf.data = data[:end]
	return buf.protected(c.span, m, data[end:len(data):len(data)], data[:end:end]), nil
}

// UnprotectRequest verifies and decrypts a request (RFC 8613, Section 8.2). The
// result refers to token and outer options of m, and is otherwise written to buf.
// The Exchange is for the responses.
//
// An error leaves the context as it was. [Context.Refuse] makes the response; with
// [ErrNotFresh] the Exchange is valid, and the request is not to be served.
func (c *Context) UnprotectRequest(buf *Buffer, m *coap.Message) (*coap.Message, Exchange, error) {
	option, err := received(m)
	if err != nil {
		return nil, Exchange{}, err
	}
	return c.unprotectRequest(buf, m, &option)
}

func (c *Context) unprotectRequest(buf *Buffer, m *coap.Message, option *Option) (*coap.Message, Exchange, error) {
	switch {
	// The Group Flag is a reserved bit here.
	case option.Group, option.PIV == nil, option.KID == nil:
		return nil, Exchange{}, ErrOption
	case !c.answersTo(option):
		return nil, Exchange{}, ErrContext
	}
	n := pivNumber(option.PIV)
	valid := c.window.Valid()
	if valid && !c.window.Fresh(n) {
		return nil, Exchange{}, ErrReplay
	}
	if buf == nil {
		buf = new(Buffer)
	}
	p, err := c.open(buf, m, c.setNonce(buf, c.recipientID, n), c.setAAD(buf, c.recipientID, n), true)
	if err != nil {
		return nil, Exchange{}, err
	}
	ex := newExchange(c.recipientID, n, "")
	if option.KIDContext != nil {
		ex.kidContext = c.kidContextOf(option.KIDContext)
	}
	if v, ok := p.Options.Uint(coap.ObserveOption); ok && v == 0 {
		ex.observe = true
	}
	if valid {
		// Section 7.4: the update is after decryption, and one with the check.
		if !c.window.Accept(n) {
			return nil, Exchange{}, ErrReplay
		}
		return p, ex, nil
	}
	// Appendix B.1.2: a request that carries our Echo value is younger than this
	// context, so it is no replay, and all before it might be.
	echo, ok := p.Options.Get(coap.Echo)
	if !ok || subtle.ConstantTimeCompare(echo, c.echo[:]) != 1 {
		return nil, ex, ErrNotFresh
	}
	if !c.window.Recover(n) {
		return nil, Exchange{}, ErrReplay
	}
	return p, ex, nil
}

// answersTo says whether a request with this option is for this context: its kid
// is the Recipient ID and its kid context, where there is one, the ID Context.
func (c *Context) answersTo(o *Option) bool {
	return bytes.Equal(o.KID, c.recipientID) && (o.KIDContext == nil || c.named(o.KIDContext))
}

// kidContextOf is the string of a kid context, without a copy when it is ours.
func (c *Context) kidContextOf(b []byte) string {
	if string(b) == c.kidContextStr {
		return c.kidContextStr
	}
	return string(b)
}

// UnprotectResponse verifies and decrypts a response to the request of ex, and
// notes in ex what was accepted (RFC 8613, Section 8.4). The result is as with
// [Context.UnprotectRequest].
//
// To an ordinary request one response is accepted. To a registration,
// notifications are, each only if it is newer than all before it, by the order of
// their Partial IVs; their Observe option gets the end of the Partial IV as its
// value, which orders them but for the first, which may be without (Section
// 4.1.3.5.2). A response without Observe is the last.
//
// To a request to a group, which a proxy relays ([Params.Hop]), each response is
// accepted once, in any order and for as long as the caller keeps ex; one of them may
// be without Partial IV (draft-ietf-core-oscore-capable-proxies-07, Section 2.6.1).
//
// An error leaves the context and ex as they were; the client drops the response.
// [ErrUnprotected] is no attack: a proxy, or a server that lost the context,
// cannot protect its errors.
func (c *Context) UnprotectResponse(buf *Buffer, ex *Exchange, m *coap.Message) (*coap.Message, error) {
	option, err := received(m)
	if err != nil {
		return nil, err
	}
	return c.unprotectResponse(buf, ex, m, &option)
}

func (c *Context) unprotectResponse(buf *Buffer, ex *Exchange, m *coap.Message, option *Option) (*coap.Message, error) {
	switch {
	case !ex.client || !bytes.Equal(ex.kid[:ex.kidLen], c.senderID):
		return nil, errExchange
	case option.Group:
		return nil, ErrOption
	case option.KID != nil && !bytes.Equal(option.KID, c.recipientID),
		option.KIDContext != nil && !c.named(option.KIDContext):
		return nil, ErrContext
	case ex.done:
		return nil, ErrReplay
	}
	if buf == nil {
		buf = new(Buffer)
	}
	n, nonce := uint64(0), []byte(nil)
	if option.PIV == nil {
		// Section 8.4.2: the nonce of the request is good for one response, which
		// is the oldest.
		if ex.plain || ex.next > 0 && !ex.several {
			return nil, ErrReplay
		}
		nonce = c.setRequestNonce(buf, c.senderID, ex.piv)
	} else {
		n = pivNumber(option.PIV)
		if !ex.fresh(n) {
			return nil, ErrReplay
		}
		nonce = c.setNonce(buf, c.recipientID, n)
	}
	p, err := c.open(buf, m, nonce, c.setAAD(buf, c.senderID, ex.piv), false)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(p.Options, func(o coap.Option) bool { return o.ID == coap.ObserveOption })
	if at < 0 && !ex.several {
		ex.done = true
		return p, nil
	}
	if at >= 0 && !ex.observe {
		return nil, fmt.Errorf("%w: notification of what is not observed", ErrInner)
	}
	value := buf.observe[:0]
	if option.PIV == nil {
		ex.plain = true
	} else {
		ex.accept(n)
		value = append(value, byte(n>>16), byte(n>>8), byte(n))
		for len(value) > 0 && value[0] == 0 {
			value = value[1:]
		}
	}
	if at >= 0 {
		p.Options[at].Value = value
	}
	return p, nil
}

// open decrypts the payload of m into the buffer.
func (c *Context) open(buf *Buffer, m *coap.Message, nonce, aad []byte, request bool) (*coap.Message, error) {
	if len(m.Payload) > c.max {
		return nil, ErrTooLarge
	}
	plaintext, err := c.recipient.Open(buf.data[:0], nonce, m.Payload, aad)
	if err != nil {
		return nil, ErrDecrypt
	}
	buf.data = plaintext[:0]
	return buf.unprotected(c.span, m, plaintext, request)
}
