package coap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// WebLink is one entry of a link-format document (RFC 6690, Section 2).
type WebLink struct {
	Target string // URI reference: "/ace-group/gp1"
	Attrs  []LinkAttr
}

// LinkAttr is a parameter of a link: rt="core.osc.gm", ct=261, obs.
type LinkAttr struct {
	Name  string
	Value string
	Flag  bool // the parameter stands alone, as obs does
}

// Attr returns the value of the first parameter with the name.
func (l WebLink) Attr(name string) (string, bool) {
	for _, a := range l.Attrs {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// EncodeLinks writes a document (RFC 6690, Section 2). Values that are numbers
// stand bare, all others in quotes. Links that cannot be written (a target with
// ">", a name that is no token) are an error of the caller.
func EncodeLinks(links []WebLink) ([]byte, error) {
	var b []byte
	for i, l := range links {
		if i > 0 {
			b = append(b, ',')
		}
		if strings.ContainsFunc(l.Target, badTarget) {
			return nil, fmt.Errorf("coap: link target %q", l.Target)
		}
		b = append(b, '<')
		b = append(b, l.Target...)
		b = append(b, '>')
		for _, a := range l.Attrs {
			if !isParmName(a.Name) {
				return nil, fmt.Errorf("coap: link parameter name %q", a.Name)
			}
			b = append(b, ';')
			b = append(b, a.Name...)
			switch {
			case a.Flag:
			case isCardinal(a.Value):
				b = append(b, '=')
				b = append(b, a.Value...)
			default:
				b = append(b, '=', '"')
				for j := range len(a.Value) {
					c := a.Value[j]
					if c < ' ' || c == 0x7f {
						return nil, fmt.Errorf("coap: control character in link parameter %q", a.Name)
					}
					if c == '"' || c == '\\' {
						b = append(b, '\\')
					}
					b = append(b, c)
				}
				b = append(b, '"')
			}
		}
	}
	return b, nil
}

// ParseLinks reads a document strictly: no white space between its parts (RFC
// 6690, Section 2), no empty entries. An empty document has no links.
func ParseLinks(doc []byte) ([]WebLink, error) {
	s := string(doc)
	if s == "" {
		return nil, nil
	}
	var links []WebLink
	for {
		if len(links) == maxLinks {
			return nil, fmt.Errorf("coap: more than %d links", maxLinks)
		}
		if !strings.HasPrefix(s, "<") {
			return nil, errors.New(`coap: link: "<" expected`)
		}
		end := strings.IndexByte(s, '>')
		if end < 0 {
			return nil, errors.New(`coap: link: ">" missing`)
		}
		l := WebLink{Target: s[1:end]}
		if strings.ContainsFunc(l.Target, badTarget) {
			return nil, errors.New("coap: link: bad target")
		}
		s = s[end+1:]
		for strings.HasPrefix(s, ";") {
			if len(l.Attrs) == maxLinkAttributes {
				return nil, fmt.Errorf("coap: link with more than %d parameters", maxLinkAttributes)
			}
			a, rest, err := parseAttr(s[1:])
			if err != nil {
				return nil, err
			}
			l.Attrs = append(l.Attrs, a)
			s = rest
		}
		links = append(links, l)
		if s == "" {
			return links, nil
		}
		if s[0] != ',' {
			return nil, errors.New(`coap: link: "," expected`)
		}
		s = s[1:]
	}
}

func parseAttr(s string) (a LinkAttr, rest string, err error) {
	n := 0
	for n < len(s) && isToken(s[n]) {
		n++
	}
	if n < len(s) && s[n] == '*' { // RFC 8288: title*
		n++
	}
	a.Name, s = s[:n], s[n:]
	if !isParmName(a.Name) {
		return a, "", errors.New("coap: link: parameter name expected")
	}
	if !strings.HasPrefix(s, "=") {
		a.Flag = true
		return a, s, nil
	}
	s = s[1:]
	if strings.HasPrefix(s, `"`) {
		var v strings.Builder
		for i := 1; i < len(s); i++ {
			switch c := s[i]; {
			case c == '"':
				a.Value = v.String()
				return a, s[i+1:], nil
			case c == '\\' && i+1 < len(s) && s[i+1] >= ' ' && s[i+1] != 0x7f:
				i++
				v.WriteByte(s[i])
			case c < ' ' || c == 0x7f || c == '\\':
				return a, "", errors.New("coap: link: bad character in quotes")
			default:
				v.WriteByte(c)
			}
		}
		return a, "", errors.New("coap: link: quote not closed")
	}
	n = 0
	for n < len(s) && isPtoken(s[n]) {
		n++
	}
	if n == 0 {
		return a, "", errors.New("coap: link: parameter value expected")
	}
	a.Value = s[:n]
	return a, s[n:], nil
}

// FilterLinks keeps the links that match every query "name=value" (RFC 6690,
// Section 4.1): the value is compared exactly, or as a prefix when it ends with
// an asterisk; the parameters rt, if and rel hold lists separated by spaces,
// of which one element must match; href is the target. Queries without "="
// ask for a parameter to be there.
func FilterLinks(links []WebLink, queries []string) []WebLink {
	var out []WebLink
	for _, l := range links {
		if !slices.ContainsFunc(queries, func(q string) bool { return !l.matches(q) }) {
			out = append(out, l)
		}
	}
	return out
}

func (l WebLink) matches(query string) bool {
	name, want, valued := strings.Cut(query, "=")
	match := func(have string) bool {
		if prefix, ok := strings.CutSuffix(want, "*"); ok {
			return strings.HasPrefix(have, prefix)
		}
		return have == want
	}
	if name == "href" {
		return valued && match(l.Target)
	}
	for _, a := range l.Attrs {
		if a.Name != name {
			continue
		}
		if !valued {
			return true
		}
		if name == "rt" || name == "if" || name == "rel" {
			if slices.ContainsFunc(strings.Fields(a.Value), match) {
				return true
			}
		} else if match(a.Value) {
			return true
		}
	}
	return false
}

// badTarget: characters that a URI reference between angle brackets cannot
// hold.
func badTarget(r rune) bool {
	return r <= ' ' || r == '<' || r == '>' || r == '"' || r == 0x7f || r == 0xfffd
}

// isToken: parmname characters (RFC 5987, attr-char).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$&+-.^_`|~", c) >= 0
}

// isPtoken: characters of an unquoted value (RFC 6690, Section 2, ptokenchar).
func isPtoken(c byte) bool {
	return isToken(c) || strings.IndexByte("%'()*/:<=>?@[]{}", c) >= 0
}

func isParmName(s string) bool {
	s = strings.TrimSuffix(s, "*")
	if s == "" {
		return false
	}
	for i := range len(s) {
		if !isToken(s[i]) {
			return false
		}
	}
	return true
}

// isCardinal: decimal numbers without leading zeros (RFC 6690, Section 2).
func isCardinal(s string) bool {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
