package coap

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// OptionID is the number of an option. Its low bits say how it is treated when
// unknown (RFC 7252, Section 5.4.6).
type OptionID uint16

// Option numbers of the IANA registry that the gateway knows. Some names end
// in Option where the plain name means the thing itself.
const (
	IfMatch             OptionID = 1
	UriHost             OptionID = 3
	ETag                OptionID = 4
	IfNoneMatch         OptionID = 5
	ObserveOption       OptionID = 6
	UriPort             OptionID = 7
	LocationPath        OptionID = 8
	OSCOREOption        OptionID = 9
	UriPath             OptionID = 11
	ContentFormatOption OptionID = 12
	MaxAge              OptionID = 14
	UriQuery            OptionID = 15
	HopLimit            OptionID = 16
	Accept              OptionID = 17
	LocationQuery       OptionID = 20
	Block2              OptionID = 23
	Block1              OptionID = 27
	Size2               OptionID = 28
	ProxyUri            OptionID = 35
	ProxyScheme         OptionID = 39
	Size1               OptionID = 60
	Echo                OptionID = 252
	NoResponse          OptionID = 258
	RequestTag          OptionID = 292
)

// Critical says whether a recipient that does not know the option must refuse
// the message (RFC 7252, Section 5.4.1).
func (id OptionID) Critical() bool { return id&1 != 0 }

// Unsafe says whether a proxy that does not know the option must not forward
// the message (RFC 7252, Section 5.4.2).
func (id OptionID) Unsafe() bool { return id&2 != 0 }

// NoCacheKey says whether the option is left out of cache keys (RFC 7252,
// Section 5.4.2).
func (id OptionID) NoCacheKey() bool { return id&0x1e == 0x1c }

// Known says whether this package knows the option.
func (id OptionID) Known() bool {
	_, known := id.rule()
	return known
}

// optionRule is a row of the option registry.
type optionRule struct {
	min, max int
	repeat   bool
}

// rule is the table of RFC 7252, Section 5.10, and of the documents that added
// options to it: lengths in bytes, and whether an option may be repeated.
func (id OptionID) rule() (optionRule, bool) {
	switch id {
	case IfMatch:
		return optionRule{0, 8, true}, true
	case UriHost:
		return optionRule{1, 255, false}, true
	case ETag:
		return optionRule{1, 8, true}, true
	case IfNoneMatch:
		return optionRule{0, 0, false}, true
	case ObserveOption: // RFC 7641, Section 2
		return optionRule{0, 3, false}, true
	case UriPort, ContentFormatOption, Accept:
		return optionRule{0, 2, false}, true
	case LocationPath, UriPath, UriQuery, LocationQuery:
		return optionRule{0, 255, true}, true
	case OSCOREOption: // RFC 8613, Section 2
		return optionRule{0, 255, false}, true
	case MaxAge, Size1, Size2:
		return optionRule{0, 4, false}, true
	case HopLimit: // RFC 8768, Section 3
		return optionRule{1, 1, false}, true
	case Block1, Block2: // RFC 7959, Section 2.1
		return optionRule{0, 3, false}, true
	case ProxyUri:
		return optionRule{1, 1034, false}, true
	case ProxyScheme:
		return optionRule{1, 255, false}, true
	case Echo: // RFC 9175, Section 2.2.1
		return optionRule{1, 40, false}, true
	case NoResponse: // RFC 7967, Section 2
		return optionRule{0, 1, false}, true
	case RequestTag: // RFC 9175, Section 3.2.1
		return optionRule{0, 8, true}, true
	}
	return optionRule{}, false
}

// Option is one option of a message.
type Option struct {
	ID    OptionID
	Value []byte
}

// Options are the options of a message, sorted by number; those with the same
// number keep their order. The methods hold the order, and never write into the
// slice that they are called on: they replace it, so that a copy of a message
// or response may be changed without harm to the original.
type Options []Option

// Get returns the value of the first option with the number.
func (o Options) Get(id OptionID) ([]byte, bool) {
	for i := range o {
		if o[i].ID == id {
			return o[i].Value, true
		}
	}
	return nil, false
}

// Has says whether there is an option with the number.
func (o Options) Has(id OptionID) bool {
	_, ok := o.Get(id)
	return ok
}

// Uint reads the first option with the number as an unsigned integer (RFC 7252,
// Section 3.2); false when it is absent or longer than four bytes.
func (o Options) Uint(id OptionID) (uint32, bool) {
	b, ok := o.Get(id)
	if !ok || len(b) > 4 {
		return 0, false
	}
	return decodeUint(b), true
}

// Values returns the values of all options with the number, in order.
func (o Options) Values(id OptionID) [][]byte {
	var out [][]byte
	for i := range o {
		if o[i].ID == id {
			out = append(out, o[i].Value)
		}
	}
	return out
}

// Strings returns all options with the number as text, in order.
func (o Options) Strings(id OptionID) []string {
	var out []string
	for i := range o {
		if o[i].ID == id {
			out = append(out, string(o[i].Value))
		}
	}
	return out
}

// Path returns the segments of the Uri-Path. They are data of the peer: a
// segment may hold a slash.
func (o Options) Path() []string { return o.Strings(UriPath) }

// Queries returns the arguments of the Uri-Query, "name=value" as a rule.
func (o Options) Queries() []string { return o.Strings(UriQuery) }

// ContentFormat returns the Content-Format; false when there is none.
func (o Options) ContentFormat() (Format, bool) {
	v, ok := o.Uint(ContentFormatOption)
	if !ok || v > 0xffff {
		return 0, false
	}
	return Format(v), true
}

