package config

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Proxy is the CoAP proxy: forward (Allow), by host name (Hosts) and by path
// (Reverse). Without any of the three it forwards nothing.
type Proxy struct {
	Enabled      bool           `yaml:"enabled"`
	Name         string         `yaml:"name"`          // in diagnostics of 5.08; "": the name of the machine
	CacheMB      int            `yaml:"cache_mb"`      // 0: nothing is cached
	UDPRPS       float64        `yaml:"udp_rps"`       // requests per second of one address on plain UDP
	GroupTimeout time.Duration  `yaml:"group_timeout"` // longest time in which responses of a group are relayed
	StandIn      string         `yaml:"stand_in"`      // coaps://ADDRESS[:port] of this gateway, in the place of members of groups; "": they are reached without it
	Allow        []ProxyTarget  `yaml:"allow"`
	Hosts        []ProxyHost    `yaml:"hosts"`
	Reverse      []ProxyReverse `yaml:"reverse"`
}

// ProxyTarget admits requests with Proxy-Uri or Proxy-Scheme to a target.
type ProxyTarget struct {
	Target string `yaml:"target"` // scheme://host[:port][/path]; host: a name, *.name, an address or a network
	ProxyVia
}

// ProxyHost leads requests with a Uri-Host to an upstream.
type ProxyHost struct {
	Name     string `yaml:"name"`
	Upstream string `yaml:"upstream"` // scheme://host[:port][/path]
	ProxyVia
}

// ProxyReverse leads requests below a path to an upstream.
type ProxyReverse struct {
	Path     string `yaml:"path"`
	Upstream string `yaml:"upstream"` // scheme://host[:port][/path]
	List     bool   `yaml:"list"`     // its links are shown in /.well-known/core
	ProxyVia
}

// ProxyVia says who may use a rule, and how its upstream is reached.
type ProxyVia struct {
	Peers     []string `yaml:"peers"`       // psk:IDENTITY, cert:SHA256, token; none: whoever may proxy
	Methods   []string `yaml:"methods"`     // none: all
	Public    bool     `yaml:"public"`      // what one peer got others may get
	OpenToUDP bool     `yaml:"open_to_udp"` // peers on plain UDP may use it

	Addresses []string      `yaml:"addresses"`  // networks that the host may resolve to
	Timeout   time.Duration `yaml:"timeout"`    // of a request
	Parallel  int           `yaml:"parallel"`   // requests outstanding at one upstream
	BlockSize int           `yaml:"block_size"` // of requests to it
	Interface string        `yaml:"interface"`  // that requests to groups leave by
	Next      string        `yaml:"next"`       // scheme://host[:port] of the next proxy on the way to a group; "": none

	Identity string `yaml:"identity"`  // coaps: psk_identity
	KeyFile  string `yaml:"key_file"`  // hex: its key; or PEM: that of the certificate
	CertFile string `yaml:"cert_file"` // PEM, client certificate
	CAFile   string `yaml:"ca_file"`   // PEM: the roots of the server's certificate

	Key                        Secret `yaml:"-"` // filled by Bootstrap
	CertPEM, CertKeyPEM, CAPEM Secret `yaml:"-"`
}

// Active says whether any rule lets requests be forwarded.
func (p *Proxy) Active() bool {
	return p.Enabled && len(p.Allow)+len(p.Hosts)+len(p.Reverse) > 0
}

// proxySchemes are those that an upstream is reached with.
var proxySchemes = []string{"coap", "coaps", "coap+tcp", "coaps+tcp"}

// Bounds of what the proxy may be told to do, our own choices.
const (
	maxCacheMB      = 4096
	maxGroupTimeout = 5 * time.Minute
	maxParallel     = 4096
	maxProxyName    = 32
)

