package oscore

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
)

// edhocOption is the EDHOC option, of class U (RFC 9668, Section 3.1).
const edhocOption coap.OptionID = 21

// Options between a client and the proxy that asks a group for it, with the numbers
// that draft-ietf-core-groupcomm-proxy-07 asks for; all are of class U (Sections 2, 3
// and 7.3).
const (
	MulticastTimeout coap.OptionID = 2
	groupETag        coap.OptionID = 24
	ReplyFrom        coap.OptionID = 248
)

// outerOnly says whether an option is of class U alone: it travels outside of the
// ciphertext. All others are of class E, also those that nothing is known about
// (RFC 8613, Section 4.1); there are no options of class I. Options that may be
// both, as Observe, Max-Age, the Block options, No-Response, Echo and Request-Tag,
// are inner when an endpoint sends them, and dropped when they come as outer
// ones, which only proxies and the CoAP layer below may read.
//
// RFC 8613, Section 4.1; Hop-Limit: RFC 8768, Section 6; Echo and Request-Tag:
// RFC 9175, Section 4.
func outerOnly(id coap.OptionID) bool {
	switch id {
	case coap.UriHost, coap.UriPort, coap.OSCOREOption, coap.HopLimit, edhocOption, coap.ProxyUri, coap.ProxyScheme,
		MulticastTimeout, groupETag, ReplyFrom:
		return true
	}
	return false
}

// span says how far the protection of a message reaches.
type span bool

const (
	toEnd span = false // to who answers the request, past proxies
	toHop span = true  // to who forwards it (draft-ietf-core-oscore-capable-proxies-07)
)

// outside says whether an option of m travels outside of the ciphertext. What is for
// the other end of a hop goes inside, an OSCORE option for somebody beyond it among
// that.
//
// draft-ietf-core-oscore-capable-proxies-07, Section 2.2 (its algorithm, for who shares a
// context with the next hop).
func (s span) outside(m *coap.Message, id coap.OptionID) bool {
	if s == toEnd || !outerOnly(id) {
		return outerOnly(id)
	}
	return (id == coap.UriHost || id == coap.UriPort) && !m.Options.Has(coap.ProxyScheme)
}

// adopts says whether an outer option counts for a message with these inner ones.
// What may be altered on the way does not lead a request elsewhere whose way is
// inside.
func (s span) adopts(inner coap.Options, id coap.OptionID) bool {
	switch {
	case !outerOnly(id) || id == coap.OSCOREOption:
		return false
	case s == toEnd:
		return true
	case id == MulticastTimeout || id == groupETag || id == ReplyFrom || inner.Has(id):
		return false
	}
	return !inner.Has(coap.ProxyScheme) && !inner.Has(coap.ProxyUri)
}

// outerCode is the code of a protected message (RFC 8613, Section 4.2): POST and
// 2.04, with Observe FETCH and 2.05.
func outerCode(m *coap.Message) coap.Code {
	observe := m.Options.Has(coap.ObserveOption)
	switch {
	case m.Code.IsRequest() && observe:
		return coap.FETCH
	case m.Code.IsRequest():
		return coap.POST
	case observe:
		return coap.Content
	}
	return coap.Changed
}

// Buffer is the memory that one message is written to. The message is valid
// until the next use of the Buffer, and must not be an input to that. The zero
// value is ready; a nil *Buffer stands for a new one. A Buffer serves one message
// at a time.
type Buffer struct {
	msg     coap.Message
	opts    coap.Options
	data    []byte
	aad     [64]byte
	nonce   [13]byte
	observe [3]byte
	from    GroupResponder
}

