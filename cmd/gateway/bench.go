package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/seed4911071e/groupgate/bench"
)

// benchCmd measures the gateway.
type benchCmd struct {
	GM     benchGMCmd     `cmd:"" name:"gm" help:"The Group Manager on a store: joins, FETCH of all credentials, rekeys of large groups."`
	OSCORE benchOSCORECmd `cmd:"" name:"oscore" help:"Protecting and unprotecting messages with OSCORE; beside the bare cryptography."`
	Join   benchJoinCmd   `cmd:"" help:"Joins over DTLS, durable, 64 at once; beside the floor of one verification and one signature on one core."`

	Sessions   benchSessionsCmd   `cmd:"" help:"Memory of an idle association: an observer, a member of a group, an observer brought back by a start; beside a stock go-coap and pion server."`
	Fanout     benchFanoutCmd     `cmd:"" help:"Processor time of a notification over DTLS, confirmable or not; beside a stock go-coap and pion server."`
	Requests   benchRequestsCmd   `cmd:"" help:"Processor time of a request over DTLS; beside a stock go-coap and pion server."`
	Handshakes benchHandshakesCmd `cmd:"" help:"DTLS handshakes with a pre-shared key, also in a flood of ClientHellos; beside a stock go-coap and pion server."`
	Restart    benchRestartCmd    `cmd:"" help:"Who is still there after kill -9 of the endpoint with observers over DTLS, and how long it is away."`
	Rebind     benchRebindCmd     `cmd:"" help:"All nodes over DTLS change their port at once: who is served with no new handshake, the processor time of it, and what an address gets that has shown nothing; beside a stock go-coap and pion server."`
	Serve      benchServeCmd      `cmd:"" help:"One of the servers that are measured."`

	Proxy benchProxyCmd `cmd:"" help:"GETs through the proxy, cached and not, and the latency that it adds; beside the proxy of libcoap where that is installed."`

	Rekey benchRekeyCmd `cmd:"" help:"A rekey until every member of a group has confirmed it, observing and on MQTT; and joins meanwhile."`
	Sim   benchSimCmd   `cmd:"" name:"rekey-sim" help:"What rekeys of a key tree cost in groups of any size, computed without sockets and store."`
}

type benchSimCmd struct {
	N      int    `default:"100000" help:"Members of the group."`
	Degree uint64 `default:"4" help:"Children of a node of the key tree."`
	JSON   bool   `help:"Print JSON."`
}

// Run computes the cost of rekeys.
func (c *benchSimCmd) Run(e *env) error {
	return e.bench(c.JSON, func(_ string, progress func(string)) ([]bench.Result, error) {
		return bench.RekeySim(e.ctx, c.N, uint32(min(c.Degree, 1<<16)), progress)
	})
}

type benchProxyCmd struct {
	N           int           `default:"50000" help:"Requests of each kind."`
	OriginDelay time.Duration `default:"5ms" help:"How far away the origin is in far_latency_us: the round trip to it."`
	JSON        bool          `help:"Print JSON."`
}

// Run measures the proxy of a gateway of its own, in a temporary folder.
func (c *benchProxyCmd) Run(e *env) error {
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.Proxy(e.ctx, dir, c.N, c.OriginDelay, progress)
	})
}

type benchRekeyCmd struct {
	N         int  `default:"1000" help:"Members that observe; 0: none."`
	MQTT      int  `name:"mqtt" default:"-1" placeholder:"N" help:"Members on MQTT, told one by one and by a key tree. Default: as many, 1000 at most."`
	Tree      int  `default:"-1" placeholder:"N" help:"Members of a key tree of which one leaves while the others sleep. Default: as many as observe."`
	NotifyRPS int  `name:"notify-rps" default:"0" help:"limits.notify_rps of the gateway; 0: no limit."`
	JSON      bool `help:"Print JSON."`
}

// Run measures rekeys in gateways of their own, in a temporary folder.
func (c *benchRekeyCmd) Run(e *env) error {
	if c.MQTT < 0 {
		c.MQTT = min(c.N, 1000)
	}
	if c.Tree < 0 {
		c.Tree = c.N
	}
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.Rekey(e.ctx, measured, dir, bench.RekeyConfig{Observing: c.N, MQTT: c.MQTT, Sleeping: c.Tree, NotifyRPS: float64(c.NotifyRPS)}, progress)
	})
}

type benchOSCORECmd struct {
	N    int  `default:"20000" help:"Messages in each of nine rounds."`
	JSON bool `help:"Print JSON."`
}

// Run measures the protection of messages.
func (c *benchOSCORECmd) Run(e *env) error {
	return e.bench(c.JSON, func(_ string, progress func(string)) ([]bench.Result, error) {
		return bench.OSCORE(e.ctx, c.N, progress)
	})
}

type benchGMCmd struct {
	N     int    `default:"10000" help:"Members of each group."`
	Store string `placeholder:"DSN" help:"The store, as in the configuration; a database of its own. Default: SQLite in a temporary folder."`
	JSON  bool   `help:"Print JSON."`
}

// Run measures a Group Manager of its own.
func (c *benchGMCmd) Run(e *env) error {
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.GM(e.ctx, dir, c.Store, c.N, progress)
	})
}

type benchJoinCmd struct {
	N    int  `default:"4000" help:"Joins."`
	JSON bool `help:"Print JSON."`
}

// Run measures joins in a gateway of its own, in a temporary folder.
func (c *benchJoinCmd) Run(e *env) error {
	return e.bench(c.JSON, func(dir string, progress func(string)) ([]bench.Result, error) {
		return bench.Join(e.ctx, dir, c.N, progress)
	})
}

// bench runs a benchmark in a temporary folder and prints its figures.
func (e *env) bench(asJSON bool, run func(dir string, progress func(string)) ([]bench.Result, error)) error {
	dir, err := os.MkdirTemp("", "groupgate-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	results, err := run(dir, func(what string) { _, _ = fmt.Fprintf(e.stderr, "%s …\n", what) })
	if err != nil {
		return err
	}
	return printResults(e, results, asJSON)
}

// figure has three digits at the least.
func figure(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.3g", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// printResults prints figures as a table or as JSON.
func printResults(e *env, results []bench.Result, asJSON bool) error {
	if asJSON {
		return printJSON(e.stdout, results)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "BENCH\tMETRIC\tN\tOURS\tPEER\tRATIO")
	for _, r := range results {
		peer, ratio := "-", "-"
		if r.Peer != nil {
			peer = fmt.Sprintf("%s %s (%s)", figure(*r.Peer), r.Unit, r.PeerName)
		}
		if r.Ratio != nil {
			ratio = fmt.Sprintf("%.2f", *r.Ratio)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%d\t%s %s\t%s\t%s\n", r.Bench, r.Metric, r.N, figure(r.Ours), r.Unit, peer, ratio)
	}
	return t.Flush()
}
