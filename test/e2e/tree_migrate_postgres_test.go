//go:build postgres

package e2e

import (
	"testing"

	"github.com/seed4911071e/groupgate/store/storetest/pgtest"
)

// TestPairTreeMigrates: a group with a key tree goes from SQLite to PostgreSQL, and
// back.
func TestPairTreeMigrates(t *testing.T) {
	dsn, err := pgtest.DSN(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if dsn == "" {
		t.Fatalf("%s names no PostgreSQL server to test with", pgtest.Env)
	}
	treeMigrates(t, dsn, "sqlite:back.db")
}
