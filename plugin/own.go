package plugin

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/endpoint"
)

// The gateway's own endpoint asks for all that a host's servers get by
// [Gateway.Handler], [Gateway.PSK], [Gateway.Monitor] and [Gateway.Connected].
var (
	_ endpoint.Server       = front{}
	_ endpoint.Keys         = front{}
	_ endpoint.RawKeys      = front{}
	_ endpoint.Memory       = front{}
	_ endpoint.Certificates = front{}
)

// CoAPS makes an endpoint of the gateway's own for CoAP over DTLS, with a shard on
// each of the sockets, which it takes over. Its Run serves, as soon as that of the
// gateway is ready. The sessions of the first one outlive the gateway, with
// endpoint.persist_sessions.
func (g *Gateway) CoAPS(socks ...endpoint.Socket) *endpoint.Shards {
	e := endpoint.NewShards(socks, endpoint.Config{
		Server: front{g}, Context: g.stopped, Keys: front{g}, Opened: front{g}.opened, Ready: g.ready, Ending: g.freeze,
		RawKey: g.rawKey, Certificate: g.certificate, OwnPSK: g.cfg.Endpoint.Handshake == config.HandshakeOwn,
		HibernateAfter: g.cfg.Endpoint.HibernateAfter,
		MaxSessions:    g.cfg.Limits.Sessions, MaxHandshakes: g.cfg.Limits.Handshakes,
		MaxBytes: g.cfg.Limits.MemoryMB << 20, Memory: front{g}, Standing: front{g}.standing,
		Log: g.log.With("part", "coaps"), Registerer: g.registerer("coaps"),
	})
	if g.coaps == nil {
		g.coaps = e
	}
	return e
}

// CoAP makes one for plain UDP. What is observed over the first one with OSCORE outlives
// the gateway likewise.
func (g *Gateway) CoAP(socks ...endpoint.Socket) *endpoint.Shards {
	e := endpoint.NewShards(socks, endpoint.Config{
		Server: front{g}, Context: g.stopped, Keep: g.carries, Ending: g.freeze, Log: g.log.With("part", "coap"), Registerer: g.registerer("coap"),
	})
	if g.plain == nil {
		g.plain = e
	}
	return e
}

// registerer tells the metrics of the two endpoints apart.
func (g *Gateway) registerer(listener string) prometheus.Registerer {
	return prometheus.WrapRegistererWith(prometheus.Labels{"listener": listener}, g.registry)
}

// front is the gateway as its endpoints see it.
type front struct{ g *Gateway }

// Handle answers one request.
func (f front) Handle(ctx context.Context, link coap.Link, m *coap.Message) *coap.Message {
	release, ok := f.g.gate.enter()
	if !ok {
		return &coap.Message{Code: coap.ServiceUnavailable, Token: m.Token}
	}
	defer release()
	return f.g.server.Handle(ctx, link, m) // ctx ends with Run: see Context
}

// Cancel ends the observation of a peer that rejected a notification, or the further
// responses to a request.
func (f front) Cancel(id coap.LinkID, token []byte) {
	f.g.server.Cancel(id, token)
	if r := f.g.rooms.Load(); r != nil {
		r.secure.Cancel(id, token)
	}
}

// Closed forgets a link.
func (f front) Closed(id coap.LinkID) {
	if l, ok := f.g.own.LoadAndDelete(id); ok {
		f.g.crowd.leave(l.(*ownLink))
	}
	f.g.server.Closed(id)
}

// PSK finds the key of an identity.
func (f front) PSK(_ context.Context, identity []byte) ([]byte, error) {
	key, err := f.g.psk(identity)
	if errors.Is(err, ace.ErrIdentity) {
		return nil, fmt.Errorf("%w: %w", endpoint.ErrUnknown, err)
	}
	return key, err
}

// certificate is the one of the gateway; nil: there is none, or the rooms are not up.
func (g *Gateway) certificate() *dtls12.Key {
	if r := g.rooms.Load(); r != nil {
		return r.certificate
	}
	return nil
}

// rawKey is the raw public key of the gateway; nil before the rooms are up.
func (g *Gateway) rawKey() *dtls12.Key {
	if r := g.rooms.Load(); r != nil {
		return r.rawKey
	}
	return nil
}

// pinned says whether the configuration names a public key: that of a legacy node
// (delegates[].auth.cert_sha256), or of a peer of the proxy.
func (r *rooms) pinned(who coap.Subject) bool { return r.delegates.Has(who) || r.pins[who.ID] }

