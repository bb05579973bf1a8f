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
}

func rekeyTopic(prefix, rid string) string { return prefix + "/" + rid + "/rekey" }
func presenceTopic(prefix, rid string) string {
	return prefix + "/" + rid + "/presence"
}
func ackTopic(prefix, rid string) string { return prefix + "/" + rid + "/ack" }

// keyContext binds a sealed K_m to its registration.
func keyContext(rid string) string { return "bridge/registration/" + rid }

// hashSecret is what is stored of a password. One hash is enough: the password
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
// the content of mgt_key_material (label 27), nil when it is not MQTT. commit
// belongs into the transaction of the join: it ends an earlier enrolment, so
// that a key that left with the member protects nothing afterwards
// (protocol.md, Section 5), and what was confirmed before, because a join
// response is no confirmation.
func (b *Bridge) Enroll(ctx context.Context, group, node string, want *groupcomm.Delivery) (mgt []byte, commit func(*store.Tx) error, err error) {
	m := member{group, node}
	if want == nil || want.Channel != channelMQTT || b.publisher == nil {
		return nil, func(tx *store.Tx) error { return b.forget(tx, m) }, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	uri := b.BrokerURI()
	if uri == "" {
		return nil, nil, errors.New("bridge: enrol before setup")
	}
	r := registration{
		rid:    base64.RawURLEncoding.EncodeToString(random(ridLen)),
		member: m,
		kid:    random(kidLen),
		alg:    cose.AlgAESCCM16_64_128,
		key:    random(keyLen),
		baseIV: random(baseIVLen),
	}
	user, password := r.rid, base64.RawURLEncoding.EncodeToString(random(secretLen))
	hash := hashSecret(user, password)
	if b.cfg.Broker != "" && b.cfg.MemberUser != "" {
		user, password = b.cfg.MemberUser, b.cfg.MemberPassword
	}
	mgt = (&groupcomm.MgtKeyMaterial{
		KID:      r.kid,
		Key:      r.key,
		Alg:      r.alg,
		BaseIV:   r.baseIV,
		Broker:   uri,
		Topic:    rekeyTopic(b.cfg.Prefix, r.rid),
		User:     user,
		Password: password,
		AckTopic: ackTopic(b.cfg.Prefix, r.rid),
	}).Encode()
	sealed := b.store.Seal(keyContext(r.rid), r.key)
	return mgt, func(tx *store.Tx) error {
		if err := b.forget(tx, m); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO bridge_registration (rid, grp, node, kid, alg, sealed_key, base_iv, secret_hash)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, r.rid, group, node, r.kid, r.alg, sealed, r.baseIV, hash)
		return err
	}, nil
}

// Remove ends a membership's deliveries in the transaction that ends the
// membership: the credential is revoked with it, and after the commit the
// session is disconnected and the retained messages are deleted.
func (b *Bridge) Remove(tx *store.Tx, group, node string) error {
	if _, err := tx.Exec(`DELETE FROM bridge_lease WHERE grp = ? AND node = ?`, group, node); err != nil {
		return err
	}
	return b.forget(tx, member{group, node})
}

func (b *Bridge) forget(tx *store.Tx, m member) error {
	for _, q := range []string{
		`DELETE FROM bridge_confirmed WHERE grp = ? AND node = ?`, `DELETE FROM bridge_life WHERE grp = ? AND node = ?`,
	} {
		if _, err := tx.Exec(q, m.group, m.node); err != nil {
			return err
		}
	}
	var rid string
	var kid []byte
	err := tx.QueryRow(`SELECT rid, kid FROM bridge_registration WHERE grp = ? AND node = ?`, m.group, m.node).Scan(&rid, &kid)
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
		{`DELETE FROM bridge_registration WHERE rid = ?`, rid},
		// The broker may be away: what it retains is remembered until it
		// confirmed the deletion.
		{`INSERT INTO bridge_revoked (rid) VALUES (?)`, rid},
	} {
		if _, err := tx.Exec(q.sql, q.arg); err != nil {
			return err
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
