package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/durable"
)

// Several gateways may share one PostgreSQL database. What each keeps in its
// memory must then be a copy that it can tell the age of, or nothing.

// gatewayFile names this gateway among those that share a database. It belongs
// to the data directory, and is not to be copied to another.
const gatewayFile = "gateway.id"

// deadGateway is how long a gateway may say nothing before its cursors go: they
// would keep the log from being trimmed. It is as long as events are kept in
// any case, so a gateway that comes back earlier misses none.
const deadGateway = keepEvents

// seenSchema is a step of the store's own schema, alike in all databases.
const seenSchema = "ALTER TABLE store_cursors ADD COLUMN seen INTEGER NOT NULL DEFAULT 0"

// Shared says whether other gateways may write to the database too.
func (s *Store) Shared() bool { return s.db.shared() }

// Gateway is the name of this gateway among those that share the database; ""
// with a database of our own.
func (s *Store) Gateway() string { return s.gateway }

// OwnCursor makes a cursor's name this gateway's own: for followers whose work
// concerns this process, and so is to be done by every gateway. A follower
// whose work is in the database goes by the plain name: one gateway's progress
// is then everybody's.
func (s *Store) OwnCursor(name string) string {
	if s.gateway == "" {
		return name
	}
	return name + "@" + s.gateway
}

// Lead calls run while no other gateway leads under that name: at once with a
// database of our own. When the lead is lost, run's context ends, and run is
// called again once the lead is back. It returns when ctx ends, or run returns
// while it leads.
func (s *Store) Lead(ctx context.Context, name string, run func(context.Context) error) error {
	if !s.Shared() {
		return run(ctx)
	}
	return s.db.lead(ctx, name, run)
}

// dropDead forgets the cursors of gateways that have been silent for long.
func dropDead(tx *Tx, now time.Time) error {
	_, err := tx.Exec("DELETE FROM store_cursors WHERE name LIKE '%@%' AND seen < ?", now.Add(-deadGateway).UnixMilli())
	return err
}

// gatewayID reads the name of this gateway, or makes one.
func gatewayID(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("store: a shared database needs a data directory")
	}
	path := filepath.Join(dir, gatewayFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		// The data directory is ours alone, so nobody makes another meanwhile.
		var b [8]byte
		rand.Read(b[:]) // never fails
		if err := durable.Replace(path, []byte(hex.EncodeToString(b[:])+"\n")); err != nil {
			return "", fmt.Errorf("store: gateway id: %w", err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("store: gateway id: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return "", fmt.Errorf("store: gateway id: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if b, err := hex.DecodeString(id); err != nil || len(b) != 8 {
		// Nothing but a cursor hangs on it.
		return "", fmt.Errorf("store: %s is damaged: remove it", path)
	}
	return id, nil
}
