package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
)

// checkCmd validates without changing anything.
type checkCmd struct {
	where
	JSON bool `name:"json" help:"Print JSON."`
}

// checked is what check prints as JSON.
type checked struct {
	File      string   `json:"file"` // "" for the built-in configuration
	Valid     bool     `json:"valid"`
	Groups    int      `json:"groups"`
	TokenKeys int      `json:"token_keys"`
	Peers     int      `json:"peers"`
	Warnings  []string `json:"warnings"`
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
	if c.JSON {
		return printJSON(e.stdout, checked{cfg.File(), true, len(cfg.Groups), len(cfg.Tokens), len(cfg.PSK),
			append([]string{}, cfg.Warnings()...)})
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
type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run prints the version.
func (c versionCmd) Run(e *env) error {
	if c.JSON {
		return printJSON(e.stdout, map[string]string{"version": plugin.Version(), "go": runtime.Version()})
	}
	_, err := fmt.Fprintf(e.stdout, "groupgate %s\n", plugin.Version())
	return err
}