func (c *Config) validateProxy(f *faults) {
	p := &c.Proxy
	inRange(f, "proxy.cache_mb", p.CacheMB, 0, maxCacheMB)
	inRange(f, "proxy.udp_rps", p.UDPRPS, 0.01, 1e6)
	inRange(f, "proxy.group_timeout", p.GroupTimeout, time.Second, maxGroupTimeout)
	if len(p.Name) > maxProxyName || strings.ContainsFunc(p.Name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		f.add("proxy.name", "must be one word of at most %d ASCII characters", maxProxyName)
	}
	if p.StandIn != "" {
		scheme, host, _, path, err := SplitTarget(p.StandIn)
		n, e := netip.ParsePrefix(host)
		if err != nil || e != nil || !n.IsSingleIP() || n.Addr().IsMulticast() || len(path) > 0 || scheme != "coap" && scheme != "coaps" {
			f.add("proxy.stand_in", "must be coaps://ADDRESS[:port] or coap://ADDRESS[:port], as clients reach this gateway, not %q", p.StandIn)
		}
	}
	for i := range p.Allow {
		t, key := &p.Allow[i], fmt.Sprintf("proxy.allow[%d]", i)
		scheme, host, _, _, err := SplitTarget(t.Target)
		if err != nil {
			f.add(key+".target", "%s", err)
			continue
		}
		c.validateVia(f, key, &t.ProxyVia, validateGroup(f, key, "target", scheme, host, &t.ProxyVia))
	}
	names := map[string]int{}
	for i := range p.Hosts {
		h, key := &p.Hosts[i], fmt.Sprintf("proxy.hosts[%d]", i)
		if h.Name == "" || h.Name != strings.ToLower(h.Name) || len(h.Name) > 255 || strings.ContainsFunc(h.Name, badHostRune) {
			f.add(key+".name", "must be a host name in lower case, as nodes write it into Uri-Host")
		}
		if j, ok := names[h.Name]; ok {
			f.add(key+".name", "is the name of proxy.hosts[%d] already", j)
		}
		names[h.Name] = i
		if c.validateUpstream(f, key, h.Upstream, &h.ProxyVia) {
			f.add(key+".upstream", "must have no path: the host's paths are those of the upstream, and OSCORE hides them")
		}
	}
	paths := map[string]int{}
	for i := range p.Reverse {
		r, key := &p.Reverse[i], fmt.Sprintf("proxy.reverse[%d]", i)
		segments := coap.PathOf(r.Path)
		switch {
		case !strings.HasPrefix(r.Path, "/") || len(segments) == 0 || slices.Contains(segments, ""):
			f.add(key+".path", "must be a path such as /meters")
		case slices.Contains(ownPaths, segments[0]):
			f.add(key+".path", "/%s is the gateway's own", segments[0])
		}
		if j, ok := paths[r.Path]; ok {
			f.add(key+".path", "is the path of proxy.reverse[%d] already", j)
		}
		paths[r.Path] = i
		c.validateUpstream(f, key, r.Upstream, &r.ProxyVia)
	}
}

// ownPaths begin the paths that the gateway serves itself.
var ownPaths = []string{"authz-info", "token", "introspect", "revoke", "ace-group", "group-oscore", "gw", "manage", ".well-known"}

func (c *Config) validateUpstream(f *faults, key, uri string, v *ProxyVia) (hasPath bool) {
	scheme, host, _, path, err := SplitTarget(uri)
	if n, e := netip.ParsePrefix(host); err == nil && (strings.HasPrefix(host, "*") || e == nil && !n.IsSingleIP()) {
		err = fmt.Errorf("must name one host")
	}
	if err != nil {
		f.add(key+".upstream", "%s", err)
		return false
	}
	c.validateVia(f, key, v, validateGroup(f, key, "upstream", scheme, host, v))
	return len(path) > 0
}

// validateGroup looks at rules that lead to a group, and returns the scheme with which
// the next hop is reached.
func validateGroup(f *faults, key, name, scheme, host string, v *ProxyVia) string {
	g, err := netip.ParsePrefix(host)
	group := err == nil && g.Addr().IsMulticast()
	if group && scheme != "coap" {
		f.add(key+"."+name, "a group is reached with coap:// only")
	}
	if group && v.OpenToUDP {
		f.add(key+".open_to_udp", "a group multiplies what is sent: it cannot be open to peers that show no key")
	}
	if v.Next == "" {
		return scheme
	}
	next, at, _, path, err := SplitTarget(v.Next)
	n, e := netip.ParsePrefix(at)
	switch {
	case !group:
		f.add(key+".next", "is for a group's address: what is for one server goes to it, or to the upstream of `reverse`")
	case err != nil:
		f.add(key+".next", "%s", err)
	case len(path) > 0 || strings.HasPrefix(at, "*") || e == nil && (!n.IsSingleIP() || n.Addr().IsMulticast()):
		f.add(key+".next", "must name one proxy, without a path")
	default:
		return next
	}
	return scheme
}

