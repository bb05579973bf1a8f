package main

import (
	"context"
	"os"
	"time"

	"github.com/seed4911071e/groupgate/bench"
	"github.com/seed4911071e/groupgate/bench/peer"
)

// benchSessionsCmd measures the memory of sessions.
type benchSessionsCmd struct {
	N    int           `default:"10000" help:"Associations of each kind; the stock server has 20000 of them at most."`
	Idle time.Duration `default:"5s" help:"How long they do nothing before memory is looked at."`
	JSON bool          `help:"Print JSON."`
}

// Run measures servers in processes of their own.
func (c *benchSessionsCmd) Run(e *env) error {
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.Sessions(e.ctx, measured, dir, c.N, c.Idle, progress)
	})
}

// benchPair has the flags of what measures processor time.
type benchPair struct {
	N    int  `default:"2000" help:"Nodes at each server; the stock server has 20000 of them at most. With handshakes: how many in all."`
	JSON bool `help:"Print JSON."`
}

// benchRequestsCmd measures requests, and what shards do for them.
type benchRequestsCmd struct {
	benchPair
	Shards int `default:"1" help:"More than 1: the endpoint with so many shards beside that with one, instead of other servers."`
}

// Run measures servers in processes of their own.
func (c *benchRequestsCmd) Run(e *env) error {
	if c.Shards == 1 {
		return c.run(e, bench.Requests)
	}
	return c.run(e, func(ctx context.Context, start bench.Start, n int, progress func(string)) ([]bench.Result, error) {
		return bench.Shards(ctx, start, n, c.Shards, progress)
	})
}

type (
	benchFanoutCmd     struct{ benchPair }
	benchHandshakesCmd struct{ benchPair }
	benchRebindCmd     struct{ benchPair }
)

// Run measures servers in processes of their own.
func (c *benchFanoutCmd) Run(e *env) error     { return c.run(e, bench.Fanout) }
func (c *benchHandshakesCmd) Run(e *env) error { return c.run(e, bench.Handshakes) }
func (c *benchRebindCmd) Run(e *env) error     { return c.run(e, bench.Rebind) }

func (c *benchPair) run(e *env, f func(context.Context, bench.Start, int, func(string)) ([]bench.Result, error)) error {
	return e.bench(c.JSON, func(_ string, progress func(string)) ([]bench.Result, error) {
		return f(e.ctx, measured, c.N, progress)
	})
}

// benchRestartCmd kills a server.
type benchRestartCmd struct {
	N    int  `default:"10000" help:"Observers."`
	JSON bool `help:"Print JSON."`
}

// Run measures a server in a process of its own, in a temporary folder.
func (c *benchRestartCmd) Run(e *env) error {
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.Restart(e.ctx, measured, dir, c.N, progress)
	})
}

// measured starts a server that is measured: this program again.
var measured = bench.Command("bench", "serve")

// benchServeCmd is such a server.
type benchServeCmd struct {
	Kind string `arg:"" help:"Which server: own, own:SHARDS, stock, plain, floor, gateway."`
	Dir  string `arg:"" optional:"" help:"Folder for what is kept."`
}

// Run serves until its input ends.
func (c *benchServeCmd) Run(e *env) error {
	if c.Kind == bench.KindGateway {
		return bench.ServeGateway(e.ctx, c.Dir, os.Stdin, e.stdout)
	}
	return peer.Serve(e.ctx, c.Kind, peer.Options{Dir: c.Dir}, os.Stdin, e.stdout)
}
