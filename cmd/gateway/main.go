// Command gateway runs groupgate and speaks to a running one.
//
// Start with `gateway run`; `gateway help` lists the rest. Exit status: 0,
// 1 when it failed, 2 when the command line is wrong, 3 when what it waited for has
// not come.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed4911071e/groupgate/cmd/gateway/argv"
)

// cli is the command line.
type cli struct {
	Run      runCmd      `cmd:"" help:"Run the gateway."`
	Check    checkCmd    `cmd:"" help:"Check a configuration file and the key files that it names."`
	Migrate  migrateCmd  `cmd:"" help:"Move the whole state of a gateway that does not run to another store."`
	Group    groupCmd    `cmd:"" help:"Look at groups of the running gateway, and change them."`
	Why      whyCmd      `cmd:"" help:"Explain why a node can or cannot read its groups now, and what to do."`
	Token    tokenCmd    `cmd:"" help:"Issue access tokens by hand."`
	Node     nodeCmd     `cmd:"" help:"Play a constrained node; enroll nodes, list, disable, enable and remove them."`
	Delegate delegateCmd `cmd:"" help:"Look at legacy nodes that the gateway joins groups for."`
	Identity identityCmd `cmd:"" help:"Print the public key and the certificate of the running gateway, to pin in nodes."`
	Audit    auditCmd    `cmd:"" help:"Read the audit log of the running gateway."`
	Bench    benchCmd    `cmd:"" help:"Measure, beside peers in the same run."`
	Demo     demoCmd     `cmd:"" help:"Tell the whole story in one process: four nodes, a rekey, a leave, a wake-up."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// env is what commands work with.
type env struct {
	ctx    context.Context
	stdout io.Writer
	stderr io.Writer
}

// runner is what every command is.
type runner interface{ Run(*env) error }

func commandLine() *argv.Parser {
	return &argv.Parser{
		Name: "gateway",
		About: "An edge gateway for nodes in OSCORE groups: admits them, renews their keys, delivers the keys.\n\n" +
			"First steps: `gateway run`, and in a second terminal `gateway node join --group sensors`.",
		Vars: map[string]string{"multicast": defaultMulticast},
	}
}

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
	exitNotYet = 3
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	parser := commandLine()
	if len(args) == 1 && args[0] == "--version" {
		args = []string{"version"}
	}
	command, err := parser.Parse(&cli{}, args)
	if help := (*argv.HelpError)(nil); errors.As(err, &help) {
		_, _ = io.WriteString(stdout, help.Text)
		return 0
	}
	if err != nil {
		of := "gateway"
		if usage, ok := errors.AsType[*argv.UsageError](err); ok {
			of = usage.Command
		}
		_, _ = fmt.Fprintf(stderr, "gateway: %s\n`%s --help` shows what is possible.\n", err, of)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := command.(runner).Run(&env{ctx: ctx, stdout: stdout, stderr: stderr}); err != nil {
		printError(stderr, err)
		if _, ok := errors.AsType[notYetError](err); ok {
			return exitNotYet
		}
		return exitFailed
	}
	return 0
}

// Run plays the node; warnings go to standard error.
func (c *nodeJoinCmd) Run(e *env) error {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return c.run(e.ctx, e.stdout, log)
}
