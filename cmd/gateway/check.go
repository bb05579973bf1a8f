package main

import (
	"fmt"
	"io"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
)

// checkCmd validates without changing anything.
type checkCmd struct {
	where
}

// Run checks the configuration and every key file that exists already.
func (c *checkCmd) Run(e *env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if err := cfg.CheckKeys(); err != nil {
		return err
	}
	printWarnings(e.stderr, cfg)
	name := cfg.File()
	if name == "" {
		name = "the built-in configuration"
	}
	_, err = fmt.Fprintf(e.stdout, "%s is valid: %s, %s, %s\n", name,
		count(len(cfg.Groups), "group"), count(len(cfg.Tokens), "token key"), count(len(cfg.PSK), "configured peer"))
	return err
}

func printWarnings(w io.Writer, cfg *config.Config) {
	for _, text := range cfg.Warnings() {
		_, _ = fmt.Fprintf(w, "warning: %s\n", text)
	}
}

func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// versionCmd prints which program this is.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintf(e.stdout, "groupgate %s\n", plugin.Version())
	return err
}
