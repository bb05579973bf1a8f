package plugin

import (
	"context"
	"fmt"
	"net"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/relay"
)

// relays passes DTLS datagrams on to the Group Managers of groups that want it, until
// ctx ends. Groups of one Group Manager may share a listener.
func (b *built) relays(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	seen := map[string]bool{}
	for _, gr := range b.g.cfg.Groups {
		u := gr.Upstream
		if !u.Relay || seen[u.RelayListen] {
			continue
		}
		seen[u.RelayListen] = true
		at, err := url.Parse(gr.GM)
		if err != nil {
			return fmt.Errorf("groups: %s: gm: %w", gr.Name, err)
		}
		port := at.Port()
		if port == "" {
			port = "5684"
		}
		conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", u.RelayListen)
		if err != nil {
			g.Go(func() error { return fmt.Errorf("groups: %s: upstream.relay_listen: %w", gr.Name, err) })
			break
		}
		r := relay.New(conn.(*net.UDPConn), relay.Config{
			Server: net.JoinHostPort(at.Hostname(), port), Flows: u.RelayFlows, Log: b.g.log.With("part", "relay"),
			Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"listener": u.RelayListen}, b.g.registry),
		})
		b.g.log.InfoContext(ctx, "DTLS is passed on", "part", "relay", "addr", r.LocalAddr(), "to", gr.GM)
		g.Go(func() error { return r.Run(ctx) })
	}
	return g.Wait()
}
