package bench

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// withGateway is withGatewayOf with nothing to change.
func withGateway(ctx context.Context, dir string, groups []string, measure func(context.Context, *config.Config, host.Addrs) ([]Result, error)) ([]Result, error) {
	return withGatewayOf(ctx, dir, groups, func(*config.Config) {}, measure)
}

// withGatewayOf runs a gateway of the embedded defaults on free ports, with groups
// of the given names and its data below dir, after change adapted it, and measures
// while it runs.
func withGatewayOf(ctx context.Context, dir string, groups []string, change func(*config.Config), measure func(context.Context, *config.Config, host.Addrs) ([]Result, error)) ([]Result, error) {
	cfg := config.Embedded()
	cfg.DataDir = filepath.Join(dir, "data")
	const free = "127.0.0.1:0"
	cfg.Listen.CoAPS, cfg.Listen.CoAP, cfg.Listen.HTTP, cfg.Listen.MQTT = free, free, free, free
	first := cfg.Groups[0]
	cfg.Groups = cfg.Groups[:0]
	for _, name := range groups {
		g := first
		g.Name = name
		if name == overTreeGroup {
			g.Rekey.Scheme, g.Rekey.BatchWindow = "key-tree", time.Minute // the benchmark says when
		}
		cfg.Groups = append(cfg.Groups, g)
	}
	cfg.Limits.Handshakes = 4 * joinAtOnce
	change(cfg)

	var out []Result
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	ready := make(chan host.Addrs, 1)
	g.Go(func() error {
		return host.Serve(ctx, cfg, slog.New(slog.DiscardHandler), func(_ *plugin.Gateway, at host.Addrs) { ready <- at })
	})
	g.Go(func() (err error) {
		defer cancel()
		select {
		case at := <-ready:
			out, err = measure(ctx, cfg, at)
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}
