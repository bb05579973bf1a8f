package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
)

// Schemes of upstreams: RFC 7252, Section 6, and RFC 8323, Section 8.
const (
	CoAP     = "coap"
	CoAPS    = "coaps"
	CoAPTCP  = "coap+tcp"
	CoAPSTCP = "coaps+tcp"
)

// Target is where a request is to go.
type Target struct {
	Scheme string
	Host   string // a name in lower case, or an address without brackets
	Port   uint16
}

// DefaultPort is that of a scheme; 0: the scheme is none of ours.
func DefaultPort(scheme string) uint16 {
	switch scheme {
	case CoAP, CoAPTCP:
		return 5683
	case CoAPS, CoAPSTCP:
		return 5684
	}
	return 0
}

// String is the URI of the target without a path.
func (t Target) String() string {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return t.Scheme + "://" + host + ":" + strconv.Itoa(int(t.Port))
}

// addr is the host when it is an address.
func (t Target) addr() (netip.Addr, bool) {
	a, err := netip.ParseAddr(t.Host)
	return a, err == nil
}

// secure says whether the association with the target proves who we are.
func (t Target) secure() bool { return t.Scheme == CoAPS || t.Scheme == CoAPSTCP }

// ParseTarget reads scheme://host[:port][/path] with one of the four schemes, and
// returns the segments of the path.
func ParseTarget(uri string) (Target, []string, error) {
	t, o, err := parseURI(uri)
	if err != nil {
		return t, nil, err
	}
	return t, o.Path(), nil
}

var errURI = errors.New("malformed URI")

// parseURI takes an absolute URI apart (RFC 7252, Section 6.4): the target, and
// the Uri-Path and Uri-Query options. The scheme may be any; port 0 is that of
// an unknown scheme.
func parseURI(uri string) (Target, coap.Options, error) {
	fail := func(what string) (Target, coap.Options, error) {
		return Target{}, nil, fmt.Errorf("%w: %s", errURI, what)
	}
	if uri == "" || len(uri) > maxURI {
		return fail("length")
	}
	if strings.ContainsFunc(uri, excluded) {
		return fail("a character that has to be percent-encoded")
	}
	if strings.Contains(uri, "#") { // RFC 7252, Section 6.4, step 1: no fragment
		return fail("fragment")
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		return fail("syntax")
	case u.Scheme == "":
		return fail("not absolute")
	case u.Opaque != "" || u.Host == "" || u.Hostname() == "":
		return fail("no host")
	case u.User != nil: // RFC 7252, Section 6.1: the syntax has none
		return fail("user information")
	}
	t := Target{Scheme: u.Scheme, Port: DefaultPort(u.Scheme)}
	if t.Host, err = normalHost(u.Hostname()); err != nil {
		return fail("host")
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return fail("port")
		}
		t.Port = uint16(n)
	}
	var o coap.Options
	for _, s := range coap.PathOf(u.EscapedPath()) {
		v, err := url.PathUnescape(s)
		if err != nil || len(v) > maxSegment || v == "." || v == ".." {
			return fail("path")
		}
		o = append(o, coap.Option{ID: coap.UriPath, Value: []byte(v)})
	}
	if u.RawQuery != "" || u.ForceQuery {
		for s := range strings.SplitSeq(u.RawQuery, "&") {
			v, err := url.PathUnescape(s) // "+" is itself
			if err != nil || len(v) > maxSegment {
				return fail("query")
			}
			o = append(o, coap.Option{ID: coap.UriQuery, Value: []byte(v)})
		}
	}
	return t, o, nil
}

// excluded are the characters that no URI has (RFC 3986, Section 2).
func excluded(r rune) bool {
	switch r {
	case '<', '>', '"', '\\', '^', '`', '{', '|', '}':
		return true
	}
	return r <= ' ' || r >= 0x7f
}

// normalHost gives a host the one form in which it is compared: an address in
// its shortest, an IPv4 address never in an IPv6 one, a name in lower case
// without a dot at the end.
func normalHost(host string) (string, error) {
	if strings.HasPrefix(host, "[") {
		host = strings.TrimSuffix(host[1:], "]")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "", errURI
		}
		return a.Unmap().String(), nil
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	}) {
		return "", errURI
	}
	// What resolvers read as an address in an old notation is no name: 127.1,
	// 0x7f000001.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" || last[0] >= '0' && last[0] <= '9' {
		return "", errURI
	}
	return host, nil
}

// destination finds out where a request with a proxy option wants to go, and
// returns its options without what said so (RFC 7252, Section 5.10.2).
func destination(o coap.Options) (Target, coap.Options, error) {
	bad := func(err error) (Target, coap.Options, error) {
		return Target{}, nil, coap.Errorf(coap.BadRequest, "%s", err)
	}
	if raw, ok := o.Get(coap.ProxyUri); ok {
		// It takes precedence over all Uri options.
		t, parts, err := parseURI(string(raw))
		if err != nil {
			return bad(err)
		}
		out := without(o, coap.ProxyUri, coap.ProxyScheme, coap.UriHost, coap.UriPort, coap.UriPath, coap.UriQuery)
		for _, p := range parts {
			out.Add(p.ID, p.Value)
		}
		return t, out, nil
	}
	scheme, _ := o.Get(coap.ProxyScheme)
	host, ok := o.Get(coap.UriHost)
	if !ok {
		// RFC 7252, Section 5.10.1: the default is the address of the request,
		// which is ours.
		return bad(errors.New("Proxy-Scheme without Uri-Host"))
	}
	name, err := normalHost(string(host))
	if err != nil {
		return bad(errors.New("malformed Uri-Host"))
	}
	t := Target{Scheme: strings.ToLower(string(scheme)), Host: name}
	t.Port = DefaultPort(t.Scheme)
	if o.Has(coap.UriPort) {
		v, ok := o.Uint(coap.UriPort)
		if !ok || v == 0 || v > 0xffff {
			return bad(errors.New("malformed Uri-Port"))
		}
		t.Port = uint16(v)
	}
	for _, s := range o.Path() {
		if s == "." || s == ".." { // RFC 7252, Section 5.10.1
			return bad(errors.New("path"))
		}
	}
	return t, without(o, coap.ProxyScheme, coap.UriHost, coap.UriPort), nil
}

// without is a copy of o that lacks some options.
func without(o coap.Options, ids ...coap.OptionID) coap.Options {
	out := make(coap.Options, 0, len(o)+4)
	for _, x := range o {
		if !slices.Contains(ids, x.ID) {
			out = append(out, x)
		}
	}
	return out
}
