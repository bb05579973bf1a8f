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
	password := base64.RawURLEncoding.EncodeToString(random(secretLen))
	hash := hashSecret(r.rid, password)
	sealed := b.store.Seal(keyContext(r.rid), r.key)
	sealedSecret := b.store.Seal(secretContext(r.rid), []byte(password))
	return b.mgt(&r, uri, password), func(tx *store.Tx) error {
		if err := b.forget(tx, m); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO bridge_registration (rid, grp, node, kid, alg, sealed_key, base_iv, secret_hash, sealed_secret)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.rid, group, node, r.kid, r.alg, sealed, r.baseIV, hash, sealedSecret)
		return err
	}, nil
}

// mgt makes mgt_key_material for a registration; uri is the broker's, and
// password that of its user at the embedded broker.
func (b *Bridge) mgt(r *registration, uri, password string) []byte {
	user := r.rid
	if b.cfg.Broker != "" && b.cfg.MemberUser != "" {
		user, password = b.cfg.MemberUser, b.cfg.MemberPassword
	}
	return (&groupcomm.MgtKeyMaterial{
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
}

// Enrolled tells again what Enroll gave a member, with the broker as it is now;
// nil when the member is not told of rekeys by MQTT.
func (b *Bridge) Enrolled(ctx context.Context, group, node string) (mgt []byte, err error) {
	if b.publisher == nil {
		return nil, nil
	}
	r := registration{member: member{group, node}}
	var sealed, sealedSecret []byte
	err = b.store.View(ctx, func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT rid, kid, alg, base_iv, sealed_key, sealed_secret FROM bridge_registration WHERE grp = ? AND node = ?`,
			group, node).Scan(&r.rid, &r.kid, &r.alg, &r.baseIV, &sealed, &sealedSecret)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bridge: registration: %w", err)
	}
	uri := b.BrokerURI()
	if sealedSecret == nil || uri == "" {
		return nil, nil // not kept, or not set up yet: the member has it, or joins again
	}
	if err := b.open(&r, sealed); err != nil {
		return nil, err
	}
	secret, err := b.store.Unseal(secretContext(r.rid), sealedSecret)
	if err != nil {
		return nil, fmt.Errorf("bridge: password of a registration: %w", err)
	}
	return b.mgt(&r, uri, string(secret)), nil
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
