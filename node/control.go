package node

import (
	"net/url"
	"slices"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Taker is a [Transport] over which the other end can send requests. The
// transports of [DialDTLS] and [DialUDP] are.
type Taker interface {
	// Take has fn answer them, one after the other; nil: nobody.
	Take(fn func(*coap.Request) *coap.Response)
}

// serve answers requests of the Group Manager to the control_uri over t.
func (m *Member) serve(t Transport) {
	if taker, ok := t.(Taker); ok && m.control != nil {
		taker.Take(m.onControl)
	}
}

// controlPath is the path of a control_uri; that of a URI without one is the
// default (RFC 9594, Section 4.3.1).
func controlPath(group, uri string) ([]string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	p := strings.TrimPrefix(u.EscapedPath(), "/")
	if p == "" {
		return []string{"ace-group", group, "node"}, nil
	}
	path := strings.Split(p, "/")
	for i, segment := range path {
		if path[i], err = url.PathUnescape(segment); err != nil {
			return nil, err
		}
	}
	return path, nil
}

// onControl takes a rekey or the notice of an eviction. Over which association
// it came is proof of who sent it.
//
// RFC 9594, Section 6.1: POST with a rekey message, answered by 2.04 when it was
// taken; draft-ietf-ace-key-groupcomm-oscore-21, Section 10: DELETE.
func (m *Member) onControl(req *coap.Request) *coap.Response {
	if !slices.Equal(req.Path(), m.control) {
		return &coap.Response{Code: coap.NotFound}
	}
	if _, _, err := m.joined(); err != nil {
		return &coap.Response{Code: coap.NotFound} // nobody is there any more
	}
	switch req.Code {
	case coap.POST:
		if groupcomm.IsDeletionNotice(req.Payload) {
			m.endNoticed(groupcomm.ErrGroupDeleted)
			return &coap.Response{Code: coap.Changed}
		}
		o, err := offerRekey(req.Payload, ViaControl)
		if err != nil {
			m.emit(Event{Kind: Refused, Via: ViaControl, Err: err})
			return &coap.Response{Code: coap.BadRequest}
		}
		m.take(o)
		return &coap.Response{Code: coap.Changed}
	case coap.DELETE:
		m.endNoticed(groupcomm.ErrTerminated)
		return &coap.Response{Code: coap.Deleted}
	}
	return &coap.Response{Code: coap.MethodNotAllowed}
}

func (m *Member) endNoticed(p *coap.Problem) {
	m.end(&Error{Op: "notice at the control_uri", Code: p.Code, ID: p.ID})
}
