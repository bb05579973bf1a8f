package coap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrFormat is the error of bytes that are no CoAP message. Over UDP and DTLS a
// confirmable one is rejected with a Reset (RFC 7252, Section 4.2).
var ErrFormat = errors.New("coap: message format error")

// ErrVersion is the [ErrFormat] of an unknown version: such messages are
// ignored in silence (RFC 7252, Section 3).
var ErrVersion = fmt.Errorf("%w: unknown version", ErrFormat)

// Type is the type of a message (RFC 7252, Section 3).
type Type uint8

// The types of messages.
const (
	Confirmable Type = iota
	NonConfirmable
	Acknowledgement
	Reset
)

func (t Type) String() string {
	switch t {
	case Confirmable:
		return "CON"
	case NonConfirmable:
		return "NON"
	case Acknowledgement:
		return "ACK"
	case Reset:
		return "RST"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Message is one CoAP message as it travels in a datagram.
type Message struct {
	Type    Type
	Code    Code
	ID      uint16
	Token   []byte // 0 to 8 bytes
	Options Options
	Payload []byte
}

// Clone returns a copy that shares no memory with m.
func (m *Message) Clone() *Message {
	c := &Message{}
	m.CopyTo(c, nil, nil)
	return c
}

// CopyTo makes c what [Message.Clone] returns. Its parts are in the room of opts
// and all, of no length, where that suffices.
func (m *Message) CopyTo(c *Message, opts Options, all []byte) {
	n := len(m.Token) + len(m.Payload)
	for i := range m.Options {
		n += len(m.Options[i].Value)
	}
	if n > cap(all) {
		all = make([]byte, 0, n) // one for all parts
	}
	part := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		at := len(all)
		all = append(all, b...)
		return all[at:len(all):len(all)]
	}
	*c = *m
	c.Token = part(m.Token)
	if m.Options != nil {
		if len(m.Options) > cap(opts) {
			opts = make(Options, 0, len(m.Options))
		}
		for _, o := range m.Options {
			opts = append(opts, Option{o.ID, part(o.Value)})
		}
		c.Options = opts[:len(opts):len(opts)]
	}
	c.Payload = part(m.Payload)
}

// MarshalBinary is [Message.AppendBinary] into a new slice.
func (m *Message) MarshalBinary() ([]byte, error) {
	return m.AppendBinary(make([]byte, 0, 16+16*len(m.Options)+len(m.Payload)))
}

// AppendBinary appends the datagram form of m (RFC 7252, Section 3) to b.
// Options are written in the order of their numbers whatever their order in m.
func (m *Message) AppendBinary(b []byte) ([]byte, error) {
	if m.Type > Reset {
		return b, fmt.Errorf("coap: message type %d", m.Type)
	}
	if len(m.Token) > maxToken {
		return b, fmt.Errorf("coap: token of %d bytes", len(m.Token))
	}
	if m.Code == Empty && (len(m.Token) != 0 || len(m.Options) != 0 || len(m.Payload) != 0) {
		return b, errors.New("coap: empty message with content")
	}
	opts := m.Options
	if byID := func(a, b Option) int { return int(a.ID) - int(b.ID) }; !slices.IsSortedFunc(opts, byID) {
		opts = slices.Clone(opts)
		slices.SortStableFunc(opts, byID)
	}
	b = append(b, 1<<6|byte(m.Type)<<4|byte(len(m.Token)), byte(m.Code))
	b = binary.BigEndian.AppendUint16(b, m.ID)
	b = append(b, m.Token...)
	b, err := appendOptions(b, opts)
	if err != nil {
		return b, err
	}
	if len(m.Payload) > 0 {
		b = append(b, 0xff)
		b = append(b, m.Payload...)
	}
	return b, nil
}

// appendOptions writes sorted options (RFC 7252, Section 3.1).
func appendOptions(b []byte, opts Options) ([]byte, error) {
	var last OptionID
	var err error
	for i := range opts {
		if b, err = opts[i].Append(b, last); err != nil {
			return b, err
		}
		last = opts[i].ID
	}
	return b, nil
}

// Append writes o behind an option with the number last, 0 for the first (RFC
// 7252, Section 3.1). last must not be larger than the number of o.
func (o *Option) Append(b []byte, last OptionID) ([]byte, error) {
	if len(o.Value) > maxOptionLength {
		return b, fmt.Errorf("coap: option %d of %d bytes", o.ID, len(o.Value))
	}
	dn, de, dl := nibble(int(o.ID - last))
	ln, le, ll := nibble(len(o.Value))
	b = append(b, dn<<4|ln)
	b = append(b, de[:dl]...)
	b = append(b, le[:ll]...)
	return append(b, o.Value...), nil
}

// nibble splits an option delta or length into its four bits and the extended
// bytes, of which n are used.
func nibble(v int) (nib byte, ext [2]byte, n int) {
	switch {
	case v < 13:
		return byte(v), ext, 0
	case v < 269:
		return 13, [2]byte{byte(v - 13)}, 1
	}
	v -= 269
	return 14, [2]byte{byte(v >> 8), byte(v)}, 2
}

// DecodeMessage reads one datagram. The message refers to b: clone it to keep
// it. Every error is an [ErrFormat]; what is read encodes to b again, byte for
// byte.
func DecodeMessage(b []byte) (*Message, error) {
	m := &Message{}
	if err := m.Decode(b); err != nil {
		return nil, err
	}
	return m, nil
}

// Decode is [DecodeMessage] into m, whose memory for options is used again: it
// allocates nothing once that is large enough.
func (m *Message) Decode(b []byte) error {
	if len(b) < 4 {
		return fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	// RFC 7252, Section 3: "MUST be silently ignored".
	if b[0]>>6 != 1 {
		return ErrVersion
	}
	*m = Message{
		Type:    Type(b[0] >> 4 & 3),
		Code:    Code(b[1]),
		ID:      binary.BigEndian.Uint16(b[2:]),
		Options: m.Options[:0],
	}
	tkl := int(b[0] & 15)
	// RFC 7252, Section 3: lengths 9 to 15 are reserved.
	if tkl > maxToken {
		return fmt.Errorf("%w: token length %d", ErrFormat, tkl)
	}
	// RFC 7252, Section 4.1: an empty message is four bytes long.
	if m.Code == Empty && (tkl != 0 || len(b) != 4) {
		return fmt.Errorf("%w: empty message with content", ErrFormat)
	}
	// RFC 7252, Section 4.2: classes 1, 6 and 7 are reserved.
	if c := m.Code.Class(); c == 1 || c == 6 || c == 7 {
		return fmt.Errorf("%w: code of reserved class %d", ErrFormat, c)
	}
	rest := b[4:]
	if len(rest) < tkl {
		return fmt.Errorf("%w: truncated token", ErrFormat)
	}
	if tkl > 0 {
		m.Token = rest[:tkl:tkl]
	}
	var err error
	m.Options, m.Payload, err = DecodeOptions(m.Options, rest[tkl:])
	if err != nil {
		return err
	}
	return nil
}

// DecodeOptions reads options up to the payload marker or the end, and returns
// the payload that is left. It appends to opts, whose memory it uses; options
// and payload refer to b. Every error is an [ErrFormat].
func DecodeOptions(opts Options, b []byte) (Options, []byte, error) {
	last, first := 0, len(opts)
	for len(b) > 0 {
		if b[0] == 0xff {
			// RFC 7252, Section 3: a marker before a payload of length zero is
			// a format error.
			if len(b) == 1 {
				return nil, nil, fmt.Errorf("%w: payload marker without payload", ErrFormat)
			}
			return opts, b[1:], nil
		}
		if len(opts)-first == maxOptions {
			return nil, nil, fmt.Errorf("%w: more than %d options", ErrFormat, maxOptions)
		}
		head := b[0]
		b = b[1:]
		var delta, length int
		var ok bool
		if delta, b, ok = extend(head>>4, b); !ok {
			return nil, nil, fmt.Errorf("%w: option delta", ErrFormat)
		}
		if length, b, ok = extend(head&15, b); !ok {
			return nil, nil, fmt.Errorf("%w: option length", ErrFormat)
		}
		if last += delta; last > maxOptionNumber {
			return nil, nil, fmt.Errorf("%w: option number %d", ErrFormat, last)
		}
		if length > len(b) {
			return nil, nil, fmt.Errorf("%w: truncated option %d", ErrFormat, last)
		}
		opts = append(opts, Option{OptionID(last), b[:length:length]})
		b = b[length:]
	}
	return opts, nil, nil
}

// extend reads the extended form of an option delta or length. The nibble 15
// is reserved (RFC 7252, Section 3.1).
func extend(nib byte, b []byte) (v int, rest []byte, ok bool) {
	switch {
	case nib < 13:
		return int(nib), b, true
	case nib == 13 && len(b) >= 1:
		return int(b[0]) + 13, b[1:], true
	case nib == 14 && len(b) >= 2:
		return int(binary.BigEndian.Uint16(b)) + 269, b[2:], true
	}
	return 0, nil, false
}

// Path returns the segments of the Uri-Path.
func (r *Request) Path() []string { return r.Options.Path() }

// Observe says whether the request carries an Observe option that means
// something, and whether it asks to register (0) rather than to deregister (1)
// (RFC 7641, Section 2).
func (r *Request) Observe() (register, present bool) {
	v, ok := r.Options.Uint(ObserveOption)
	if !ok || v > 1 || (r.Code != GET && r.Code != FETCH) {
		return false, false
	}
	return v == 0, true
}

// Clone returns a copy that shares no memory with r and stays valid after
// ServeCoAP has returned.
func (r *Request) Clone() *Request {
	c := *r
	c.Options = r.Options.Clone()
	c.Payload = bytes.Clone(r.Payload)
	return &c
}
