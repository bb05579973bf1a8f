package delegate

import "github.com/seed4911071e/groupgate/store"

// Migrations returns the tables of this room. owner is the gateway among those
// that share the database: each has delegates of its own.
//
//   - delegate_membership: what a membership needs to go on after a restart. access
//     is the token with its key, saved the membership with all of its keys; both are
//     sealed, and NULL where there is none. evicted is when the Group Manager said
//     so, 0 else.
//   - delegate_sequence: for each Sender Context, by the digest of what it is derived
//     from, one more than the last Sender Sequence Number that may have been used.
//   - delegate_window: for each keying material, by its digest, and kid: the Replay
//     Window. delegate_sequence has the digests of those whose windows are forgotten.
//   - delegate_held: requests that wait for a node that sleeps, protected as they came:
//     from whom, since when, and whether the node may have been asked.
//   - delegate_pin: the credential of a Group Manager as it was proven first.
func Migrations() store.Migrations {
	return store.Migrations{Room: "delegate", Steps: []string{`
CREATE TABLE delegate_membership (
	owner   TEXT   NOT NULL,
	node    TEXT   NOT NULL,
	grp     TEXT   NOT NULL,
	gm      TEXT   NOT NULL,
	roles   BIGINT NOT NULL,
	access  BLOB,
	saved   BLOB,
	evicted BIGINT NOT NULL,
	PRIMARY KEY (owner, node, grp, gm)
);
CREATE TABLE delegate_sequence (
	owner TEXT   NOT NULL,
	node  TEXT   NOT NULL,
	grp   TEXT   NOT NULL,
	name  TEXT   NOT NULL,
	upto  BIGINT NOT NULL,
	at    BIGINT NOT NULL,
	PRIMARY KEY (owner, node, grp, name)
);
CREATE TABLE delegate_pin (
	owner TEXT NOT NULL,
	gm    TEXT NOT NULL,
	grp   TEXT NOT NULL,
	cred  BLOB NOT NULL,
	PRIMARY KEY (owner, gm, grp)
);
`, `
CREATE TABLE delegate_window (
	owner TEXT   NOT NULL,
	node  TEXT   NOT NULL,
	grp   TEXT   NOT NULL,
	name  TEXT   NOT NULL,
	kid   BLOB   NOT NULL,
	next  BIGINT NOT NULL,
	seen  BIGINT NOT NULL,
	at    BIGINT NOT NULL,
	PRIMARY KEY (owner, node, grp, name, kid)
);
`, `
CREATE TABLE delegate_held (
	owner   TEXT   NOT NULL,
	node    TEXT   NOT NULL,
	grp     TEXT   NOT NULL,
	id      TEXT   NOT NULL,
	sender  TEXT   NOT NULL,
	message BLOB   NOT NULL,
	asked   BIGINT NOT NULL,
	at      BIGINT NOT NULL,
	PRIMARY KEY (owner, node, grp, id)
);
`}}
}
