package coap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Keys of concise problem details (RFC 9290, Section 2), and the custom key and
// its inner key of RFC 9594, Section 4.1.2.
const (
	problemTitle     = -1
	problemDetail    = -2
	problemGroupcomm = 0
	problemErrorID   = 0
)

// Problem is a row of a table of errors that a peer may see: a fixed code with
// an error identifier of the ACE Groupcomm Errors registry (RFC 9594, Section
// 9). Rows are values, one each, wrapped where they happen.
type Problem struct {
	Code  Code
	ID    int
	Title string // for people who read logs; not sent
}

func (p *Problem) Error() string {
	if p.Title == "" {
		return fmt.Sprintf("%v error %d", p.Code, p.ID)
	}
	return p.Code.String() + " " + p.Title
}

func (p *Problem) response(detail string) *Response {
	r := &Response{Code: p.Code, Payload: (&ProblemBody{ID: p.ID, Detail: detail}).Encode()}
	r.Options.SetContentFormat(ProblemDetails)
	return r
}

// ProblemBody is what a peer sees of a problem: Content-Format 257.
type ProblemBody struct {
	ID     int    // error identifier of ACE Groupcomm; -1 when there is none
	Title  string // "" when absent
	Detail string // "" when absent
}

// Encode writes {? 0: {0: ID}, ? -1: title, ? -2: detail} as deterministic CBOR
// (RFC 8949, Section 4.2.1).
func (p *ProblemBody) Encode() []byte {
	pairs := byte(0)
	var b []byte
	if p.ID >= 0 {
		pairs++
		b = append(b, 0x00, 0xa1, 0x00)
		b = appendHead(b, 0, uint64(p.ID))
	}
	text := func(key byte, s string) {
		if s != "" {
			pairs++
			b = append(b, key)
			b = appendHead(b, 0x60, uint64(len(s)))
			b = append(b, s...)
		}
	}
	text(0x20, p.Title)
	text(0x21, p.Detail)
	return append([]byte{0xa0 | pairs}, b...)
}

// appendHead writes the head of a CBOR item in its shortest form.
func appendHead(b []byte, major byte, v uint64) []byte {
	switch {
	case v < 24:
		return append(b, major|byte(v))
	case v < 1<<8:
		return append(b, major|24, byte(v))
	case v < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(v))
	case v < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), v)
}

// DecodeProblem reads problem details. Other keys are ignored (RFC 9290,
// Section 2: extension points); duplicate keys, trailing bytes and indefinite
// lengths are errors. Text in a language tag (RFC 9290, Appendix A) is read as
// text.
func DecodeProblem(b []byte) (*ProblemBody, error) {
	if len(b) > maxProblem {
		return nil, fmt.Errorf("coap: problem details of %d bytes", len(b))
	}
	mode, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxNestedLevels:  8,
		MaxMapPairs:      32,
		MaxArrayElements: 32,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic("coap: internal error: " + err.Error())
	}
	if len(b) == 0 || b[0]>>5 != 5 {
		return nil, errors.New("coap: problem details: not a map")
	}
	var top map[any]cbor.RawMessage
	if err := mode.Unmarshal(b, &top); err != nil {
		return nil, fmt.Errorf("coap: problem details: %w", err)
	}
	p := &ProblemBody{ID: -1}
	for key, raw := range top {
		switch key {
		case uint64(problemGroupcomm):
			var inner map[any]cbor.RawMessage
			if raw[0]>>5 != 5 {
				return nil, errors.New("coap: problem details: error identifier not in a map")
			}
			if err := mode.Unmarshal(raw, &inner); err != nil {
				return nil, fmt.Errorf("coap: problem details: %w", err)
			}
			id, ok := inner[uint64(problemErrorID)]
			if !ok {
				continue
			}
			var v uint16
			if id[0]>>5 != 0 {
				return nil, errors.New("coap: problem details: error identifier is not unsigned")
			}
			if err := mode.Unmarshal(id, &v); err != nil {
				return nil, fmt.Errorf("coap: problem details: error identifier: %w", err)
			}
			p.ID = int(v)
		case int64(problemTitle):
			if p.Title, err = problemText(mode, raw); err != nil {
				return nil, err
			}
		case int64(problemDetail):
			if p.Detail, err = problemText(mode, raw); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// problemText reads oltext = text / #6.38([language, text, ? direction]).
func problemText(mode cbor.DecMode, raw cbor.RawMessage) (string, error) {
	if len(raw) > 2 && raw[0] == 0xd8 && raw[1] == 38 {
		var parts []cbor.RawMessage
		if err := mode.Unmarshal(raw[2:], &parts); err != nil || len(parts) < 2 {
			return "", errors.New("coap: problem details: malformed language tag")
		}
		raw = parts[1]
	}
	var s string
	if raw[0]>>5 != 3 {
		return "", errors.New("coap: problem details: text expected")
	}
	if err := mode.Unmarshal(raw, &s); err != nil || !utf8.ValidString(s) {
		return "", errors.New("coap: problem details: malformed text")
	}
	return s, nil
}
