package bridge

import "github.com/seed4911071e/groupgate/store"

// Migrations returns the tables of this room.
//
//   - bridge_registration: who is rekeyed by MQTT, and under which key. rid is
//     the random identifier in the topics and the user name at the broker.
//     sealed_secret is the password, to be told again; NULL in rows from before
//     it was kept.
//   - bridge_message: the newest rekey message per key, as it was rendered.
//     Only these bytes ever leave; num only grows.
//   - bridge_confirmed: the newest version that a member is known to hold.
//     That it is pending is derived: no row says so.
//   - bridge_revoked: identifiers whose retained messages the broker may still
//     hold.
//   - bridge_meta: single values.
//   - bridge_rekey: since when a version is due, and when all had confirmed it;
//     of the newest versions of a group, in milliseconds. held_until is the time
//     until which members may wait for a scheduled one, 0: none does; ordered is 1
//     when responders are told before the others.
//   - bridge_dormant: for a member that asked for two phases, the message of a
//     scheduled rekey that goes before the one in bridge_message.
//   - bridge_life: what members announced, and signs of life where a policy
//     counts silence, in milliseconds; marked is since when one is unreachable.
//   - bridge_lease: which of the gateways that share the store has a member's
//     newest association; n counts the changes.
func Migrations() store.Migrations {
	return store.Migrations{Room: "bridge", Steps: []string{`
CREATE TABLE bridge_registration (
	rid         TEXT    NOT NULL PRIMARY KEY,
	grp         TEXT    NOT NULL,
	node        TEXT    NOT NULL,
	kid         BLOB    NOT NULL UNIQUE,
	alg         INTEGER NOT NULL,
	sealed_key  BLOB    NOT NULL,
	base_iv     BLOB    NOT NULL,
	secret_hash BLOB    NOT NULL,
	UNIQUE (grp, node)
);
CREATE TABLE bridge_message (
	kid  BLOB    NOT NULL PRIMARY KEY,
	num  BIGINT  NOT NULL,
	body BLOB    NOT NULL
);
CREATE TABLE bridge_confirmed (
	grp     TEXT    NOT NULL,
	node    TEXT    NOT NULL,
	version BIGINT  NOT NULL,
	channel TEXT    NOT NULL,
	at      BIGINT  NOT NULL,
	PRIMARY KEY (grp, node)
);
CREATE TABLE bridge_revoked (
	rid TEXT NOT NULL PRIMARY KEY
);
CREATE TABLE bridge_meta (
	name  TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
);
`, `
CREATE TABLE bridge_rekey (
	grp  TEXT   NOT NULL,
	num  BIGINT NOT NULL,
	at   BIGINT NOT NULL,
	done BIGINT NOT NULL,
	PRIMARY KEY (grp, num)
);
CREATE TABLE bridge_life (
	grp       TEXT   NOT NULL,
	node      TEXT   NOT NULL,
	heard     BIGINT NOT NULL,
	asleep_at BIGINT NOT NULL,
	wake_at   BIGINT NOT NULL,
	channel   TEXT   NOT NULL,
	marked    BIGINT NOT NULL,
	PRIMARY KEY (grp, node)
);
`, `
CREATE TABLE bridge_lease (
	grp     TEXT   NOT NULL,
	node    TEXT   NOT NULL,
	gateway TEXT   NOT NULL,
	n       BIGINT NOT NULL,
	PRIMARY KEY (grp, node)
);
`, `
ALTER TABLE bridge_registration ADD COLUMN sealed_secret BLOB;
`, schemaTree, `
ALTER TABLE bridge_rekey ADD COLUMN held_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE bridge_rekey ADD COLUMN ordered BIGINT NOT NULL DEFAULT 0;
ALTER TABLE bridge_registration ADD COLUMN phased BIGINT NOT NULL DEFAULT 0;
CREATE TABLE bridge_dormant (
	kid  BLOB    NOT NULL PRIMARY KEY,
	num  BIGINT  NOT NULL,
	body BLOB    NOT NULL
);
`, schemaTreeCounts, schemaSingle, schemaClustered}}
}

