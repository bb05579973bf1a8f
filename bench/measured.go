package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// KindGateway is the kind of server that [ServeGateway] is, for a [Start].
const KindGateway = "gateway"

// gatewaySpec is the first line that a measured gateway reads.
type gatewaySpec struct {
	Groups    []string   `json:"groups"`
	NotifyRPS float64    `json:"notify_rps"`
	Listen    host.Addrs `json:"listen"` // of the gateway that it takes the place of
}

// gatewayHello is the first line that it writes.
type gatewayHello struct {
	At       host.Addrs `json:"at"`
	Token    string     `json:"token"` // of the operator's API
	Audience string     `json:"audience"`
}

// profiled starts a profile of what a gateway does from its first "usage" on and
// returns what writes it; only in a program built with the tag profile.
var profiled func(dir string) (stop func(), err error)

// lastWord has a gateway write its profile: it is about to be killed.
const lastWord = "profiled"

// ServeGateway runs a whole gateway, with its data below dir, for a benchmark in
// another process: it reads a line that says what to serve, answers where, and then
// tells what it has used for each line that asks, until its input ends.
func ServeGateway(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	lines, enc := bufio.NewScanner(in), json.NewEncoder(out)
	var spec gatewaySpec
	if !lines.Scan() {
		return errors.Join(errors.New("bench: nobody says what to serve"), lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &spec); err != nil {
		return fmt.Errorf("bench: what to serve: %w", err)
	}
	change := func(cfg *config.Config) {
		cfg.Limits.NotifyRPS = spec.NotifyRPS
		for _, l := range []struct{ key, addr *string }{
			{&cfg.Listen.CoAPS, &spec.Listen.CoAPS}, {&cfg.Listen.CoAP, &spec.Listen.CoAP},
			{&cfg.Listen.HTTP, &spec.Listen.HTTP}, {&cfg.Listen.MQTT, &spec.Listen.MQTT},
		} {
			if *l.addr != "" {
				*l.key = *l.addr
			}
		}
	}
	_, err := withGatewayOf(ctx, dir, spec.Groups, change, func(_ context.Context, cfg *config.Config, at host.Addrs) ([]Result, error) {
		if err := enc.Encode(gatewayHello{at, string(cfg.AdminToken.Bytes()), cfg.Tokens[0].Audience}); err != nil {
			return nil, err
		}
		var profile func() // ends it; nil: none was begun
		end := func() {
			if profile != nil {
				profile()
			}
		}
		defer func() { end() }()
		for lines.Scan() {
			what := lines.Text()
			switch {
			case what == lastWord:
				end()
				end, what = func() {}, "usage"
			case what == "usage" && profiled != nil && profile == nil:
				var err error
				if profile, err = profiled(os.TempDir()); err != nil {
					return nil, err
				}
			}
			u, err := peer.Tell(what)
			if err != nil {
				return nil, err
			}
			if err := enc.Encode(u); err != nil {
				return nil, err
			}
		}
		return nil, lines.Err()
	})
	return err
}

// gateway is a whole gateway in a process of its own.
type gateway struct {
	child
	again func() error // begins a process
	spec  gatewaySpec

	hello gatewayHello
	coaps netip.AddrPort
	api   *admin.Client
	took  time.Duration // from the start of the process until it served
}

// newGateway starts a gateway with its data below dir.
func newGateway(ctx context.Context, start Start, dir string, spec gatewaySpec) (*gateway, error) {
	g := &gateway{child: child{kind: KindGateway}, spec: spec}
	// Also those that take its place last as long as ctx.
	g.again = func() error { return g.begin(ctx, start, dir) }
	return g, g.run()
}

func (g *gateway) run() (err error) {
	began := time.Now()
	if err = g.again(); err != nil {
		return err
	}
	if err = json.NewEncoder(g.in).Encode(g.spec); err == nil {
		err = g.dec.Decode(&g.hello)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bench: the gateway did not start: %w", err), g.close())
	}
	g.took = time.Since(began)
	g.coaps, err = netip.ParseAddrPort(g.hello.At.CoAPS)
	g.api = admin.NewClient(g.hello.At.HTTP, g.hello.Token)
	g.spec.Listen = g.hello.At
	return err
}

// restart kills the gateway and starts another on its data, at the same addresses.
func (g *gateway) restart() error {
	if profiled != nil { // it would not be written
		if _, err := g.ask(lastWord); err != nil {
			return err
		}
	}
	if err := g.kill(); err != nil {
		return err
	}
	return g.run()
}

func (g *gateway) close() error {
	if g == nil {
		return nil
	}
	return g.end()
}
