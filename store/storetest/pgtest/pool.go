package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Making the tables of a schema takes far longer than most tests, and a server
// with thousands of schemas is a slow one. So schemas are lent: one that comes
// back is emptied and lent again, to a folder that wants the same tables.
var pool struct {
	mu   sync.Mutex
	lent map[string]string   // guarded by mu: schema by folder
	free map[string][]string // guarded by mu: schemas by what tables they have
	made int                 // guarded by mu
}

// absolute is a folder as it is looked up.
func absolute(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// Lend gives a new folder a schema until giveBack is called. tables names what
// tables the folder's store makes: a schema that has them already is preferred.
// It does nothing without a server.
func Lend(dir, tables string) (giveBack func() error, err error) {
	if os.Getenv(Env) == "" {
		return func() error { return nil }, nil
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if pool.lent == nil {
		pool.lent, pool.free = map[string]string{}, map[string][]string{}
	}
	var name string
	if free := pool.free[tables]; len(free) > 0 {
		name, pool.free[tables] = free[len(free)-1], free[:len(free)-1]
	} else {
		pool.made++
		name = ownSchema(fmt.Sprintf("/pool/%d/%d/%s", os.Getpid(), pool.made, dir))
		if err := exec(fmt.Sprintf(create, name)); err != nil {
			return nil, err
		}
	}
	dir = absolute(dir)
	pool.lent[dir] = name
	return func() error {
		err := exec(fmt.Sprintf(empty, name))
		pool.mu.Lock()
		defer pool.mu.Unlock()
		delete(pool.lent, dir)
		if err != nil {
			return err // the schema is not lent any more
		}
		pool.free[tables] = append(pool.free[tables], name)
		return nil
	}, nil
}

// empty deletes all rows but the record of the tables, and has events counted
// from the beginning.
const empty = `DO $$ DECLARE t text; BEGIN
	FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = '%[1]s' AND tablename <> 'store_schema' LOOP
		EXECUTE format('DELETE FROM %[1]s.%%I', t);
	END LOOP;
	IF to_regclass('%[1]s.store_events') IS NOT NULL THEN
		ALTER TABLE %[1]s.store_events ALTER COLUMN id RESTART WITH 1;
	END IF;
END $$`

// lentTo is the schema that a folder was lent, "" when it was lent none.
func lentTo(dir string) string {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	return pool.lent[absolute(dir)]
}
