package delegate

import (
	"net"
	"net/url"
)

// address reads the URI of a Group Manager: whether it is reached with DTLS, and where.
func address(uri string) (secure bool, addr string) {
	u, err := url.Parse(uri)
	if err != nil || uri == "" {
		return false, ""
	}
	port := u.Port()
	secure = u.Scheme == "coaps"
	switch {
	case port != "":
	case secure:
		port = "5684"
	default:
		port = "5683"
	}
	return secure, net.JoinHostPort(u.Hostname(), port)
}

// At makes a Group's place of the URI of its Group Manager; "" is this gateway.
func (g Group) At(uri string) Group {
	g.GM = uri
	g.Secure, g.Addr = address(uri)
	return g
}
