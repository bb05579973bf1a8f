package dtls12

import (
	"bytes"
	"slices"

	"github.com/seed4911071e/groupgate/record"
)

// Types of handshake messages (RFC 5246, Section 7.4; RFC 6347, Section 4.3.2).
const (
	typeClientHello        = 1
	typeServerHello        = 2
	typeHelloVerifyRequest = 3
	typeCertificate        = 11
	typeServerKeyExchange  = 12
	typeCertificateRequest = 13
	typeServerHelloDone    = 14
	typeCertificateVerify  = 15
	typeClientKeyExchange  = 16
	typeFinished           = 20
)

// Extensions (IANA TLS ExtensionType Values).
const (
	extGroups         = 10     // supported_groups, RFC 8422
	extPointFormats   = 11     // ec_point_formats, RFC 8422
	extSignatures     = 13     // signature_algorithms, RFC 5246
	extClientCertType = 19     // RFC 7250
	extServerCertType = 20     // RFC 7250
	extExtendedMaster = 23     // RFC 7627
	extConnectionID   = 54     // RFC 9146
	extRenegotiation  = 0xff01 // RFC 5746
)

const (
	x509Certificate   = 0    // certificate type (RFC 7250, Section 3)
	rawPublicKey      = 2    // another
	scsvRenegotiation = 0xff // TLS_EMPTY_RENEGOTIATION_INFO_SCSV (RFC 5746)
)

// ClientHello is one (RFC 6347, Section 4.2.1). Fields of extensions are nil
// where there is none.
type ClientHello struct {
	version  int
	Random   [32]byte
	session  []byte
	Cookie   []byte
	suites   []record.Suite
	params   []byte // suites and compression methods as sent, for the cookie; nil: they are not there yet
	groups   []int
	formats  []byte
	schemes  []int
	shows    []byte // certificate types that it can show; nil: X.509 alone (RFC 7250, Section 4.1)
	takes    []byte // and that it can take
	extended bool   // extended_master_secret
	cid      []byte // connection_id; empty: it wants none
	secure   bool   // renegotiation_info, or the suite that says it

	seq     uint16 // of the message
	record  uint64 // sequence number of its record
	message []byte // the whole of it
}

// ReadClientHello reads a record of epoch 0 as a ClientHello in one piece; nil
// when it is none, or one that is malformed.
func ReadClientHello(r *record.Record) *ClientHello {
	if r.Type != record.Handshake || r.Epoch != 0 || len(r.Fragment) > headerSize+maxHello {
		return nil
	}
	f, rest, ok := nextFragment(r.Fragment)
	if !ok || len(rest) > 0 || f.kind != typeClientHello || f.offset != 0 || len(f.body) != f.length {
		return nil
	}
	h, err := decodeClientHello(f.body)
	if err != nil {
		return nil
	}
	h.seq, h.record, h.message = f.seq, r.Seq, bytes.Clone(r.Fragment)
	return h
}

// decodeClientHello reads the body of a ClientHello. What it returns refers to b.
func decodeClientHello(b []byte) (*ClientHello, error) {
	r := reader{b: b}
	h := readFront(&r)
	rest := r.b
	suites := reader{b: r.vector(2, 2, 1<<16-2)}
	for len(suites.b) > 0 {
		s := record.Suite(suites.uint(2))
		h.secure = h.secure || s == scsvRenegotiation
		h.suites = append(h.suites, s)
	}
	if suites.bad || !bytes.Contains(r.vector(1, 1, 255), []byte{0}) {
		return nil, errDecode
	}
	h.params = rest[:len(rest)-len(r.b)]
	if len(r.b) == 0 && !r.bad {
		return h, nil
	}
	err := extensions(&r, func(kind int, e *reader) {
		switch kind {
		case extGroups:
			h.groups = numbers(e)
		case extPointFormats:
			h.formats = e.vector(1, 1, 255)
		case extSignatures:
			h.schemes = numbers(e)
		case extClientCertType:
			h.shows = e.vector(1, 1, 255)
		case extServerCertType:
			h.takes = e.vector(1, 1, 255)
		case extExtendedMaster:
			h.extended = true
		case extConnectionID:
			h.cid = append([]byte{}, e.vector(1, 0, 255)...)
		case extRenegotiation:
			// RFC 5746, Section 3.6: in the first handshake it is empty.
			h.secure = len(e.vector(1, 0, 255)) == 0
			e.bad = e.bad || !h.secure
		default:
			e.b = nil
		}
	})
	if err != nil {
		return nil, err
	}
	return h, r.end()
}

// readFront reads what is in front of all ClientHellos: what a cookie covers, and
// the cookie.
func readFront(r *reader) *ClientHello {
	h := &ClientHello{version: r.uint(2)}
	copy(h.Random[:], r.take(32))
	h.session = r.vector(1, 0, maxSession)
	h.Cookie = r.vector(1, 0, maxCookie)
	return h
}

// extensions reads a list of extensions. None may be there twice (RFC 5246,
// Section 7.4.1.4).
func extensions(r *reader, each func(kind int, e *reader)) error {
	list := reader{b: r.vector(2, 0, 1<<16-1)}
	var seen []int
	for len(list.b) > 0 {
		kind := list.uint(2)
		e := reader{b: list.vector(2, 0, 1<<16-1)}
		if list.bad || slices.Contains(seen, kind) {
			return errDecode
		}
		seen = append(seen, kind)
		if each(kind, &e); e.end() != nil {
			return errDecode
		}
	}
	if r.bad {
		return errDecode
	}
	return nil
}

