package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
)

// ownAddrs are the addresses of this machine, as they were a moment ago.
type ownAddrs struct {
	at  time.Time
	set map[netip.Addr]bool
}

// ownEvery is how often they are looked up.
const ownEvery = 10 * time.Second

// isOwn says whether an address is one of this machine.
func (p *Proxy) isOwn(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	o := p.own.Load()
	if o == nil || time.Since(o.at) > ownEvery {
		o = &ownAddrs{at: time.Now(), set: map[netip.Addr]bool{}}
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return true // nobody can tell: no
		}
		for _, x := range addrs {
			if n, err := netip.ParsePrefix(x.String()); err == nil {
				o.set[n.Addr().Unmap()] = true
				o.set[broadcast(n)] = true
			}
		}
		p.own.Store(o)
	}
	return o.set[a]
}

// broadcast is the last address of an IPv4 network, to which everybody listens; of another
// it is the address itself.
func broadcast(n netip.Prefix) netip.Addr {
	a := n.Addr().Unmap()
	if !a.Is4() || n.Bits() > 30 {
		return a
	}
	b := a.As4()
	for i := n.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// reaches says whether a datagram to an address reaches a listener of ours.
func (p *Proxy) reaches(l Listener, a netip.Addr) bool {
	at := l.Addr.Addr().Unmap()
	if at.IsUnspecified() || !at.IsValid() {
		return p.isOwn(a)
	}
	return at == a || a.IsUnspecified() && at.IsLoopback()
}

// permit says whether an address may be dialled for a rule. What a name leads to
// is decided by who runs the name server, so of this machine, of its link and of
// groups a name reaches nothing that the rule does not spell out; and the
// gateway's own sockets nothing reaches, whatever the rule says: the admin API
// trusts who comes from here.
func (p *Proxy) permit(r *Rule, t Target, a netip.Addr) error {
	tcp := strings.HasSuffix(t.Scheme, "+tcp")
	if p.deps.Listeners != nil {
		for _, l := range p.deps.Listeners() {
			if l.TCP == tcp && l.Addr.Port() == t.Port && p.reaches(l, a) {
				return errPlace
			}
		}
	}
	if a.IsUnspecified() {
		return errPlace
	}
	own := p.isOwn(a)
	if r.named(a, own) {
		return nil
	}
	if len(r.Addresses) > 0 {
		return errPlace
	}
	if own || kind(a) != 0 {
		return errPlace
	}
	return nil
}

// find resolves a target to one address that may be dialled: of several that a name has
// the first, or another when that is not the first try. What was looked at is what is
// dialled: a name that leads elsewhere a moment later gains nothing.
func (p *Proxy) find(ctx context.Context, r *Rule, t Target, try int) (netip.AddrPort, error) {
	a, ok := t.addr()
	if ok {
		return netip.AddrPortFrom(a, t.Port), p.permit(r, t, a)
	}
	addrs, err := p.deps.Resolve(ctx, t.Host)
	if err != nil || len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errName, errors.Join(err))
	}
	var good []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); p.permit(r, t, a) == nil {
			good = append(good, a)
		}
	}
	if len(good) == 0 {
		return netip.AddrPort{}, errPlace
	}
	return netip.AddrPortFrom(good[try%len(good)], t.Port), nil
}

// dial opens an association.
func (p *Proxy) dial(ctx context.Context, r *Rule, t Target, try int) (link, error) {
	at, err := p.find(ctx, r, t, try)
	if err != nil {
		return nil, err
	}
	switch t.Scheme {
	case CoAP:
		c, err := dialUDP(at)
		if err != nil {
			return nil, err
		}
		return newDatagrams(p, c), nil
	case CoAPS:
		return p.dialDTLS(ctx, r, t, at)
	default:
		return p.dialStream(ctx, r, t, at)
	}
}

// socketBuffer holds what comes while the reader is busy.
const socketBuffer = 1 << 20

func dialUDP(at netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errShake, err)
	}
	_ = c.SetReadBuffer(socketBuffer) // less is slower, no more
	return c, nil
}

// dialDTLS makes a handshake (RFC 7252, Section 9.1).
func (p *Proxy) dialDTLS(ctx context.Context, r *Rule, t Target, at netip.AddrPort) (link, error) {
	c := r.Credential
	if c == nil {
		return nil, fmt.Errorf("%w: no credential", errShake)
	}
	opts := []dtls.ClientOption{
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
	}
	if c.Identity != nil {
		key := c.Key()
		opts = append(opts,
			dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint(c.Identity),
			dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256))
	} else {
		pool, certs, err := c.certificates()
		if err != nil {
			return nil, err
		}
		opts = append(opts, dtls.WithRootCAs(pool), dtls.WithServerName(t.Host),
			dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM,
				dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256))
		if len(certs) > 0 {
			opts = append(opts, dtls.WithCertificates(certs...))
		}
	}
	raw, err := dialUDP(at)
	if err != nil {
		return nil, err
	}
	wire := &eavesdropper{Conn: raw}
	wire.alert.Store(alertNone)
	conn, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(wire), raw.RemoteAddr(), opts...)
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("%w: %w", errShake, err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		_ = raw.Close()
		return nil, shake(err, int(wire.alert.Load()), c.Identity != nil, wire.reached.Load())
	}
	wire.over.Store(true)
	return newDatagrams(p, conn), nil
}

// certificates reads what the credential holds.
func (c *Credential) certificates() (*x509.CertPool, []tls.Certificate, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.Roots) {
		return nil, nil, fmt.Errorf("%w: no root certificate", errShake)
	}
	if c.Cert == nil {
		return pool, nil, nil
	}
	cert, err := tls.X509KeyPair(c.Cert())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: client certificate", errShake)
	}
	return pool, []tls.Certificate{cert}, nil
}
