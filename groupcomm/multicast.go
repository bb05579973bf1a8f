package groupcomm

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ControlGroup is where one-to-many rekeys are sent by IP multicast: the
// 'control_group_uri' (RFC 9594, Section 4.3.1).
type ControlGroup struct {
	Addr netip.AddrPort
	Path []string
}

// defaultCoAPPort is that of plain CoAP (RFC 7252, Section 6.1).
const defaultCoAPPort = 5683

// CheckControlGroupURI checks a 'control_group_uri'.
func CheckControlGroupURI(s string) error {
	_, err := ParseControlGroupURI(s)
	return err
}

// ParseControlGroupURI reads coap://MULTICAST[:PORT]/PATH. The messages protect
// themselves, so the scheme is that of plain CoAP.
func ParseControlGroupURI(s string) (*ControlGroup, error) {
	if len(s) > maxNameLen {
		return nil, errors.New("too long")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "coap" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("must be coap://ADDRESS:PORT/PATH")
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil || !a.IsMulticast() {
		return nil, fmt.Errorf("%q is no address for IP multicast", u.Hostname())
	}
	c := &ControlGroup{}
	port := uint64(defaultCoAPPort)
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
			return nil, fmt.Errorf("port %q", p)
		}
	}
	c.Addr = netip.AddrPortFrom(a, uint16(port))
	if p := strings.Trim(u.Path, "/"); p != "" {
		c.Path = strings.Split(p, "/")
	}
	if len(c.Path) == 0 {
		return nil, errors.New("a path is needed")
	}
	return c, nil
}
