package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/proxy"
	"github.com/seed4911071e/groupgate/rd"
	"github.com/seed4911071e/groupgate/store"
)

// Run opens the store, brings the rooms up and works until ctx ends or a room
// fails; then it waits for running requests and returns. The data folder is
// locked meanwhile.
func (g *Gateway) Run(ctx context.Context) (err error) {
	defer g.stop()
	if err := g.cfg.Bootstrap(); err != nil {
		return err
	}
	for _, text := range g.cfg.Warnings() {
		g.log.WarnContext(ctx, "risk in the configuration", "hint", text)
	}
	unlock, err := store.LockDir(g.cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	st, err := store.Open(ctx, store.Options{
		Dir: g.cfg.DataDir, DSN: string(g.cfg.StoreDSN().Bytes()), SealKey: g.cfg.Seal.Key.Bytes(), Program: Version(),
		AcceptRollback: g.acceptRollback, NeedMark: true,
		Migrations: migrations(),
		Log:        g.log.With("part", "store"), Registerer: g.registry, Refused: g.trouble.seen,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()

	b, err := g.build(st)
	if err != nil {
		return err
	}
	if err := b.setup(ctx); err != nil {
		return err
	}
	if err := b.recover(ctx, st); err != nil {
		return err
	}
	g.audit.Store(b.audit)
	kept, observing := g.keep(ctx, b.secure)
	b.bridge.Restored(observing)
	eg, ctx := errgroup.WithContext(ctx)
	runs := []func(context.Context) error{b.ace.Run, b.gm.Run, b.bridge.Run, b.audit.Run, g.server.Run, b.secure.Run, b.admin, b.delegates, b.relays, b.clock}
	if kept != nil {
		runs = append(runs, kept.Run)
		defer func() { err = errors.Join(err, kept.Close()) }()
	}
	if b.rd != nil {
		runs = append(runs, b.register)
	}
	if b.proxy != nil {
		runs = append(runs, b.proxy.Run)
	}
	eg.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-st.Behind():
			return fmt.Errorf("%w: it went back while the gateway ran", store.ErrRolledBack)
		}
	})
	for _, run := range runs {
		eg.Go(func() error { return run(ctx) })
	}
	g.rooms.Store(b.rooms())
	close(g.ready)
	<-ctx.Done()
	g.freeze()
	g.stop()       // running requests end
	g.gate.close() // and are waited for, before the store closes
	err = eg.Wait()
	for _, o := range b.asked {
		_ = o.Close() // what becomes of the socket is no matter any more
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// built is everything that Run supervises.
type built struct {
	g           *Gateway
	ace         *ace.Server
	secure      *secure.Layer
	gm          *gm.Manager
	bridge      *bridge.Bridge
	rd          *rd.Registrar // nil: no Resource Directory
	dir         *outbound     // the way there
	audit       *audit.Log
	delegate    *delegate.Room
	asked       []*outbound  // the ways to Authorization Servers
	proxy       *proxy.Proxy // nil: nothing is forwarded
	op          *operator
	rawKey      *dtls12.Key // from setup
	certificate *dtls12.Key
}

// build makes the rooms. It does no I/O.
func (g *Gateway) build(st *store.Store) (*built, error) {
	groups, err := g.cfg.GroupConfigs()
	if err != nil {
		return nil, err
	}
	acfg, err := g.aceConfig()
	if err != nil {
		return nil, err
	}
	late := &lateManager{}
	log := audit.New(audit.Config{Retention: g.cfg.Audit.Retention, MaxRecords: g.cfg.Audit.MaxRecords},
		audit.Deps{Store: st, Log: g.log.With("part", "audit"), Registerer: g.registry})
	protected := &lateLayer{}
	as := ace.New(acfg, ace.Deps{
		Store: st, Groups: late, Log: g.log.With("part", "ace"), Registerer: g.registry, Dropped: protected.drop, Hub: g.server,
	})
	protected.Layer = secure.New(secure.Config{
		Server: g.server, Contexts: as, MaxContexts: g.cfg.Limits.Sessions, Log: g.log.With("part", "oscore"), Registerer: g.registry,
	})
	var delegates *delegate.Room // made below, before anything runs
	var tokens func(context.Context, []coap.Subject) (map[coap.Subject]time.Time, error)
	if st.Shared() {
		tokens = as.InForce
	}
	br := bridge.New(g.bridgeConfig(), bridge.Deps{
		Reading: func(topic string, payload []byte) { delegates.Reading(topic, payload) },
		Store:   st, Source: late, Hub: g.server,
		Access: func(ctx context.Context, p coap.Peer) error {
			_, err := as.Grant(ctx, p)
			return err
		},
		Tokens: tokens, Warm: as.Warm,
		Evict: func(ctx context.Context, group string, nodes []string) error {
			return late.EvictSilent(ctx, group, nodes)
		},
		Log: g.log.With("part", "bridge"), Registerer: g.registry,
	})
	late.Manager = gm.New(gm.Config{Groups: groups, X5: g.x5()}, gm.Deps{
		Store: st, Authority: as, Delivery: br, Log: g.log.With("part", "gm"), Registerer: g.registry,
		Note: log.Note,
		Changed: func() {
			if r := late.directory.Load(); r != nil {
				r.Look()
			}
		},
	})
	b := &built{g: g, ace: as, secure: protected.Layer, gm: late.Manager, bridge: br, audit: log}
	dcfg, err := g.delegateConfig()
	if err != nil {
		return nil, err
	}
	b.delegate, err = delegate.New(dcfg, delegate.Deps{
		Store: st, Hub: g.server, Home: home{g, as}, Log: g.log.With("part", "delegate"), Registerer: g.registry,
	})
	if err != nil {
		return nil, err
	}
	delegates = b.delegate
	if b.rd, b.dir, err = g.registrar(late); err != nil {
		return nil, err
	}
	late.directory.Store(b.rd)
	for _, e := range acfg.Entries {
		if e.Introspect != nil {
			b.asked = append(b.asked, e.Introspect.Client.(*outbound))
		}
		if e.Revocation != nil {
			b.asked = append(b.asked, e.Revocation.Client.(*outbound))
		}
	}
	if b.proxy, err = g.newProxy(as); err != nil {
		return nil, err
	}
	b.op = &operator{gm: late.Manager, bridge: br, ace: as, rd: b.rd, audit: log, log: g.log.With("part", "audit"), ready: g.ready, delegates: b.delegate, links: g.associations, refused: g.refusals.newest, trouble: &g.trouble, tries: &g.tries}
	if c := g.cfg.Listen.CoAPSCert; c != nil {
		b.op.certificate = c.Leaf
	}
	b.op.contexts = b.contexts
	return b, nil
}

// setup does the rooms' start-up I/O, in the order of who asks whom.
func (b *built) setup(ctx context.Context) error {
	for _, room := range []struct {
		name  string
		setup func(context.Context) error
	}{{"audit", b.audit.Setup}, {"ace", b.ace.Setup}, {"gm", b.gm.Setup}, {"bridge", b.bridge.Setup}, {"delegate", b.delegate.Setup}} {
		if err := room.setup(ctx); err != nil {
			return fmt.Errorf("starting %s: %w", room.name, err)
		}
	}
	key, err := b.ace.RawKey().PrivateKey()
	if err == nil {
		b.rawKey, err = dtls12.NewKey(key)
	}
	if c := b.g.cfg.Listen.CoAPSCert; c != nil && err == nil {
		b.certificate, err = dtls12.NewCertificate(c.Chain, c.Key)
		b.g.noteExpiry(ctx, c.Leaf)
	}
	return err
}

// recover makes an accepted rollback of the database harmless before anything
// is served: a crash in between finds the database as old as it was.
func (b *built) recover(ctx context.Context, st *store.Store) error {
	lost, yes := st.RolledBack()
	if !yes {
		return nil
	}
	if err := b.gm.Recover(ctx, lost); err != nil {
		return err
	}
	if err := b.delegate.Recover(ctx); err != nil {
		return err
	}
	return st.Recovered(ctx)
}

// rooms is the view of what was built that requests need.
func (b *built) rooms() *rooms {
	return &rooms{access: b.ace, rawKey: b.rawKey, certificate: b.certificate, pins: proxyPins(&b.g.cfg.Proxy), authzInfo: b.ace.AuthzInfo(), token: b.ace.Token(), introspect: b.ace.Introspection(), revoked: b.ace.RevokedTokens(), secure: b.secure, groups: b.gm, belongs: b.gm, grants: b.ace, tokenURIs: b.g.tokenEndpoints(),
		me: b.bridge.Me(), delegates: b.delegate, proxy: b.proxy, alive: func(p coap.Peer) {
			b.bridge.Alive(p)
			b.delegate.Heard(p)
		}}
}

// register keeps the groups in the Resource Directory until ctx ends.
func (b *built) register(ctx context.Context) error {
	defer func() { _ = b.dir.Close() }() // as above
	return b.rd.Run(ctx)
}

// admin serves the admin API, health and metrics until ctx ends.
func (b *built) admin(ctx context.Context) error {
	g := b.g
	l := g.http
	if l == nil && g.cfg.Listen.HTTP != "" {
		var err error
		if l, err = new(net.ListenConfig).Listen(ctx, "tcp", g.cfg.Listen.HTTP); err != nil {
			return fmt.Errorf("listen.http: %w", err)
		}
	}
	if l == nil {
		return nil
	}
	srv := admin.New(admin.Config{Token: string(g.cfg.AdminToken.Bytes()), Version: Version(), Listeners: g.listeners}, admin.Deps{
		Groups: b.gm, Members: b.op, Tokens: b.op, Nodes: b.op, Audit: b.op, Readiness: b.op, Gatherer: g.registry, Log: g.log.With("part", "admin"),
		Moves: b.gm, Deliveries: b.op, Explainer: b.op, Liveness: b.op, Delegates: b.op, Identity: b.op,
	})
	return srv.Run(ctx, l)
}