// schemaClustered: the confirmations of a group lie together and in the order of its
// members, where SQLite knows how: a part of a batch touches few pages.
const schemaClustered = `
CREATE TABLE bridge_confirmed_sorted (
	grp     TEXT    NOT NULL,
	node    TEXT    NOT NULL,
	version BIGINT  NOT NULL,
	channel TEXT    NOT NULL,
	at      BIGINT  NOT NULL,
	PRIMARY KEY (grp, node)
) WITHOUT ROWID;
INSERT INTO bridge_confirmed_sorted SELECT grp, node, version, channel, at FROM bridge_confirmed ORDER BY grp, node;
DROP TABLE bridge_confirmed;
ALTER TABLE bridge_confirmed_sorted RENAME TO bridge_confirmed;
`

// schemaSingle: the members that are told one by one, in the order in which their
// messages are read: a rekey by a tree looks at none of the others.
const schemaSingle = `
DROP INDEX bridge_registration_single;
CREATE INDEX bridge_registration_single ON bridge_registration (grp, node) WHERE leaf < 0;
`

// schemaTree: key trees.
//
//   - bridge_tree: a group's tree. tid is the random identifier in its topics, of
//     which the first bytes are that of its keys; next and spare are for the places
//     of leaves, num is the newest version that was rendered, seq grows with
//     every change. grp is empty when the group is gone, and what the broker
//     retains is still to be deleted.
//   - bridge_tree_node: nodes with members below; pos is level << 32 | index.
//     version and step name the sealed key.
//   - bridge_tree_free: places that were given back.
//   - bridge_tree_message: the newest message under the key of a place; empty
//     when what is retained is to be deleted. at is the seq of the tree then.
//
// out and messages, added by schemaTreeCounts, are leaves that were taken out since
// the newest rekey, and how many messages that has.
//
// A registration with a leaf is told by the tree; its key is that of the leaf.
// route is the channel that it asked for.
const schemaTree = `
CREATE TABLE bridge_tree (
	tid     TEXT    NOT NULL PRIMARY KEY,
	grp     TEXT    NOT NULL,
	degree  BIGINT  NOT NULL,
	height  BIGINT  NOT NULL,
	seq     BIGINT  NOT NULL,
	next    BIGINT  NOT NULL,
	spare   BIGINT  NOT NULL,
	num     BIGINT  NOT NULL,
	base_iv BLOB    NOT NULL
);
CREATE INDEX bridge_tree_grp ON bridge_tree (grp);
CREATE TABLE bridge_tree_node (
	tid        TEXT   NOT NULL,
	pos        BIGINT NOT NULL,
	version    BIGINT NOT NULL,
	step       BIGINT NOT NULL,
	used       BIGINT NOT NULL,
	dirty      BIGINT NOT NULL,
	sealed_key BLOB   NOT NULL,
	PRIMARY KEY (tid, pos)
);
CREATE INDEX bridge_tree_dirty ON bridge_tree_node (tid) WHERE dirty = 1;
CREATE TABLE bridge_tree_free (
	tid TEXT   NOT NULL,
	idx BIGINT NOT NULL,
	PRIMARY KEY (tid, idx)
);
CREATE TABLE bridge_tree_message (
	tid  TEXT   NOT NULL,
	pos  BIGINT NOT NULL,
	num  BIGINT NOT NULL,
	at   BIGINT NOT NULL,
	body BLOB   NOT NULL,
	PRIMARY KEY (tid, pos)
);
CREATE INDEX bridge_tree_message_at ON bridge_tree_message (tid, at);
ALTER TABLE bridge_registration ADD COLUMN tid TEXT NOT NULL DEFAULT '';
ALTER TABLE bridge_registration ADD COLUMN leaf BIGINT NOT NULL DEFAULT -1;
ALTER TABLE bridge_registration ADD COLUMN route TEXT NOT NULL DEFAULT 'mqtt';
CREATE INDEX bridge_registration_single ON bridge_registration (grp) WHERE leaf < 0;
`

const schemaTreeCounts = `
ALTER TABLE bridge_tree ADD COLUMN out BIGINT NOT NULL DEFAULT 0;
ALTER TABLE bridge_tree ADD COLUMN messages BIGINT NOT NULL DEFAULT 0;
UPDATE bridge_tree SET messages = (SELECT COUNT(*) FROM bridge_tree_message m
	WHERE m.tid = bridge_tree.tid AND m.num = bridge_tree.num AND LENGTH(m.body) > 0);
`