func (c *Config) validateVia(f *faults, key string, v *ProxyVia, scheme string) {
	inRange(f, key+".timeout", v.Timeout, time.Second, 90*time.Second)
	inRange(f, key+".parallel", v.Parallel, 1, maxParallel)
	if v.BlockSize < 16 || v.BlockSize > 1024 || v.BlockSize&(v.BlockSize-1) != 0 {
		f.add(key+".block_size", "must be a power of two from 16 to 1024, not %d", v.BlockSize)
	}
	for i, who := range v.Peers {
		k := fmt.Sprintf("%s.peers[%d]", key, i)
		kind, id, _ := strings.Cut(who, ":")
		switch {
		case who == "token":
		case kind == "psk" && id != "":
			if at := slices.IndexFunc(c.PSK, func(p PSK) bool { return p.Identity == id }); at >= 0 && !slices.Contains(c.PSK[at].May, "proxy") {
				f.add(k, "psk[%d] lacks `may: [proxy]`", at)
			}
		case kind == "cert":
			if b, err := hex.DecodeString(id); err != nil || len(b) != 32 {
				f.add(k, "needs the SHA-256 of the certificate's SubjectPublicKeyInfo, 64 hexadecimal digits")
			}
		default:
			f.add(k, "must be psk:IDENTITY, cert:SHA256 or token, not %q", who)
		}
	}
	for i, m := range v.Methods {
		oneOf(f, fmt.Sprintf("%s.methods[%d]", key, i), m, "GET", "POST", "PUT", "DELETE", "FETCH", "PATCH", "iPATCH")
	}
	for i, a := range v.Addresses {
		if _, err := parseNetwork(a); err != nil {
			f.add(fmt.Sprintf("%s.addresses[%d]", key, i), "must be an address or a network such as 10.1.0.0/16, not %q", a)
		}
	}
	if len(v.Peers) == 0 && !v.OpenToUDP && len(c.Tokens) == 0 && !slices.ContainsFunc(c.PSK, func(p PSK) bool { return slices.Contains(p.May, "proxy") }) {
		c.warn("%s: nobody can use it: no psk entry has `may: [proxy]`, no `tokens` are accepted, and it names no peers", key)
	}
	c.validateCredential(f, key, v, scheme)
}

func (c *Config) validateCredential(f *faults, key string, v *ProxyVia, scheme string) {
	tcp := scheme == "coaps+tcp"
	switch {
	case scheme != "coaps" && !tcp:
		for _, x := range []struct{ key, value string }{{"identity", v.Identity}, {"key_file", v.KeyFile}, {"cert_file", v.CertFile}, {"ca_file", v.CAFile}} {
			if x.value != "" {
				f.add(key+"."+x.key, "is for coaps:// and coaps+tcp://")
			}
		}
	case v.Identity != "" && tcp:
		f.add(key+".identity", "TLS with pre-shared keys is not there: use coaps:// with this identity and key, or ca_file (and cert_file) in place of them")
	case v.Identity != "" && (v.CertFile != "" || v.CAFile != ""):
		f.add(key+".identity", "is for pre-shared keys: without cert_file and ca_file")
	case v.Identity != "":
		required(f, key+".key_file", v.KeyFile, "the key of the identity")
		if len(v.Identity) > maxIdentity {
			f.add(key+".identity", "must have at most %d bytes", maxIdentity)
		}
	case v.CAFile == "":
		f.add(key+".ca_file", "is missing: %s:// needs identity and key_file, or the roots of the server's certificate", scheme)
	case (v.CertFile == "") != (v.KeyFile == ""):
		f.add(key+".cert_file", "cert_file and key_file go together")
	}
}

func badHostRune(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune("/?#@[]*%\\\"<>", r)
}

