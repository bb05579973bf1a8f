package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// stopTime bounds a graceful stop: goodbyes take at most half of it.
const stopTime = 10 * time.Second

// runCmd is the gateway itself.
type runCmd struct {
	where
	AcceptRollback bool `help:"Start although the database is older than it was (put back from a backup), and rekey every group."`
}

// Run runs the gateway until SIGINT or SIGTERM.
func (c *runCmd) Run(e *env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	log := newLogger(e.stderr, cfg.Log)
	ended := make(chan error, 1)
	go func() { ended <- runGateway(e.ctx, cfg, log, e.stdout, c.flags(), c.options()...) }()
	select {
	case err := <-ended:
		return err
	case <-e.ctx.Done():
	}
	log.Info("stopping")
	began := time.Now()
	sdNotify(log, "STOPPING=1")
	late := time.NewTimer(stopTime)
	defer late.Stop()
	select {
	case err := <-ended:
		if err == nil {
			log.Info("stopped", "took", time.Since(began).Round(time.Millisecond))
		}
		return err
	case <-late.C:
		return fmt.Errorf("did not stop within %v; nothing durable is lost", stopTime)
	}
}

// runGateway serves cfg until ctx ends. Once everything serves it writes a few
// lines to out: what listens where, and what to type next.
func runGateway(ctx context.Context, cfg *config.Config, log *slog.Logger, out io.Writer, flags string, opts ...plugin.Option) error {
	if err := cfg.Bootstrap(); err != nil {
		return err
	}
	if portZero(cfg) {
		defer func() { _ = os.Remove(cfg.Path(adminAddrFile)) }() // gone already is as good
	}
	return host.Serve(ctx, cfg, log, func(_ *plugin.Gateway, at host.Addrs) {
		if err := writeAdminAddr(cfg, at.HTTP); err != nil {
			log.WarnContext(ctx, "address of the admin API not written", "err", err)
		}
		log.InfoContext(ctx, "serving", "program", plugin.Version(), "coaps", at.CoAPS, "coap", at.CoAP, "http", at.HTTP, "mqtt", at.MQTT)
		_, _ = io.WriteString(out, greeting(cfg, at, flags))
		sdNotify(log, "READY=1")
	}, opts...)
}

func (c *runCmd) options() []plugin.Option {
	if c.AcceptRollback {
		return []plugin.Option{plugin.WithAcceptedRollback()}
	}
	return nil
}

// greetingRules is how many rules of the proxy are told of at the start.
const greetingRules = 8

// greeting is what a person sees after the start.
func greeting(cfg *config.Config, at host.Addrs, flags string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "groupgate %s is ready, data in %s\n", plugin.Version(), cfg.DataDir)
	for _, l := range []struct{ name, addr, what string }{
		{"coaps", at.CoAPS, "CoAP over DTLS: tokens, joins, rekeys"},
		{"coap", at.CoAP, "plain CoAP: discovery, /authz-info, OSCORE"},
		{"http", at.HTTP, "health, metrics, admin API"},
		{"mqtt", at.MQTT, "embedded broker"},
	} {
		if l.addr != "" {
			fmt.Fprintf(&b, "  %-6s %-22s %s\n", l.name, l.addr, l.what)
		}
	}
	if cfg.Listen.MQTTS != "" && cfg.MQTT.Broker == "" {
		fmt.Fprintf(&b, "  %-6s %-22s %s\n", "mqtts", cfg.Listen.MQTTS, "embedded broker with TLS")
	}
	for i, line := range cfg.Proxy.Summary() {
		if i == greetingRules {
			fmt.Fprintf(&b, "  %-6s and more: the log has all\n", "")
			break
		}
		fmt.Fprintf(&b, "  %-6s %s\n", "proxy", line)
	}
	self := invocation()
	if cfg.File() == "" {
		b.WriteString("Reachable from this machine only; to open it, write a configuration file (configs/gateway.yaml\n" +
			"explains every key) and start with --config FILE.\n")
		fmt.Fprintf(&b, "Next, in another terminal:\n  %s node join --group %s%s\n", self, cfg.Groups[0].Name, flags)
		return b.String()
	}
	fmt.Fprintf(&b, "Next, in another terminal:\n  %s group list%s\n", self, flags)
	return b.String()
}

// invocation is how this program was started, to be typed again.
func invocation() string {
	name := os.Args[0]
	if strings.Contains(name, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/gateway"
	}
	return name
}

// writeAdminAddr tells the command line where the admin API is when the system
// chose the port.
func writeAdminAddr(cfg *config.Config, addr string) error {
	if !portZero(cfg) {
		return nil
	}
	return os.WriteFile(cfg.Path(adminAddrFile), []byte(addr+"\n"), 0o600)
}

// portZero says whether the system chooses the port of the admin API.
func portZero(cfg *config.Config) bool {
	_, port, err := net.SplitHostPort(cfg.Listen.HTTP)
	return err == nil && port == "0"
}

// newLogger logs to w as the configuration says, which is valid.
func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic("gateway: internal error: " + err.Error())
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// sdNotify tells systemd our state, when it asked for it (sd_notify(3)).
func sdNotify(log *slog.Logger, state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = io.WriteString(conn, state)
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		log.Warn("systemd not notified", "err", err)
	}
}
