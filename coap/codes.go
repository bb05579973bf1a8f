package coap

import "fmt"

// Code is the code of a message, c.dd: three bits of class and five of detail
// (RFC 7252, Section 3).
type Code uint8

// Empty is the code of empty messages: pings, resets and bare
// acknowledgements.
const Empty Code = 0

// Methods: RFC 7252, Section 12.1.1, and RFC 8132, Section 4.
const (
	GET    Code = 0x01
	POST   Code = 0x02
	PUT    Code = 0x03
	DELETE Code = 0x04
	FETCH  Code = 0x05
	PATCH  Code = 0x06
	IPATCH Code = 0x07
)

// Success codes: RFC 7252, Section 5.9.1; Continue: RFC 7959, Section 2.9.1.
const (
	Created  Code = 0x41
	Deleted  Code = 0x42
	Valid    Code = 0x43
	Changed  Code = 0x44
	Content  Code = 0x45
	Continue Code = 0x5f
)

// Client errors: RFC 7252, Section 5.9.2; RequestEntityIncomplete: RFC 7959,
// Section 2.9.2; Conflict and UnprocessableEntity: RFC 8132, Section 3.4;
// TooManyRequests: RFC 8516.
const (
	BadRequest               Code = 0x80
	Unauthorized             Code = 0x81
	BadOption                Code = 0x82
	Forbidden                Code = 0x83
	NotFound                 Code = 0x84
	MethodNotAllowed         Code = 0x85
	NotAcceptable            Code = 0x86
	RequestEntityIncomplete  Code = 0x88
	Conflict                 Code = 0x89
	PreconditionFailed       Code = 0x8c
	RequestEntityTooLarge    Code = 0x8d
	UnsupportedContentFormat Code = 0x8f
	UnprocessableEntity      Code = 0x96
	TooManyRequests          Code = 0x9d
)

// Server errors: RFC 7252, Section 5.9.3; HopLimitReached: RFC 8768.
const (
	InternalServerError  Code = 0xa0
	NotImplemented       Code = 0xa1
	BadGateway           Code = 0xa2
	ServiceUnavailable   Code = 0xa3
	GatewayTimeout       Code = 0xa4
	ProxyingNotSupported Code = 0xa5
	HopLimitReached      Code = 0xa8
)

// Class is the first digit: 0 for methods and the empty code, 2 success, 4
// client error, 5 server error.
func (c Code) Class() uint8 { return uint8(c >> 5) }

// IsRequest says whether c is a method.
func (c Code) IsRequest() bool { return c.Class() == 0 && c != Empty }

// IsSuccess says whether c is 2.xx.
func (c Code) IsSuccess() bool { return c.Class() == 2 }

// IsResponse says whether c is 2.xx, 4.xx or 5.xx.
func (c Code) IsResponse() bool {
	class := c.Class()
	return class == 2 || class == 4 || class == 5
}

// String is the name of a method ("GET") or the dotted form of any other code
// ("4.04").
func (c Code) String() string {
	switch c {
	case GET:
		return "GET"
	case POST:
		return "POST"
	case PUT:
		return "PUT"
	case DELETE:
		return "DELETE"
	case FETCH:
		return "FETCH"
	case PATCH:
		return "PATCH"
	case IPATCH:
		return "iPATCH"
	}
	return fmt.Sprintf("%d.%02d", c>>5, c&0x1f)
}

// Format is a CoAP Content-Format.
type Format uint16

// Content-Formats of the IANA registry that the gateway speaks.
const (
	TextPlain      Format = 0
	COSEEncrypt0   Format = 16  // application/cose; cose-type="cose-encrypt0"
	ACE            Format = 19  // application/ace+cbor
	LinkFormat     Format = 40  // application/link-format
	CBOR           Format = 60  // application/cbor
	CWT            Format = 61  // application/cwt
	ProblemDetails Format = 257 // application/concise-problem-details+cbor
	ACEGroupcomm   Format = 261 // application/ace-groupcomm+cbor
	ACETRL         Format = 262 // application/ace-trl+cbor

	// Of experimental use, for the two ACE formats before they were registered.
	LegacyACE          Format = 65000
	LegacyACEGroupcomm Format = 65501
)
