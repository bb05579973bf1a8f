package plugin

import (
	"context"
	"errors"
	"log/slog"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/delegate"
	"github.com/seed4911071e/groupgate/gm"
	"github.com/seed4911071e/groupgate/store"
)

// migrations are the schemas of all rooms that keep state.
func migrations() []store.Migrations {
	return []store.Migrations{gm.Migrations(), ace.Migrations(), bridge.Migrations(), audit.Migrations(), delegate.Migrations()}
}

// MoveStore brings the state of a gateway that does not run, all of it and as it
// is, to the empty database that to names as the configuration's store would.
// The database of before opens for no gateway any more (docs/protocol.md, Section 10:
// state that moves never repeats an identifier, version or nonce).
func MoveStore(ctx context.Context, cfg *config.Config, to string, log *slog.Logger) (m *store.Moved, err error) {
	target, err := cfg.WithStore(to)
	if err != nil {
		return nil, err
	}
	if err := cfg.Bootstrap(); err != nil {
		return nil, err
	}
	unlock, err := store.LockDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return store.Move(ctx, store.Options{
		Dir: cfg.DataDir, DSN: string(cfg.StoreDSN().Bytes()), SealKey: cfg.Seal.Key.Bytes(), Program: Version(),
		Migrations: migrations(), Log: log,
	}, string(target.StoreDSN().Bytes()))
}
