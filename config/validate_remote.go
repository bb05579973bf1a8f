package config

import (
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of RFC 9176, Section 5: 'ep' and 'd' have at most 63 bytes. A lifetime
// of less than a minute would be traffic without use.
const (
	maxEndpoint   = 63
	minRDLifetime = time.Minute
)

// Bounds of the time between full queries, our choice: how long a revocation
// may stay unnoticed at a server that does not notify.
const (
	minTRLInterval = time.Second
	maxTRLInterval = 24 * time.Hour
)

func (c *Config) validateResourceDirectory(f *faults) {
	const key = "resource_directory"
	d := c.ResourceDirectory
	inRange(f, key+".lifetime", d.Lifetime, minRDLifetime, maxLifetime)
	if d.URI == "" {
		for _, x := range []struct{ key, value string }{
			{"endpoint", d.Endpoint}, {"d", d.D}, {"base", d.Base}, {"identity", d.Identity}, {"key_file", d.KeyFile},
		} {
			if x.value != "" {
				f.add(key+"."+x.key, "is for a directory: set %s.uri", key)
			}
		}
		return
	}
	remote(f, key, d.URI, d.Identity, d.KeyFile, "coap", "coaps")
	required(f, key+".endpoint", d.Endpoint, "the name of this gateway in the directory")
	for _, x := range []struct{ key, value string }{{"endpoint", d.Endpoint}, {"d", d.D}} {
		if len(x.value) > maxEndpoint || !utf8.ValidString(x.value) || strings.ContainsFunc(x.value, unicode.IsControl) {
			f.add(key+"."+x.key, "must have at most %d bytes and no control characters", maxEndpoint)
		}
	}
	if d.Base != "" {
		if u, ok := validateURI(f, key+".base", d.Base, "coap", "coaps"); ok && u.Path != "" {
			f.add(key+".base", "must be a scheme and an authority only, such as coaps://gm.example.com")
		}
	} else if c.Listen.CoAPS == "" {
		f.add(key+".base", "is missing: no listen.coaps says where the groups are")
	}
}

func (t Token) validateIntrospect(f *faults, key string) {
	i := t.Introspect
	key += ".introspect"
	switch {
	case i.URI != "":
		// The answers hold keys.
		remote(f, key, i.URI, i.Identity, i.KeyFile, "coaps")
	case i.Identity != "" || i.KeyFile != "":
		f.add(key+".uri", "is missing: where to ask")
	}
}

func (t Token) validateRevocation(f *faults, key string) {
	r := t.Revocation
	key += ".revocation"
	switch {
	case r.URI != "":
		remote(f, key, r.URI, r.Identity, r.KeyFile, "coaps")
		if r.Interval != 0 {
			inRange(f, key+".interval", r.Interval, minTRLInterval, maxTRLInterval)
		}
	case r.Identity != "" || r.KeyFile != "" || r.Interval != 0:
		f.add(key+".uri", "is missing: where the list is")
	}
}

// remote checks how a CoAP server elsewhere is reached: over DTLS with a
// pre-shared key, or in clear where that scheme is permitted.
func remote(f *faults, key, uri, identity, keyFile string, schemes ...string) {
	u, ok := validateURI(f, key+".uri", uri, schemes...)
	if !ok {
		return
	}
	if u.Scheme == "coap" {
		if identity != "" || keyFile != "" {
			f.add(key+".identity", "is for coaps://")
		}
		return
	}
	required(f, key+".identity", identity, "coaps needs a psk_identity")
	required(f, key+".key_file", keyFile, "coaps needs the key of the identity")
	if len(identity) > maxIdentity {
		f.add(key+".identity", "must have at most %d bytes", maxIdentity)
	}
}

// validateURI accepts scheme://host[:port][/path].
func validateURI(f *faults, key, uri string, schemes ...string) (*url.URL, bool) {
	if len(schemes) == 0 {
		schemes = []string{"coaps", "coap", "https"}
	}
	u, err := url.Parse(uri)
	known := false
	for _, s := range schemes {
		known = known || err == nil && u.Scheme == s
	}
	switch {
	case !known || u.Hostname() == "":
		f.add(key, "must be %s://host[:port]/path", strings.Join(schemes, ":// or "))
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(uri, "#"):
		f.add(key, "must have no user, query or fragment")
	case u.Port() != "" && !validPort(u.Port()):
		f.add(key, "has a port that is none")
	case strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r == '<' || r == '>' || r == '"' || r >= 0x7f }):
		f.add(key, "must be percent-encoded")
	default:
		return u, true
	}
	return nil, false
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}
