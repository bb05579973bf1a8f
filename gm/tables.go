package gm

import "github.com/seed4911071e/groupgate/store"

// Migrations are the tables of the Group Manager. Columns that hold secrets
// are sealed by the store with a context that names table, group, version and
// column, so that a value copied to another row does not open.
//
// Times: exp is in seconds since 1970 as on the wire; due_at and expires are
// in milliseconds, 0 meaning never.
func Migrations() store.Migrations {
	return store.Migrations{Room: "gm", Steps: []string{schema1, schema2, schemaMove, schema4, schema5, schema6, schemaWaiting, schemaPhased, schemaLapsed}}
}

const schema1 = `
CREATE TABLE gm_groups (
	id            INTEGER PRIMARY KEY,
	name          TEXT    NOT NULL UNIQUE,
	state         INTEGER NOT NULL,            -- group.go
	num           INTEGER NOT NULL,            -- version of the keying material
	gid           BLOB    NOT NULL UNIQUE,
	gid_epoch     INTEGER NOT NULL,            -- of gid; gid.go
	exp           INTEGER NOT NULL,
	handed        INTEGER NOT NULL,            -- 1: somebody has been given this version
	changes       INTEGER NOT NULL,            -- counts changes of the membership
	sid_next      INTEGER NOT NULL,            -- senderid.go
	sid_free      INTEGER NOT NULL,            -- rows in gm_free
	sid_from_free INTEGER NOT NULL DEFAULT 0,  -- what the last assignment did
	stale_from    INTEGER NOT NULL,            -- oldest version with a stale set
	due_at        INTEGER NOT NULL DEFAULT 0,  -- a rekey is due then
	due_reasons   INTEGER NOT NULL DEFAULT 0   -- rekey.go: reasons
);
CREATE TABLE gm_configs (
	group_id   INTEGER PRIMARY KEY,
	config     TEXT NOT NULL,                  -- JSON of groupcomm.GroupConfig
	kdc_key    BLOB NOT NULL,                  -- sealed COSE_Key
	kdc_cred   BLOB NOT NULL                   -- credential of the Group Manager in this group
);
CREATE TABLE gm_material (
	group_id      INTEGER PRIMARY KEY,
	num           INTEGER NOT NULL,
	master_secret BLOB NOT NULL,               -- sealed
	salt          BLOB NOT NULL,               -- sealed
	message       BLOB NOT NULL                -- sealed: the encoded rekey message of num
);
CREATE TABLE gm_members (
	group_id     INTEGER NOT NULL,
	node         TEXT    NOT NULL,
	subject_kind INTEGER NOT NULL,
	subject_id   BLOB    NOT NULL,
	sid          INTEGER,                      -- senderid.go; NULL for a monitor
	roles        INTEGER NOT NULL,
	cred         BLOB,                         -- NULL for a monitor
	scope        BLOB    NOT NULL,             -- of the latest Join Request, for later proofs
	cnonce       BLOB    NOT NULL,             -- of the latest Join Request: 'clientchallenge'
	control_uri  TEXT    NOT NULL,
	birth_gid    BLOB    NOT NULL,             -- Gid at the latest join
	joined_num   INTEGER NOT NULL,
	expires      INTEGER NOT NULL,             -- of the token
	lapsed       INTEGER NOT NULL DEFAULT 0,   -- 1: its token expired
	lapsed_num   INTEGER NOT NULL DEFAULT 0,   -- version it held when it lapsed
	PRIMARY KEY (group_id, node)
);
CREATE UNIQUE INDEX gm_members_subject ON gm_members (subject_id, subject_kind, group_id);
CREATE UNIQUE INDEX gm_members_sid ON gm_members (group_id, sid);
CREATE INDEX gm_members_lapsed ON gm_members (expires) WHERE lapsed = 1;
CREATE TABLE gm_stale (
	group_id INTEGER NOT NULL,
	num      INTEGER NOT NULL,
	sid      INTEGER NOT NULL,
	PRIMARY KEY (group_id, num, sid)
);
CREATE TABLE gm_free (
	group_id INTEGER NOT NULL,
	sid      INTEGER NOT NULL,
	PRIMARY KEY (group_id, sid)
);
`

// schema2: reuse of Gids. gid_wraps counts how often the epochs began anew;
// gm_elders are those that the latest rekey evicted, see elders.go.
const schema2 = `
ALTER TABLE gm_groups ADD COLUMN gid_wraps INTEGER NOT NULL DEFAULT 0;
CREATE TABLE gm_elders (
	group_id     INTEGER NOT NULL,
	subject_kind INTEGER NOT NULL,
	subject_id   BLOB    NOT NULL,
	PRIMARY KEY (group_id, subject_kind, subject_id)
);
`

// schemaMove: groups that came from another gateway. awaited marks a member whose
// token was not seen here yet; gm_imports lists the files that were taken.
const schemaMove = `
ALTER TABLE gm_members ADD COLUMN awaited INTEGER NOT NULL DEFAULT 0;
CREATE INDEX gm_members_awaited ON gm_members (expires) WHERE awaited = 1;
CREATE TABLE gm_imports (
	file BLOB    NOT NULL PRIMARY KEY,
	name TEXT    NOT NULL,
	at   INTEGER NOT NULL
);
`

// schema4: what is left of deleted groups, and how often the state changed.
const schema4 = `
ALTER TABLE gm_groups ADD COLUMN state_changes INTEGER NOT NULL DEFAULT 0;
CREATE TABLE gm_retired (
	group_id    INTEGER PRIMARY KEY,           -- no group gets that id again
	name        TEXT    NOT NULL,
	gid_prefix  BLOB    NOT NULL,
	epoch_bytes INTEGER NOT NULL,
	gid_epoch   INTEGER NOT NULL               -- the last that was in use
);
`

// schema5: the state that a group had when it moved away. For groups that moved
// before it was noted it is that of most: active.
const schema5 = `
ALTER TABLE gm_groups ADD COLUMN moved_from INTEGER NOT NULL DEFAULT 1;
`

// schema6: a rekey of a large group looks for the few members whose tokens
// expired.
const schema6 = `
CREATE INDEX gm_members_expires ON gm_members (group_id, expires);
`

// schemaPhased: members that asked for two phases at their latest join.
const schemaPhased = `
ALTER TABLE gm_members ADD COLUMN phased INTEGER NOT NULL DEFAULT 0;
`

// schemaWaiting: Join Requests that wait for a rekey, see newcomers.go. num and
// sid are the version and the Sender ID that a rekey reserved; at is in
// milliseconds.
const schemaWaiting = `
CREATE TABLE gm_waiting (
	group_id INTEGER NOT NULL,
	ticket   BLOB    NOT NULL,
	cred     BLOB    NOT NULL,
	roles    INTEGER NOT NULL,
	at       INTEGER NOT NULL,
	num      INTEGER NOT NULL DEFAULT 0,
	sid      INTEGER NOT NULL DEFAULT -1,
	PRIMARY KEY (group_id, ticket)
);
`

// schemaLapsed: the members of one group whose tokens are gone, among very many
// who have theirs. With the time alone SQLite preferred to look at them all.
const schemaLapsed = `
DROP INDEX gm_members_lapsed;
CREATE INDEX gm_members_lapsed ON gm_members (group_id, expires) WHERE lapsed = 1;
`
