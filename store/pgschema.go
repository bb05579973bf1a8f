package store

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// schema: an identity column without a cache. Writers come one after the
// other, so identifiers are committed in their order.
func (d *postgresDB) schema() []string {
	return []string{`
		CREATE TABLE store_meta (
			name  TEXT PRIMARY KEY,
			value BLOB NOT NULL
		);
		CREATE TABLE store_events (
			id   INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			at   INTEGER NOT NULL,
			kind TEXT NOT NULL,
			key  TEXT NOT NULL,
			data BLOB NOT NULL
		);
		CREATE TABLE store_cursors (
			name TEXT PRIMARY KEY,
			id   INTEGER NOT NULL
		);`}
}

// The types of the portable subset. Texts compare by their bytes, as in SQLite,
// whatever the database's locale.
var pgTypes = map[string]string{
	"INTEGER": "BIGINT",
	"BLOB":    "BYTEA",
	"TEXT":    `TEXT COLLATE "C"`,
}

// A string, an identifier in quotes, a comment, or a word.
var pgWords = regexp.MustCompile(`'[^']*'|"[^"]*"|--[^\n]*|[A-Za-z_][A-Za-z0-9_]*`)

// ddl puts PostgreSQL's names for the column types into a migration step:
// INTEGER has 64 bits in SQLite, BLOB is BYTEA, TEXT is ordered by its bytes. It has
// no tables that lie in the order of their key.
func (d *postgresDB) ddl(script string) string {
	script = strings.ReplaceAll(script, ") WITHOUT ROWID", ")")
	return pgWords.ReplaceAllStringFunc(script, func(word string) string {
		if t, ok := pgTypes[word]; ok {
			return t
		}
		return word
	})
}

// rebind numbers the placeholders: ? outside of strings becomes $1, $2 …
func (d *postgresDB) rebind(query string) string {
	if !strings.Contains(query, "?") {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 8)
	n := 0
	quote := byte(0)
	for i := 0; i < len(query); i++ {
		switch c := query[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '-' && strings.HasPrefix(query[i:], "--"):
			end := strings.IndexByte(query[i:], '\n')
			if end < 0 {
				end = len(query) - i
			}
			b.WriteString(query[i : i+end])
			i += end - 1
			continue
		case c == '?':
			n++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
			continue
		}
		b.WriteByte(query[i])
	}
	return b.String()
}

// place: host, port, database and schema; not the role, which may be another.
func (d *postgresDB) place() string {
	u := url.URL{Scheme: "postgres", Path: "/" + d.cfg.Database}
	q := url.Values{}
	if strings.HasPrefix(d.cfg.Host, "/") {
		q.Set("host", d.cfg.Host)
		q.Set("port", strconv.Itoa(int(d.cfg.Port)))
	} else {
		u.Host = net.JoinHostPort(d.cfg.Host, strconv.Itoa(int(d.cfg.Port)))
	}
	if path := d.cfg.RuntimeParams["search_path"]; path != "" {
		q.Set("search_path", path)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func (d *postgresDB) tables() string {
	return "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename"
}

func (d *postgresDB) keepIDs() string { return " OVERRIDING SYSTEM VALUE" }

func (d *postgresDB) restart(next int64) []string {
	return []string{fmt.Sprintf("ALTER TABLE store_events ALTER COLUMN id RESTART WITH %d", next)}
}