// outgoing is a message on its way to the peer, as its caller made it: checked,
// sorted and free of a Proxy-Uri with a path.
func (s span) outgoing(m *coap.Message) (*coap.Message, error) {
	sorted, proxy := true, false
	for i := range m.Options {
		switch id := m.Options[i].ID; {
		case s == toHop:
		case id == coap.OSCOREOption:
			return nil, errors.New("oscore: the message has an OSCORE option")
		case id == coap.ProxyUri:
			proxy = true
		}
		if i > 0 && m.Options[i].ID < m.Options[i-1].ID {
			sorted = false
		}
	}
	if sorted && !proxy {
		return m, nil
	}
	c := *m
	if !sorted {
		c.Options = slices.Clone(m.Options)
		slices.SortStableFunc(c.Options, func(a, b coap.Option) int { return int(a.ID) - int(b.ID) })
	}
	if proxy {
		if err := decompose(&c.Options); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// decompose moves path and query of the Proxy-Uri into options of their own,
// which are encrypted; what is left tells a proxy the way (RFC 8613, Section
// 4.1.3.3).
func decompose(opts *coap.Options) error {
	raw, _ := opts.Get(coap.ProxyUri)
	u, err := url.Parse(string(raw))
	if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("oscore: Proxy-Uri is no absolute URI of a host")
	}
	// RFC 7252, Section 5.10.2: Proxy-Uri takes precedence over the Uri options.
	for _, id := range []coap.OptionID{coap.UriHost, coap.UriPort, coap.UriPath, coap.UriQuery, coap.ProxyScheme} {
		opts.Remove(id)
	}
	split := func(id coap.OptionID, s, sep string) error {
		for part := range strings.SplitSeq(s, sep) {
			// Not QueryUnescape: CoAP has no plus sign for a space.
			v, err := url.PathUnescape(part)
			if err != nil {
				return errors.New("oscore: Proxy-Uri has a wrong escape")
			}
			opts.AddString(id, v)
		}
		return nil
	}
	if path := strings.TrimPrefix(u.EscapedPath(), "/"); path != "" {
		if err := split(coap.UriPath, path, "/"); err != nil {
			return err
		}
	}
	if u.RawQuery != "" {
		if err := split(coap.UriQuery, u.RawQuery, "&"); err != nil {
			return err
		}
	}
	opts.Set(coap.ProxyUri, []byte(u.Scheme+"://"+u.Host))
	return nil
}

// plaintextBound is at least the length of the plaintext of m.
func plaintextBound(m *coap.Message) int {
	n := 2 + len(m.Payload)
	for i := range m.Options {
		n += 5 + len(m.Options[i].Value)
	}
	return n
}

// appendPlaintext writes code, inner options and payload of an outgoing message
// (RFC 8613, Section 5.3).
func (s span) appendPlaintext(b []byte, m *coap.Message) ([]byte, error) {
	b = append(b, byte(m.Code))
	last := coap.OptionID(0)
	var err error
	for i := range m.Options {
		o := &m.Options[i]
		if s.outside(m, o.ID) {
			continue
		}
		if o.ID == coap.ObserveOption && !m.Code.IsRequest() {
			// Section 4.1.3.5.2: in notifications the inner value is empty.
			o = &coap.Option{ID: coap.ObserveOption}
		}
		if b, err = o.Append(b, last); err != nil {
			return b, fmt.Errorf("oscore: %w", err)
		}
		last = o.ID
	}
	if len(m.Payload) > 0 {
		b = append(b, 0xff)
		b = append(b, m.Payload...)
	}
	return b, nil
}

// appendOuter writes the options that stay outside, and the OSCORE option with
// the given value among them.
func (s span) appendOuter(dst coap.Options, m *coap.Message, value []byte) coap.Options {
	done := false
	for i := range m.Options {
		id := m.Options[i].ID
		// Section 4.1.3.5: Observe is outside as well, for proxies.
		if !s.outside(m, id) && id != coap.ObserveOption {
			continue
		}
		if id > coap.OSCOREOption && !done {
			dst, done = append(dst, coap.Option{ID: coap.OSCOREOption, Value: value}), true
		}
		dst = append(dst, m.Options[i])
	}
	if !done {
		dst = append(dst, coap.Option{ID: coap.OSCOREOption, Value: value})
	}
	return dst
}

// protected fills the buffer's message with the protected form of m.
func (b *Buffer) protected(s span, m *coap.Message, option, payload []byte) *coap.Message {
	b.opts = s.appendOuter(b.opts[:0], m, option)
	b.msg = coap.Message{
		Type: m.Type, Code: outerCode(m), ID: m.ID, Token: m.Token, Options: b.opts, Payload: payload,
	}
	return &b.msg
}

// unprotected fills the buffer's message with what the plaintext says, and with
// the outer options of m that are not replaced by inner ones. The code is that of
// a request or of a response, as asked for.
//
// RFC 8613, Section 8.2, steps 1 and 7; Section 8.4, steps 1 and 6.
func (b *Buffer) unprotected(s span, m *coap.Message, plaintext []byte, request bool) (*coap.Message, error) {
	if len(plaintext) == 0 {
		return nil, ErrInner
	}
	code := coap.Code(plaintext[0])
	if code.IsRequest() != request || code.IsResponse() == request {
		return nil, ErrInner
	}
	opts, payload, err := coap.DecodeOptions(b.opts[:0], plaintext[1:])
	b.opts = opts[:0]
	if err != nil {
		return nil, ErrInner
	}
	if s == toEnd && opts.Has(coap.OSCOREOption) {
		return nil, ErrInner
	}
	inner := opts
	for i := range m.Options {
		o := m.Options[i]
		if !s.adopts(inner, o.ID) {
			continue
		}
		opts = append(opts, o)
		for j := len(opts) - 1; j > 0 && opts[j-1].ID > o.ID; j-- {
			opts[j-1], opts[j] = opts[j], opts[j-1]
		}
	}
	b.opts = opts
	b.msg = coap.Message{
		Type: m.Type, Code: code, ID: m.ID, Token: m.Token, Options: opts, Payload: payload,
	}
	return &b.msg, nil
}

// received finds the OSCORE option of a protected message, and checks what makes
// one malformed (RFC 8613, Section 2).
func received(m *coap.Message) (Option, error) {
	var value []byte
	n := 0
	for i := range m.Options {
		if m.Options[i].ID == coap.OSCOREOption {
			value = m.Options[i].Value
			n++
		}
	}
	switch {
	case n == 0:
		return Option{}, ErrUnprotected
	case n > 1, len(m.Payload) == 0:
		return Option{}, ErrOption
	}
	o, err := DecodeOption(value)
	if err != nil {
		return Option{}, fmt.Errorf("%w: %w", ErrOption, err)
	}
	return o, nil
}