// Clone returns a copy that shares no memory with o.
func (o Options) Clone() Options {
	if o == nil {
		return nil
	}
	out := make(Options, len(o))
	for i := range o {
		out[i] = Option{o[i].ID, bytes.Clone(o[i].Value)}
	}
	return out
}

// Unusable returns the first critical option that is not understood: unknown
// both to the table of this package and to more, of a wrong length, or repeated
// where it must not be (RFC 7252, Sections 5.4.1, 5.4.3 and 5.4.5). A text
// option that is not UTF-8 counts as one.
func (o Options) Unusable(more ...OptionID) (OptionID, bool) {
	for i := range o {
		id := o[i].ID
		if !id.Critical() || slices.Contains(more, id) {
			continue
		}
		if !o.usable(i) {
			return id, true
		}
	}
	return 0, false
}

// DropUnusable removes the elective options that a recipient must ignore:
// those of a wrong length and the repetitions of options that must not be
// repeated (RFC 7252, Sections 5.4.1, 5.4.3 and 5.4.5). Unknown ones stay, for
// handlers that know more.
func (o *Options) DropUnusable() {
	s := *o
	for i := range s {
		if _, known := s[i].ID.rule(); known && !s[i].ID.Critical() && !s.usable(i) {
			out := slices.Clone(s[:i])
			for j := i + 1; j < len(s); j++ {
				_, known := s[j].ID.rule()
				if !known || s[j].ID.Critical() || s.usable(j) {
					out = append(out, s[j])
				}
			}
			*o = out
			return
		}
	}
}

// usable says whether the option at i is known, of an allowed length and no
// forbidden repetition.
func (o Options) usable(i int) bool {
	r, known := o[i].ID.rule()
	if !known {
		return false
	}
	if n := len(o[i].Value); n < r.min || n > r.max {
		return false
	}
	if !r.repeat && i > 0 && o[i-1].ID == o[i].ID {
		return false
	}
	switch o[i].ID {
	case UriHost, UriPath, UriQuery, ProxyUri, ProxyScheme, LocationPath, LocationQuery:
		return utf8.Valid(o[i].Value)
	}
	return true
}

// Add inserts an option after those with the same or a smaller number. The
// value is kept, not copied.
func (o *Options) Add(id OptionID, value []byte) {
	i := len(*o)
	for i > 0 && (*o)[i-1].ID > id {
		i--
	}
	out := make(Options, len(*o)+1)
	copy(out, (*o)[:i])
	out[i] = Option{id, value}
	copy(out[i+1:], (*o)[i:])
	*o = out
}

// AddString is [Options.Add] for text.
func (o *Options) AddString(id OptionID, s string) { o.Add(id, []byte(s)) }

// Set replaces all options with the number by one.
func (o *Options) Set(id OptionID, value []byte) {
	o.Remove(id)
	o.Add(id, value)
}

// SetUint is [Options.Set] for unsigned integers, in their shortest form (RFC
// 7252, Section 3.2).
func (o *Options) SetUint(id OptionID, v uint32) { o.Set(id, encodeUint(v)) }

// SetContentFormat sets the Content-Format.
func (o *Options) SetContentFormat(f Format) { o.SetUint(ContentFormatOption, uint32(f)) }

// Remove takes out all options with the number.
func (o *Options) Remove(id OptionID) {
	if !o.Has(id) {
		return
	}
	out := make(Options, 0, len(*o))
	for _, opt := range *o {
		if opt.ID != id {
			out = append(out, opt)
		}
	}
	*o = out
}

// SetPath replaces the Uri-Path by the segments, as they are: none is split.
func (o *Options) SetPath(segments ...string) {
	o.Remove(UriPath)
	for _, s := range segments {
		o.AddString(UriPath, s)
	}
}

// PathOf splits a path such as "/ace-group/gp1" for [Options.SetPath]. The root
// has no segments.
func PathOf(path string) []string {
	path = strings.TrimPrefix(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func decodeUint(b []byte) uint32 {
	var v uint32
	for _, c := range b {
		v = v<<8 | uint32(c)
	}
	return v
}

func encodeUint(v uint32) []byte {
	switch {
	case v == 0:
		return []byte{}
	case v < 1<<8:
		return []byte{byte(v)}
	case v < 1<<16:
		return []byte{byte(v >> 8), byte(v)}
	case v < 1<<24:
		return []byte{byte(v >> 16), byte(v >> 8), byte(v)}
	}
	return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// Block is the value of a Block1 or Block2 option (RFC 7959, Section 2.2).
type Block struct {
	Num  uint32 // number of the block, 20 bits
	More bool
	SZX  uint8 // size is 1 << (SZX + 4) bytes; 0 to 6
}

// Size is the size of the block in bytes: 16 to 1024.
func (b Block) Size() int { return 16 << b.SZX }

// Offset is where the block begins in the body.
func (b Block) Offset() int { return int(b.Num) << (b.SZX + 4) }

// Block reads a Block1 or Block2 option: nil when it is absent, and an error
// for the reserved size exponent 7 and for values that are too long.
func (o Options) Block(id OptionID) (*Block, error) {
	raw, ok := o.Get(id)
	if !ok {
		return nil, nil
	}
	if len(raw) > 3 {
		return nil, fmt.Errorf("coap: block option of %d bytes", len(raw))
	}
	v := decodeUint(raw)
	if v&7 == 7 {
		return nil, fmt.Errorf("coap: reserved block size exponent")
	}
	return &Block{Num: v >> 4, More: v&8 != 0, SZX: uint8(v & 7)}, nil
}

// SetBlock sets a Block1 or Block2 option.
func (o *Options) SetBlock(id OptionID, b Block) {
	v := b.Num<<4 | uint32(b.SZX&7)
	if b.More {
		v |= 8
	}
	o.SetUint(id, v)
}