// SplitTarget reads scheme://host[:port][/path]. host is a name in lower case, a
// name that begins with "*.", or an address or a network in the form of
// netip.Prefix; port is "" where there is none.
func SplitTarget(target string) (scheme, host, port string, path []string, err error) {
	fail := func(format string, args ...any) (string, string, string, []string, error) {
		return "", "", "", nil, fmt.Errorf(format, args...)
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !slices.Contains(proxySchemes, scheme) {
		return fail("must be %s://host[:port][/path]", strings.Join(proxySchemes, ":// or "))
	}
	// A network has a slash that begins no path: 10.1.0.0/16, [2001:db8::/32].
	if host, rest, err = cutHost(rest); err != nil {
		return fail("%w", err)
	}
	authority, rawPath, hasPath := strings.Cut(rest, "/")
	if authority != "" {
		if port = strings.TrimPrefix(authority, ":"); port == authority || !validPort(port) {
			return fail("has a port that is none")
		}
	}
	if !hasPath {
		return scheme, host, port, nil, nil
	}
	if strings.ContainsAny(rawPath, "?#") {
		return fail("must have no query and no fragment")
	}
	for _, s := range coap.PathOf(strings.TrimSuffix("/"+rawPath, "/")) {
		v, err := url.PathUnescape(s)
		if err != nil || v == "" || v == "." || v == ".." {
			return fail("has a path that is none")
		}
		path = append(path, v)
	}
	return scheme, host, port, path, nil
}

// cutHost takes the host off the beginning of s.
func cutHost(s string) (host, rest string, err error) {
	if in, ok := strings.CutPrefix(s, "["); ok {
		host, rest, ok = strings.Cut(in, "]")
		if p, err := parseNetwork(host); ok && err == nil && p.Addr().Is6() {
			return p.String(), rest, nil
		}
		return "", "", fmt.Errorf("has no IPv6 address or network between [ and ]")
	}
	i := strings.IndexAny(s, ":/")
	if i < 0 {
		i = len(s)
	}
	host, rest = s[:i], s[i:]
	if a, err := netip.ParseAddr(host); err == nil {
		bits := 32
		if after, ok := strings.CutPrefix(rest, "/"); ok {
			// A number behind the first slash is the length of a network.
			end := strings.IndexAny(after, ":/")
			if end < 0 {
				end = len(after)
			}
			if n, err := strconv.Atoi(after[:end]); err == nil {
				bits, rest = n, after[end:]
			}
		}
		p, err := a.Prefix(bits)
		if err != nil {
			return "", "", fmt.Errorf("has a network that is none")
		}
		return p.String(), rest, nil
	}
	name := strings.TrimPrefix(host, "*.")
	if name == "" || name != strings.ToLower(name) || strings.ContainsFunc(name, badHostRune) {
		return "", "", fmt.Errorf("needs a host: a name in lower case, *.name, an address or a network")
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; last == "" || last[0] >= '0' && last[0] <= '9' {
		return "", "", fmt.Errorf("has a host that is neither a name nor an address")
	}
	return host, rest, nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// Networks reads Addresses.
func (v *ProxyVia) Networks() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range v.Addresses {
		p, err := parseNetwork(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// proxy reads the keys towards upstreams.
func (r *keyReader) proxy() {
	p := &r.c.Proxy
	for i := range p.Allow {
		r.via(fmt.Sprintf("proxy.allow[%d]", i), &p.Allow[i].ProxyVia)
	}
	for i := range p.Hosts {
		r.via(fmt.Sprintf("proxy.hosts[%d]", i), &p.Hosts[i].ProxyVia)
	}
	for i := range p.Reverse {
		r.via(fmt.Sprintf("proxy.reverse[%d]", i), &p.Reverse[i].ProxyVia)
	}
}

func (r *keyReader) via(key string, v *ProxyVia) {
	if v.Identity != "" {
		r.remotePSK(key+".key_file", v.KeyFile, &v.Key)
		return
	}
	for _, x := range []struct {
		key, file, kind string
		secret          bool
		to              *Secret
	}{
		{"cert_file", v.CertFile, "CERTIFICATE", false, &v.CertPEM}, {"key_file", v.KeyFile, "PRIVATE KEY", true, &v.CertKeyPEM},
		{"ca_file", v.CAFile, "CERTIFICATE", false, &v.CAPEM},
	} {
		r.pem(key+"."+x.key, x.file, x.kind, x.secret)
		if b, ok := r.file(key+"."+x.key, x.file, x.secret); ok {
			*x.to = newSecret(b)
		}
	}
}