// numbers reads a vector of numbers of two bytes.
func numbers(r *reader) []int {
	list := reader{b: r.vector(2, 2, 1<<16-2)}
	out := []int{}
	for len(list.b) > 0 {
		out = append(out, list.uint(2))
	}
	r.bad = r.bad || list.bad
	return out
}

// encode is the body of a ClientHello, of a client of ours.
func (h *ClientHello) encode() []byte {
	b := appendUint(nil, 2, version)
	b = append(b, h.Random[:]...)
	b = appendVector(b, 1, nil) // session ID
	b = appendVector(b, 1, h.Cookie)
	var list []byte
	for _, s := range h.suites {
		list = appendUint(list, 2, int(s))
	}
	b = appendVector(b, 2, appendUint(list, 2, scsvRenegotiation))
	b = appendVector(b, 1, []byte{0})
	var ext []byte
	ext = appendExtension(ext, extGroups, appendVector(nil, 2, words(h.groups)))
	ext = appendExtension(ext, extPointFormats, []byte{1, 0})
	ext = appendExtension(ext, extSignatures, appendVector(nil, 2, words(h.schemes)))
	if h.shows != nil {
		ext = appendExtension(ext, extClientCertType, appendVector(nil, 1, h.shows))
	}
	if h.takes != nil {
		ext = appendExtension(ext, extServerCertType, appendVector(nil, 1, h.takes))
	}
	ext = appendExtension(ext, extExtendedMaster, nil)
	if h.cid != nil {
		ext = appendExtension(ext, extConnectionID, appendVector(nil, 1, h.cid))
	}
	return appendVector(b, 2, ext)
}

func words(list []int) (b []byte) {
	for _, v := range list {
		b = appendUint(b, 2, v)
	}
	return b
}

func appendExtension(dst []byte, kind int, body []byte) []byte {
	return appendVector(appendUint(dst, 2, kind), 2, body)
}

// serverHello is one (RFC 5246, Section 7.4.1.3).
type serverHello struct {
	version          int
	random           [32]byte
	suite            record.Suite
	extended, secure bool
	clientType       []byte // of certificate, of the client: one; nil: not negotiated
	serverType       []byte // of the server
	formats          bool
	cid              []byte // nil: not negotiated
}

func (h *serverHello) encode() []byte {
	b := appendUint(nil, 2, version)
	b = append(b, h.random[:]...)
	b = appendVector(b, 1, nil) // a session that cannot be resumed
	b = appendUint(b, 2, int(h.suite))
	b = append(b, 0)
	var ext []byte
	if h.secure {
		ext = appendExtension(ext, extRenegotiation, []byte{0})
	}
	if h.extended {
		ext = appendExtension(ext, extExtendedMaster, nil)
	}
	if h.clientType != nil {
		ext = appendExtension(ext, extClientCertType, h.clientType)
	}
	if h.serverType != nil {
		ext = appendExtension(ext, extServerCertType, h.serverType)
	}
	if h.formats {
		ext = appendExtension(ext, extPointFormats, []byte{1, 0})
	}
	if h.cid != nil {
		ext = appendExtension(ext, extConnectionID, appendVector(nil, 1, h.cid))
	}
	if ext == nil {
		return b // a client that sent no extensions may not know them
	}
	return appendVector(b, 2, ext)
}

func decodeServerHello(b []byte) (*serverHello, error) {
	r := reader{b: b}
	h := &serverHello{version: r.uint(2)}
	copy(h.random[:], r.take(32))
	r.vector(1, 0, maxSession)
	h.suite = record.Suite(r.uint(2))
	if r.uint(1) != 0 || r.bad {
		return nil, errDecode
	}
	if len(r.b) == 0 {
		return h, nil
	}
	err := extensions(&r, func(kind int, e *reader) {
		switch kind {
		case extRenegotiation:
			h.secure = len(e.vector(1, 0, 255)) == 0
			e.bad = e.bad || !h.secure
		case extExtendedMaster:
			h.extended = true
		case extClientCertType:
			h.clientType = e.take(1)
		case extServerCertType:
			h.serverType = e.take(1)
		case extPointFormats:
			h.formats = bytes.Contains(e.vector(1, 1, 255), []byte{0})
		case extConnectionID:
			h.cid = append([]byte{}, e.vector(1, 0, 255)...)
		default:
			e.bad = true // RFC 5246, Section 7.4.1.4: nothing that was not asked for
		}
	})
	if err != nil {
		return nil, err
	}
	return h, r.end()
}

// encodeVerifyRequest is the body of a HelloVerifyRequest (RFC 6347, Section
// 4.2.1).
func encodeVerifyRequest(cookie []byte) []byte {
	return appendVector(appendUint(nil, 2, version10), 1, cookie)
}

func decodeVerifyRequest(b []byte) (cookie []byte, err error) {
	r := reader{b: b}
	if v := r.uint(2); v != version10 && v != version {
		return nil, errDecode
	}
	cookie = r.vector(1, 0, maxCookie)
	return cookie, r.end()
}