// Certified says whether a certificate's key is known as raw public keys are, else
// whether a chain leads from it to listen.coaps_roots_file (RFC 5280, Section 6).
func (f front) Certified(ctx context.Context, chain []*x509.Certificate) error {
	spki, err := x509.MarshalPKIXPublicKey(chain[0].PublicKey)
	if err != nil {
		return err
	}
	unknown := f.known(ctx, spki, chain[0].Raw)
	roots := f.g.cfg.Listen.CoAPSCert.Roots
	if !errors.Is(unknown, endpoint.ErrUnknown) || roots == nil {
		return unknown
	}
	above := x509.NewCertPool()
	for _, c := range chain[1:] {
		above.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: above, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", endpoint.ErrUnknown, err)
	}
	return nil
}

// Known says whether a token confirms a public key, or the configuration does.
func (f front) Known(ctx context.Context, spki []byte) error { return f.known(ctx, spki, nil) }

func (f front) known(ctx context.Context, spki, leaf []byte) error {
	r := f.g.rooms.Load()
	if r == nil {
		return errStarting
	}
	if r.pinned(ace.KeySubject(spki)) {
		return nil
	}
	ctx, cancel := f.g.requestContext(ctx)
	defer cancel()
	_, err := r.access.Holder(ctx, spki, leaf)
	if errors.Is(err, ace.ErrIdentity) {
		return fmt.Errorf("%w: %w", endpoint.ErrUnknown, err)
	}
	return err
}

// Admit says who finished a handshake, and commits a token that came with it.
func (f front) Admit(ctx context.Context, p endpoint.Proof) (coap.Subject, error) {
	g := f.g
	release, ok := g.gate.enter()
	if !ok {
		return coap.Subject{}, errStarting
	}
	defer release()
	if r := g.rooms.Load(); r != nil && p.PublicKey != nil {
		who := ace.KeySubject(p.PublicKey)
		if r.delegates.Has(who) {
			return who, nil
		}
		var leaf []byte
		if len(p.Certificates) > 0 {
			leaf = p.Certificates[0]
		}
		subject, err := r.access.Proved(ctx, p.PublicKey, leaf)
		if errors.Is(err, ace.ErrIdentity) && (p.Certificates != nil || r.pinned(who)) {
			return who, nil // whose certificate was verified; a token may follow
		}
		return subject, g.diskFull(ctx, err)
	}
	subject, err := g.subject(ctx, p.Identity, p.Exporter)
	return subject, g.diskFull(ctx, err)
}

// standing says who a peer is to the gateway: who should stay when room is short.
func (f front) standing(ctx context.Context, p coap.Peer) endpoint.Standing {
	if n, _ := f.g.server.Watching(p.Link); n > 0 {
		return endpoint.Member
	}
	r := f.g.rooms.Load()
	if r == nil {
		return 0 // cannot be told now
	}
	release, ok := f.g.gate.enter()
	if !ok {
		return 0
	}
	defer release()
	if r.delegates.Has(p.Subject) {
		return endpoint.Member
	}
	switch member, err := r.belongs.Belongs(ctx, p.Subject); {
	case err != nil:
		f.g.log.DebugContext(ctx, "cannot tell who a peer is", "peer", p.Addr, "err", err)
		return 0
	case member:
		return endpoint.Member
	}
	_, err := r.grants.Grant(ctx, p)
	switch {
	case err == nil:
		return endpoint.Guest
	case coap.ErrorResponse(err).Code == coap.Unauthorized:
		return endpoint.Stranger
	}
	return 0
}

// Held is what peers take beyond the table of their associations.
func (f front) Held() int {
	n := f.g.server.Held()
	if f.g.plain != nil {
		n += f.g.plain.Held()
	}
	return n
}

// ownLink is an association of the gateway's own endpoint in the crowd.
type ownLink struct {
	peer    endpoint.Peer
	subject coap.Subject
}

func (l *ownLink) owner() coap.Subject { return l.subject }
func (l *ownLink) Peer() coap.Peer     { return l.peer.Peer() }
func (l *ownLink) survived() bool      { return l.peer.Status().Restored }
func (l *ownLink) end()                { l.peer.Close() }

// opened counts an association.
func (f front) opened(p endpoint.Peer) {
	who := p.Peer()
	if !counted(who.Subject) {
		return
	}
	l := &ownLink{p, who.Subject}
	f.g.own.Store(who.Link, l)
	if old := f.g.crowd.enter(l); old != nil {
		f.g.log.Debug("oldest association of a key closed for a newer", "peer", who.Addr)
		old.end()
	}
}
