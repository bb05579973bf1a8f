package bridge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// member names a membership.
type member struct{ group, node string }

// registration is one member's enrolment for rekeys by MQTT.
type registration struct {
	rid    string // random identifier in the topics; the user name at the broker
	member member
	kid    []byte
	alg    int64
	key    []byte // K_m
	baseIV []byte
	route  string // channel that the member asked for
	phased bool   // it asked for two phases
}

func rekeyTopic(prefix, rid string) string { return prefix + "/" + rid + "/rekey" }
func presenceTopic(prefix, rid string) string {
	return prefix + "/" + rid + "/presence"
}
func ackTopic(prefix, rid string) string { return prefix + "/" + rid + "/ack" }

// keyContext binds a sealed K_m to its registration.
func keyContext(rid string) string { return "bridge/registration/" + rid }

// secretContext binds a sealed password to its registration.
func secretContext(rid string) string { return "bridge/secret/" + rid }

// hashSecret is what a password is compared with. One hash is enough: the password
// is 128 random bits that we chose, so there is nothing to guess that a slow
// hash would protect. The user name makes equal passwords differ.
func hashSecret(user, secret string) []byte {
	h := sha256.New()
	h.Write([]byte(user))
	h.Write([]byte{0})
	h.Write([]byte(secret))
	return h.Sum(nil)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand
	return b
}

