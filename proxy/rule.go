package proxy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Rule lets some peers reach some targets.
//
// Exactly one of Host, Name and Prefix says what it is about: requests with a
// proxy option to a target, requests with a Uri-Host, requests below a path.
type Rule struct {
	// Forward: Host is a name, "*.name", or what netip.ParsePrefix reads; the
	// target has this Scheme and Port, and a path that begins with Path.
	Host   string
	Scheme string
	Port   uint16
	Path   []string

	// By host name and by path: requests go to Upstream, and to paths there that
	// begin with Path.
	Name     string
	Prefix   []string
	Upstream Target
	List     bool // its links are shown in /.well-known/core

	Peers     []string // psk:IDENTITY, cert:SHA256 in hexadecimal, token; none: whom Deps.May admits
	Methods   []coap.Code
	Public    bool
	OpenToUDP bool

	Addresses  []netip.Prefix // that a name may resolve to; none: all but what is ours
	Timeout    time.Duration
	Parallel   int
	BlockSize  int
	Credential *Credential
	Interface  string // that requests to groups leave by; "": the system's choice
	Next       Target // the next proxy on the way to a group; none: we are the last

	network netip.Prefix // of Host
	owner   string       // account
}

// Credential is what the gateway shows at an upstream.
type Credential struct {
	Identity []byte // psk_identity; nil: certificates
	Key      func() []byte
	Cert     func() (cert, key []byte) // PEM; nil: none
	Roots    []byte                    // PEM
}

// account tells associations apart by what is shown there, and by where a name may lead,
// without being any of it: what came over one is not for who uses another.
func (r *Rule) account(secret []byte) string {
	h := hmac.New(sha256.New, secret)
	note := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
	note([]byte(fmt.Sprint(r.Addresses)))
	if c := r.Credential; c != nil {
		note(c.Identity)
		note(c.Roots)
		if c.Key != nil {
			note(c.Key())
		}
		if c.Cert != nil {
			cert, key := c.Cert()
			note(cert)
			note(key)
		}
	}
	return string(h.Sum(nil)[:16])
}

func (r Rule) withDefaults() Rule {
	if r.Timeout <= 0 {
		r.Timeout = 30 * time.Second
	}
	if r.Parallel <= 0 {
		r.Parallel = 16
	}
	if r.BlockSize <= 0 {
		r.BlockSize = 1024
	}
	r.network, _ = netip.ParsePrefix(r.Host)
	return r
}

func (r *Rule) forward() bool { return r.Host != "" }

// covers says whether a forward rule is about a target and path.
func (r *Rule) covers(t Target, path []string) bool {
	if r.Scheme != t.Scheme || r.Port != t.Port || !hasPrefix(path, r.Path) {
		return false
	}
	if r.network.IsValid() {
		a, ok := t.addr()
		return ok && r.network.Contains(a)
	}
	if suffix, ok := strings.CutPrefix(r.Host, "*"); ok {
		return strings.HasSuffix(t.Host, suffix) && len(t.Host) > len(suffix)
	}
	return t.Host == r.Host
}

func hasPrefix(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

// kind tells addresses apart that are no server's in the network.
func kind(a netip.Addr) int {
	switch {
	case a.IsLoopback():
		return 1
	case a.IsLinkLocalUnicast():
		return 2
	case a.IsMulticast():
		return 3
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return 4
	}
	return 0
}

// names says whether a network stands for an address on purpose: who writes 0.0.0.0/0
// does not think of this machine, its link or groups.
func names(n netip.Prefix, a netip.Addr) bool {
	return n.IsValid() && n.Contains(a) && (n.IsSingleIP() || kind(n.Masked().Addr()) == kind(a))
}

// named says whether the rule names an address itself, so that it is no surprise
// what is behind it. own: it is this machine's, which takes more than a network that it
// happens to be in.
func (r *Rule) named(a netip.Addr, own bool) bool {
	names := func(n netip.Prefix) bool { return names(n, a) && (!own || n.IsSingleIP() || a.IsLoopback()) }
	if names(r.network) {
		return true
	}
	if t, ok := r.Upstream.addr(); ok && t == a {
		return true
	}
	if t, ok := r.Next.addr(); ok && t == a {
		return true
	}
	return slices.ContainsFunc(r.Addresses, names)
}

// admits says whether a peer may use the rule.
func (p *Proxy) admits(ctx context.Context, r *Rule, peer coap.Peer) bool {
	switch {
	case peer.Via == coap.Internal:
		return true
	case peer.Via == coap.Plain:
		return r.OpenToUDP
	case len(r.Peers) == 0:
		return p.deps.May(ctx, peer) == nil
	}
	return slices.ContainsFunc(r.Peers, func(who string) bool {
		kind, id, _ := strings.Cut(who, ":")
		switch kind {
		case "psk":
			have, _, _ := strings.Cut(peer.Subject.ID, "\x1f") // an enrolled node has its key's number behind
			return peer.Subject.Kind == coap.SubjectPSK && have == id
		case "cert":
			sum, err := hex.DecodeString(id)
			return err == nil && peer.Subject.Kind == coap.SubjectKeyHash && bytes.Equal(sum, []byte(peer.Subject.ID))
		case "token":
			return p.deps.Token(ctx, peer) == nil
		}
		return false
	})
}

// allowed says whether the method is one of the rule's.
func (r *Rule) allowed(method coap.Code) bool {
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method)
}
