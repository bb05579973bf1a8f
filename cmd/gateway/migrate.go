package main

import (
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/plugin"
)

type migrateCmd struct {
	where
	To string `required:"" placeholder:"STORE" help:"Empty database: postgres://USER@HOST/DATABASE, or sqlite:FILE. The password of a server is best in PGPASSWORD or ~/.pgpass."`
}

// Run moves everything from the configured store to another one.
func (c *migrateCmd) Run(e *env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := plugin.MoveStore(e.ctx, cfg, c.To, log)
	if err != nil {
		return err
	}
	did := fmt.Sprintf("%d rows of %d tables are", m.Rows, m.Tables)
	if m.Before {
		did = "everything was before"
	}
	_, err = fmt.Fprintf(e.stdout, "%s in %s\nNothing starts on the database of before any more: write store: into the configuration, then run the gateway.\n", did, m.To)
	return err
}