// Enroll prepares how a member that joins or re-joins is told of rekeys. mgt is
// the content of mgt_key_material (label 27) after commit, nil when there is none:
// where it is of a key tree, the transaction finds the place. commit
// belongs into the transaction of the join: it ends an earlier enrolment, so
// that a key that left with the member protects nothing afterwards
// (docs/protocol.md, Section 5), and what was confirmed before, because a join
// response is no confirmation.
func (b *Bridge) Enroll(ctx context.Context, group, node string, want *groupcomm.Delivery) (mgt func() []byte, commit func(*store.Tx) error, err error) {
	m := member{group, node}
	inTree := want != nil && want.Tree && want.Degree != 0
	overMQTT := want != nil && want.Channel == channelMQTT && b.publisher != nil
	if !overMQTT && !(inTree && want.Channel == channelMulticast) {
		return nil, func(tx *store.Tx) error { return b.forget(tx, m, nil) }, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	uri := b.BrokerURI()
	if uri == "" && overMQTT {
		return nil, nil, errors.New("bridge: enrol before setup")
	}
	r, password, row := b.register(m, want.Channel)
	k := b.mgt(&r, uri, password)
	if !inTree {
		phased := int64(0)
		if want.Phased { // what a tree tells goes to all at once
			phased = 1
		}
		return k.Encode, func(tx *store.Tx) error {
			if err := b.forget(tx, m, nil); err != nil {
				return err
			}
			_, err := tx.Exec(insertRegistration+`(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', -1, ?)`, append(row[:len(row):len(row)], phased)...)
			return err
		}, nil
	}
	var s settled
	return func() []byte {
			b.addBranch(k, s.t, s.path)
			return k.Encode()
		}, func(tx *store.Tx) (err error) {
			place := int64(-1) // in the tree, from before
			if err := b.forget(tx, m, &place); err != nil {
				return err
			}
			if s, err = b.settle(tx, group, want.Degree, r.key, place); err != nil {
				return err
			}
			_, err = tx.Exec(insertRegistration+`(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)`, append(row[:len(row):len(row)], s.t.tid, s.path[0].Index)...)
			return err
		}, nil
}

const (
	insertRegistration = `INSERT INTO bridge_registration
		(rid, grp, node, kid, alg, sealed_key, base_iv, secret_hash, sealed_secret, route, tid, leaf, phased) VALUES `
	registrationColumns = 10 // without the place in a tree and phased
)

// register draws what a registration is made of; row is for insertRegistration.
func (b *Bridge) register(m member, route string) (r registration, password string, row []any) {
	r = registration{
		rid:    base64.RawURLEncoding.EncodeToString(random(ridLen)),
		member: m,
		kid:    random(kidLen),
		alg:    cose.AlgAESCCM16_64_128,
		key:    random(keyLen),
		baseIV: random(baseIVLen),
		route:  route,
	}
	password = base64.RawURLEncoding.EncodeToString(random(secretLen))
	hash, sealedSecret := hashSecret(r.rid, password), b.store.Seal(secretContext(r.rid), []byte(password))
	if route == channelMulticast {
		hash, sealedSecret = []byte{}, nil // nobody logs in
	}
	return r, password, []any{
		r.rid, m.group, m.node, r.kid, r.alg, b.store.Seal(keyContext(r.rid), r.key), r.baseIV, hash, sealedSecret, route,
	}
}

// mgt makes mgt_key_material for a registration; uri is the broker's, and
// password that of its user at the embedded broker.
func (b *Bridge) mgt(r *registration, uri, password string) *groupcomm.MgtKeyMaterial {
	user := r.rid
	if b.cfg.Broker != "" && b.cfg.MemberUser != "" {
		user, password = b.cfg.MemberUser, b.cfg.MemberPassword
	}
	k := &groupcomm.MgtKeyMaterial{
		KID: r.kid, Key: r.key, Alg: r.alg, BaseIV: r.baseIV, Broker: uri, User: user, Password: password,
		Topic: rekeyTopic(b.cfg.Prefix, r.rid), AckTopic: ackTopic(b.cfg.Prefix, r.rid),
	}
	if r.route == channelMulticast {
		k.Broker, k.User, k.Password, k.Topic, k.AckTopic = "", "", "", "", ""
		k.Tree = []byte{} // the rest says Enrolled
	}
	return k
}

// Enrolled tells again what Enroll gave a member, with the broker as it is now,
// and in a key tree with its way as of now; nil when the member is neither told of
// rekeys by MQTT nor in a tree. A member that lost its place in a tree, because its
// token had expired when the group was rekeyed, gets another.
func (b *Bridge) Enrolled(ctx context.Context, group, node string) (mgt []byte, err error) {
	for range 2 {
		mgt, lost, err := b.enrolled(ctx, member{group, node})
		if err != nil || !lost {
			return mgt, err
		}
		if err := b.resettle(ctx, group, node); err != nil {
			return nil, err
		}
	}
	return nil, nil // it changes too fast: it asks again
}

// enrolled reads it; lost says that the member is to have a place in a tree, and
// has none.
func (b *Bridge) enrolled(ctx context.Context, m member) (mgt []byte, lost bool, err error) {
	r := registration{member: m}
	var sealed, sealedSecret []byte
	var tid string
	var leaf int64
	var t *tree
	var path []keytree.Node
	err = b.store.View(ctx, func(tx *store.Tx) error {
		t, path = nil, nil
		err := tx.QueryRow(`SELECT rid, kid, alg, base_iv, sealed_key, sealed_secret, route, tid, leaf
			FROM bridge_registration WHERE grp = ? AND node = ?`, m.group, m.node).
			Scan(&r.rid, &r.kid, &r.alg, &r.baseIV, &sealed, &sealedSecret, &r.route, &tid, &leaf)
		if err != nil || tid == "" || leaf < 0 {
			return err
		}
		if t, err = treeOf(tx, m.group); err != nil || t == nil {
			return err
		}
		path, err = keytree.Open(t.Shape, b.treeRows(tx, t.tid)).Path(uint32(leaf))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("bridge: registration: %w", err)
	}
	if tid != "" && leaf < 0 {
		return nil, true, nil
	}
	uri := b.BrokerURI()
	if r.route == channelMQTT && (b.publisher == nil || sealedSecret == nil || uri == "") {
		return nil, false, nil // not kept, or not set up yet: the member has it, or joins again
	}
	if err := b.open(&r, sealed); err != nil {
		return nil, false, err
	}
	var secret []byte
	if sealedSecret != nil {
		if secret, err = b.store.Unseal(secretContext(r.rid), sealedSecret); err != nil {
			return nil, false, fmt.Errorf("bridge: password of a registration: %w", err)
		}
	}
	k := b.mgt(&r, uri, string(secret))
	if t != nil {
		b.addBranch(k, t, path)
	}
	return k.Encode(), false, nil
}

// Remove ends a membership's deliveries in the transaction that ends the
// membership: the credential is revoked with it, and after the commit the
// session is disconnected and the retained messages are deleted.
func (b *Bridge) Remove(tx *store.Tx, group, node string) error {
	if _, err := tx.Exec(`DELETE FROM bridge_lease WHERE grp = ? AND node = ?`, group, node); err != nil {
		return err
	}
	return b.forget(tx, member{group, node}, nil)
}

// RemoveAll is Remove for every member of a group that goes. What it costs in the
// transaction grows with the rows that are there, and not with statements for each
// member and each node of a tree above it.
func (b *Bridge) RemoveAll(tx *store.Tx, group string, nodes []string) error {
	rids := map[string]string{}
	rows, err := tx.Query(`SELECT node, rid FROM bridge_registration WHERE grp = ?`, group)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var node, rid string
		if err := rows.Scan(&node, &rid); err != nil {
			return err
		}
		rids[node] = rid
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, q := range []string{
		`DELETE FROM bridge_lease WHERE grp = ?`,
		`DELETE FROM bridge_confirmed WHERE grp = ?`,
		`DELETE FROM bridge_life WHERE grp = ?`,
		`DELETE FROM bridge_message WHERE kid IN (SELECT kid FROM bridge_registration WHERE grp = ?)`,
		`INSERT INTO bridge_revoked (rid) SELECT rid FROM bridge_registration WHERE grp = ?`,
		`DELETE FROM bridge_registration WHERE grp = ?`,
	} {
		if _, err := tx.Exec(q, group); err != nil {
			return err
		}
	}
	if err := b.fell(tx, group); err != nil {
		return fmt.Errorf("bridge: key tree of %q: %w", group, err)
	}
	tx.AfterCommit(func() {
		for _, node := range nodes {
			b.forgotten(member{group, node}, rids[node])
		}
	})
	if !b.store.Shared() {
		return nil
	}
	for _, rid := range rids {
		if err := tx.Emit(eventRevoked, rid, nil); err != nil {
			return err
		}
	}
	return nil
}

// forget ends the enrolment of a member. Its place in a tree is vacated, or, if
// leaf is not nil, put there to be taken over.
func (b *Bridge) forget(tx *store.Tx, m member, leaf *int64) error {
	for _, q := range []string{
		`DELETE FROM bridge_confirmed WHERE grp = ? AND node = ?`, `DELETE FROM bridge_life WHERE grp = ? AND node = ?`,
	} {
		if _, err := tx.Exec(q, m.group, m.node); err != nil {
			return err
		}
	}
	var rid, tid string
	var kid []byte
	place := int64(-1)
	err := tx.QueryRow(`SELECT rid, kid, tid, leaf FROM bridge_registration WHERE grp = ? AND node = ?`, m.group, m.node).
		Scan(&rid, &kid, &tid, &place)
	if errors.Is(err, store.ErrNotFound) {
		tx.AfterCommit(func() { b.forgotten(m, "") })
		return nil
	}
	if err != nil {
		return err
	}
	for _, q := range []struct {
		sql string
		arg any
	}{
		{`DELETE FROM bridge_message WHERE kid = ?`, kid},
		{`DELETE FROM bridge_dormant WHERE kid = ?`, kid},
		{`DELETE FROM bridge_registration WHERE rid = ?`, rid},
		// The broker may be away: what it retains is remembered until it
		// confirmed the deletion.
		{`INSERT INTO bridge_revoked (rid) VALUES (?)`, rid},
	} {
		if _, err := tx.Exec(q.sql, q.arg); err != nil {
			return err
		}
	}
	switch {
	case place >= 0 && leaf != nil:
		*leaf = place
	case place >= 0:
		if err := b.vacate(tx, tid, place); err != nil {
			return fmt.Errorf("bridge: key tree of %q: %w", m.group, err)
		}
	}
	tx.AfterCommit(func() { b.forgotten(m, rid) })
	if !b.store.Shared() {
		return nil
	}
	return tx.Emit(eventRevoked, rid, nil) // sessions may be with other gateways
}

// forgotten runs after the commit that ended an enrolment.
func (b *Bridge) forgotten(m member, rid string) {
	b.activity.forget(m)
	b.alarms.clear(m)
	b.confirms.forget(m)
	if rid == "" {
		return
	}
	if b.broker != nil {
		b.broker.disconnect(rid)
	}
	if b.publisher != nil {
		b.publisher.wakeRevoked()
	}
}

// secretHash returns what is stored of the password of user, or
// store.ErrNotFound.
func (b *Bridge) secretHash(ctx context.Context, user string) (hash []byte, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT secret_hash FROM bridge_registration WHERE rid = ?`, user).Scan(&hash)
	})
	return hash, err
}

// open reads the sealed key of a registration.
func (b *Bridge) open(r *registration, sealed []byte) error {
	key, err := b.store.Unseal(keyContext(r.rid), sealed)
	if err != nil {
		return fmt.Errorf("bridge: key of a registration: %w", err)
	}
	r.key = key
	return nil
}
