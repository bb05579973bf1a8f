package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

const oddsTable = `CREATE TABLE odds (id INTEGER PRIMARY KEY, name TEXT NOT NULL, body BLOB NOT NULL, more BLOB);`

var odds = Migrations{Room: "odds", Steps: []string{oddsTable}}

// fill writes rows of all kinds of values, more than one statement copies.
func fill(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *Tx) error {
		for i := range 3*copyRows + 5 {
			var more any
			if i%3 == 0 {
				more = []byte{0, byte(i), 0xff}
			}
			if _, err := tx.Exec(`INSERT INTO odds (id, name, body, more) VALUES (?, ?, ?, ?)`, int64(i)-7<<40, fmt.Sprint("'ü", i),
				[]byte(strings.Repeat("\x00x", i%2)), more); err != nil {
				return err
			}
		}
		for range 5 {
			if err := tx.Emit("kind", "key", []byte("data")); err != nil {
				return err
			}
		}
		for name, id := range map[string]int{"bridge": 9, "bridge@0011223344556677": 3} {
			if _, err := tx.Exec(`INSERT INTO store_cursors (name, id, seen) VALUES (?, ?, 0)`, name, id); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`DELETE FROM store_events WHERE id = 5`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// content is everything in a database but what is of the kind of database.
func content(t *testing.T, s *Store) string {
	t.Helper()
	var b strings.Builder
	if err := s.View(t.Context(), func(tx *Tx) error {
		b.Reset()
		for _, q := range []string{
			`SELECT id, name, body, more FROM odds ORDER BY id`, `SELECT id, kind, key, data FROM store_events ORDER BY id`,
			`SELECT name, id, seen, seen FROM store_cursors WHERE name NOT LIKE '%@%' ORDER BY name`,
		} {
			rows, err := tx.Query(q)
			if err != nil {
				return err
			}
			for rows.Next() {
				row := make([]any, 4)
				if err := rows.Scan(&row[0], &row[1], &row[2], &row[3]); err != nil {
					return err
				}
				for _, v := range row {
					fmt.Fprintf(&b, "%v %x, ", v == nil, v)
				}
				b.WriteByte('\n')
			}
			if err := rows.Err(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestMove(t *testing.T) {
	testMove(t, "sqlite:other.db")
}

// testMove moves a SQLite database to another and looks what is there.
func testMove(t *testing.T, to string) {
	dir := newDir(t)
	rooms := func(o *Options) { o.DSN, o.Alone, o.Migrations = "sqlite:groupgate.db", true, []Migrations{odds} }
	s := openTest(t, dir, rooms)
	fill(t, s)
	want := content(t, s)
	options := func() Options {
		o := Options{Dir: dir, SealKey: testKey(), DSN: "sqlite:groupgate.db", Migrations: []Migrations{odds}}
		return o
	}
	if _, err := Move(t.Context(), options(), "sqlite:"+filepath.Join(dir, "groupgate.db")); err == nil {
		t.Error("moved to itself")
	}
	closed(t, s)
	m, err := Move(t.Context(), options(), to)
	if err != nil || m.Before || m.Rows < 3*copyRows+5+4+2 || strings.Contains(m.To, "@") {
		t.Fatalf("%+v, %v", m, err)
	}

	if _, err := open(t, dir, rooms); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), m.To) {
		t.Errorf("the source opens: %v", err)
	}
	if again, err := Move(t.Context(), options(), to); err != nil || !again.Before {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	if _, err := Move(t.Context(), options(), "sqlite:third.db"); !errors.Is(err, ErrMoved) {
		t.Errorf("to another place: %v", err)
	}
	there := func(o *Options) { o.DSN, o.Alone, o.Migrations = to, true, []Migrations{odds} }
	s = openTest(t, dir, there) // with the mark of the source
	if got := content(t, s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, yes := s.RolledBack(); yes {
		t.Error("older than its mark")
	}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		if err := tx.Emit("next", "", nil); err != nil {
			return err
		}
		var id int64
		if err := tx.QueryRow(`SELECT MAX(id) FROM store_events`).Scan(&id); err != nil || id <= 9 {
			t.Errorf("event %d, %v: a cursor stands at 9", id, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	// The database of before is older now, for whoever knows of no moves.
	mark, err := readMark(filepath.Join(dir, markName))
	if err != nil || mark.seq == 0 {
		t.Errorf("%+v, %v", mark, err)
	}

	// Nothing is moved onto something.
	other := newDir(t)
	s = openTest(t, other, rooms)
	fill(t, s)
	closed(t, s)
	o := options()
	o.Dir = other
	if _, err := Move(t.Context(), o, absolute(t, dir, to)); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("onto a database in use: %v", err)
	}
	s = openTest(t, other, rooms) // which did not mark the source
	closed(t, s)
}

func absolute(t *testing.T, dir, dsn string) string {
	t.Helper()
	dsn, err := absoluteDSN(dir, dsn)
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

// A move that was interrupted after the source was marked goes on to the same
// place.
func TestMoveInterrupted(t *testing.T) {
	dir := newDir(t)
	rooms := func(o *Options) { o.DSN, o.Alone, o.Migrations = "sqlite:groupgate.db", true, []Migrations{odds} }
	s := openTest(t, dir, rooms)
	fill(t, s)
	want := content(t, s)
	to := absolute(t, dir, "sqlite:other.db")
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec(`INSERT INTO store_meta (name, value) VALUES (?, ?)`, metaMoved, []byte("0011\n"+to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	if _, err := open(t, dir, rooms); !errors.Is(err, ErrMoved) {
		t.Fatalf("got %v", err)
	}
	m, err := Move(t.Context(), Options{Dir: dir, SealKey: testKey(), DSN: "sqlite:groupgate.db", Migrations: []Migrations{odds}}, to)
	if err != nil || m.Before {
		t.Fatalf("%+v, %v", m, err)
	}
	s = openTest(t, dir, rooms, func(o *Options) { o.DSN = to })
	if got := content(t, s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	closed(t, s)
}
