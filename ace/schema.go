package ace

import "github.com/seed4911071e/groupgate/store"

// Migrations is the schema of this room. Times are seconds since 1970.
//
// ace_keys: one row for each key of proof. subject is the kind and the
// identifier of coap.Subject; kid is NULL with public keys; sealed is the
// symmetric key; gone is when its last token ended, 0 while it has one.
//
// ace_tokens: slot 0 is the token in force, 1 the one that waits. core is what
// the token's protection covers (cwt.Token.Core), hash the token hash of RFC
// 9770, twin that of the other encoding that a token signed with ECDSA has, NULL
// with all others. The token itself is not kept: it may hold the key.
//
// ace_exi, ace_exi_high: tokens whose lifetime counts from the first sight, and
// the highest sequence number that expired.
//
// ace_issued: keys that the embedded Authorization Server gave out.
func Migrations() store.Migrations {
	return store.Migrations{Room: "ace", Steps: []string{`
CREATE TABLE ace_keys (
	subject    BLOB NOT NULL PRIMARY KEY,
	kid        BLOB UNIQUE,
	origin     TEXT NOT NULL,
	sealed     BLOB,
	derived    INTEGER NOT NULL,
	challenges BLOB NOT NULL,
	used       INTEGER NOT NULL,
	stored     INTEGER NOT NULL,
	gone       INTEGER NOT NULL
);
CREATE INDEX ace_keys_unused ON ace_keys (used, stored);
CREATE INDEX ace_keys_gone ON ace_keys (gone);
CREATE TABLE ace_tokens (
	subject BLOB NOT NULL,
	slot    INTEGER NOT NULL,
	core    BLOB NOT NULL,
	hash    BLOB NOT NULL,
	scope   BLOB NOT NULL,
	expires INTEGER NOT NULL,
	issued  INTEGER NOT NULL,
	PRIMARY KEY (subject, slot)
);
CREATE INDEX ace_tokens_expires ON ace_tokens (expires);
CREATE INDEX ace_tokens_hash ON ace_tokens (hash);
CREATE TABLE ace_exi (
	origin  TEXT NOT NULL,
	seq     INTEGER NOT NULL,
	core    BLOB NOT NULL,
	expires INTEGER NOT NULL,
	PRIMARY KEY (origin, seq)
);
CREATE INDEX ace_exi_expires ON ace_exi (expires);
CREATE TABLE ace_exi_high (
	origin TEXT NOT NULL PRIMARY KEY,
	seq    INTEGER NOT NULL
);
CREATE TABLE ace_revoked (
	digest  BLOB NOT NULL PRIMARY KEY,
	revoked INTEGER NOT NULL,
	expires INTEGER NOT NULL
);
CREATE TABLE ace_issued (
	kid      BLOB NOT NULL PRIMARY KEY,
	client   BLOB NOT NULL,
	audience TEXT NOT NULL,
	sealed   BLOB NOT NULL,
	expires  INTEGER NOT NULL
);
CREATE INDEX ace_issued_expires ON ace_issued (expires);
`, schemaNodes, schemaTwins, schemaContexts, schemaKeypairs, schemaPublic, schemaTRL}}
}

// ace_nodes: clients that were enrolled, with their keys, sealed, and what
// their tokens may allow. disabled and enrolled are times; keyed and version are
// never used twice for one identity. ace_issued.blocked: not 0 when tokens for that
// key are refused, because its client lost them; the time of that, since a public
// key, which the client keeps, can be had confirmed anew.
const schemaNodes = `
CREATE TABLE ace_nodes (
	identity TEXT NOT NULL PRIMARY KEY,
	sealed   BLOB NOT NULL,
	keyed    INTEGER NOT NULL,
	audience TEXT NOT NULL,
	scope    BLOB NOT NULL,
	lifetime INTEGER NOT NULL,
	disabled INTEGER NOT NULL,
	enrolled INTEGER NOT NULL,
	version  INTEGER NOT NULL
);
ALTER TABLE ace_issued ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX ace_issued_client ON ace_issued (client);
`

// ace_contexts: Security Contexts of the OSCORE profile (RFC 9203). id2 is this
// end's Recipient ID, the kid of requests; subject the key, whose input material is
// in ace_keys. made is in nanoseconds. What the other columns are for is at the top
// of contexts.go.
const schemaContexts = `
CREATE TABLE ace_contexts (
	id2      BLOB NOT NULL PRIMARY KEY,
	subject  BLOB NOT NULL,
	nonce1   BLOB NOT NULL,
	nonce2   BLOB NOT NULL,
	id1      BLOB NOT NULL,
	made     INTEGER NOT NULL,
	proved   INTEGER NOT NULL,
	reserved INTEGER NOT NULL,
	epoch    INTEGER NOT NULL
);
CREATE INDEX ace_contexts_subject ON ace_contexts (subject, made);
`

// ace_keypairs: key pairs of this Resource Server, sealed COSE_Keys.
const schemaKeypairs = `
CREATE TABLE ace_keypairs (
	name   TEXT NOT NULL PRIMARY KEY,
	sealed BLOB NOT NULL
);
`

// ace_keys.public: a public key, as SubjectPublicKeyInfo; NULL with symmetric ones.
const schemaPublic = `
ALTER TABLE ace_keys ADD COLUMN public BLOB;
`

// ace_granted: tokens that the embedded Authorization Server issued; revoked is
// when, 0 when they are not. ace_trl: the latest changes of the list of revoked
// tokens for each who may ask for it, token hashes one behind the other;
// ace_trl_last the index of the newest.
const schemaTRL = `
CREATE TABLE ace_granted (
	hash     BLOB NOT NULL PRIMARY KEY,
	client   BLOB NOT NULL,
	audience TEXT NOT NULL,
	expires  INTEGER NOT NULL,
	revoked  INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX ace_granted_client ON ace_granted (client, expires);
CREATE INDEX ace_granted_expires ON ace_granted (expires);
CREATE INDEX ace_granted_revoked ON ace_granted (expires) WHERE revoked > 0;
CREATE TABLE ace_trl_last (
	requester BLOB NOT NULL PRIMARY KEY,
	idx       INTEGER NOT NULL
);
CREATE TABLE ace_trl (
	requester BLOB NOT NULL,
	idx       INTEGER NOT NULL,
	removed   BLOB NOT NULL,
	added     BLOB NOT NULL,
	PRIMARY KEY (requester, idx)
);
`

// The token hash of a token's other encoding, see ace_tokens.
const schemaTwins = `
ALTER TABLE ace_tokens ADD COLUMN twin BLOB;
CREATE INDEX ace_tokens_twin ON ace_tokens (twin);
`
