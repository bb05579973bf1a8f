package delegate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// keepTimeout bounds the store where nobody else does.
const keepTimeout = 10 * time.Second

// keptSequences is how many Sender Contexts of a membership are remembered: a Group
// Manager gives no Sender ID twice under one Gid, so that old ones never come back.
const keptSequences = 64

// row is a membership as it is kept.
type row struct {
	node, group, gm string
	roles           groupcomm.Roles
	access          *node.Access
	issued          time.Time
	saved           []byte
	evicted         time.Time
}

// keeper is the store as this room uses it.
type keeper struct {
	store *store.Store
	owner string
}

// sealContext binds what is sealed to its place.
func sealContext(column, nodeName, group, gm string) string {
	return "delegate_membership/" + column + "/" + nodeName + "\x00" + group + "\x00" + gm
}

// load reads all memberships. One that does not open is an error: going on without it
// would join anew and leave a member behind that nobody is.
func (k *keeper) load(ctx context.Context) ([]row, error) {
	type stored struct {
		row
		access, saved []byte
		roles, at     int64
	}
	var found []stored
	err := k.store.View(ctx, func(tx *store.Tx) error {
		found = nil
		rows, err := tx.Query(`SELECT node, grp, gm, roles, access, saved, evicted FROM delegate_membership WHERE owner = ? ORDER BY node, grp`, k.owner)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var s stored
			if err := rows.Scan(&s.node, &s.group, &s.gm, &s.roles, &s.access, &s.saved, &s.at); err != nil {
				return err
			}
			found = append(found, s)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	out := make([]row, len(found))
	for i, s := range found {
		r := s.row
		r.roles = groupcomm.Roles(s.roles)
		if s.at != 0 {
			r.evicted = time.Unix(s.at, 0)
		}
		if s.access != nil {
			b, err := k.store.Unseal(sealContext("access", r.node, r.group, r.gm), s.access)
			if err == nil {
				r.access, r.issued, err = decodeAccess(b)
			}
			if err != nil {
				return nil, fmt.Errorf("token of %s in %q: %w", r.node, r.group, err)
			}
		}
		if s.saved != nil {
			if r.saved, err = k.store.Unseal(sealContext("saved", r.node, r.group, r.gm), s.saved); err != nil {
				return nil, fmt.Errorf("membership of %s in %q: %w", r.node, r.group, err)
			}
		}
		out[i] = r
	}
	return out, nil
}

// write keeps a membership; it is on disk when it returns.
func (k *keeper) write(ctx context.Context, r row) error {
	var access, saved any // nil is NULL
	if r.access != nil {
		access = k.store.Seal(sealContext("access", r.node, r.group, r.gm), encodeAccess(r.access, r.issued))
	}
	if r.saved != nil {
		saved = k.store.Seal(sealContext("saved", r.node, r.group, r.gm), r.saved)
	}
	evicted := int64(0)
	if !r.evicted.IsZero() {
		evicted = r.evicted.Unix()
	}
	return k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO delegate_membership (owner, node, grp, gm, roles, access, saved, evicted) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (owner, node, grp, gm) DO UPDATE SET roles = excluded.roles, access = excluded.access, saved = excluded.saved, evicted = excluded.evicted`,
			k.owner, r.node, r.group, r.gm, int64(r.roles), access, saved, evicted)
		return err
	})
}

// remove forgets a membership that is over. Its sequence numbers stay.
func (k *keeper) remove(ctx context.Context, r row) error {
	return k.store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(`DELETE FROM delegate_held WHERE owner = ? AND node = ? AND grp = ?`, k.owner, r.node, r.group); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM delegate_membership WHERE owner = ? AND node = ? AND grp = ? AND gm = ?`, k.owner, r.node, r.group, r.gm)
		return err
	})
}

// pinned reads the credential of a Group Manager; nil when it never proved one.
func (k *keeper) pinned(ctx context.Context, gm, group string) (cred []byte, err error) {
	err = k.store.View(ctx, func(tx *store.Tx) error {
		err := tx.QueryRow(`SELECT cred FROM delegate_pin WHERE owner = ? AND gm = ? AND grp = ?`, k.owner, gm, group).Scan(&cred)
		if errors.Is(err, store.ErrNotFound) {
			cred = nil
			return nil
		}
		return err
	})
	return cred, err
}

// pin keeps a credential that was proven, unless another was before: then it is an
// error.
func (k *keeper) pin(ctx context.Context, gm, group string, cred []byte) error {
	var have []byte
	err := k.store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(`INSERT INTO delegate_pin (owner, gm, grp, cred) VALUES (?, ?, ?, ?) ON CONFLICT (owner, gm, grp) DO NOTHING`,
			k.owner, gm, group, cred); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT cred FROM delegate_pin WHERE owner = ? AND gm = ? AND grp = ?`, k.owner, gm, group).Scan(&have)
	})
	if err == nil && !bytes.Equal(have, cred) {
		return errPin
	}
	return err
}

// unpin forgets the credential of a Group Manager, for an operator who knows that it
// has a new one.
func (k *keeper) unpin(ctx context.Context, gm, group string) error {
	return k.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM delegate_pin WHERE owner = ? AND gm = ? AND grp = ?`, k.owner, gm, group)
		return err
	})
}

// sequences keeps the Sender Sequence Numbers of one membership.
type sequences struct {
	k           *keeper
	node, group string
}

var _ oscore.GroupSequences = sequences{}

// Open gives what was reserved. A name that is new is on disk when it returns, as one
// that 1 is reserved for: from then on a restart knows of it.
func (s sequences) Open(name string) (uint64, oscore.Reserver, error) {
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	var upTo int64
	err := s.k.store.Update(ctx, func(tx *store.Tx) error {
		err := tx.QueryRow(`SELECT upto FROM delegate_sequence WHERE owner = ? AND node = ? AND grp = ? AND name = ?`,
			s.k.owner, s.node, s.group, name).Scan(&upTo)
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		upTo = 0
		at, err := s.newest(tx, "delegate_sequence")
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO delegate_sequence (owner, node, grp, name, upto, at) VALUES (?, ?, ?, ?, 1, ?)`,
			s.k.owner, s.node, s.group, name, at); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM delegate_sequence WHERE owner = ? AND node = ? AND grp = ? AND name NOT IN (
			SELECT name FROM delegate_sequence WHERE owner = ? AND node = ? AND grp = ? ORDER BY at DESC, name LIMIT ?)`,
			s.k.owner, s.node, s.group, s.k.owner, s.node, s.group, keptSequences)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("delegate: %w", err)
	}
	return uint64(upTo), reserver{s, name}, nil
}

// newest is a time behind those of all rows of the membership in a table. They tell which are
// the oldest, that are forgotten first; a clock that was set back must not make it those in use.
func (s sequences) newest(tx *store.Tx, table string) (at int64, err error) {
	err = tx.QueryRow(`SELECT COALESCE(MAX(at), 0) FROM `+table+` WHERE owner = ? AND node = ? AND grp = ?`, s.k.owner, s.node, s.group).Scan(&at)
	return max(time.Now().UnixNano(), at+1), err
}

type reserver struct {
	s    sequences
	name string
}

// Reserve returns when it is durable that numbers below upTo may be used.
func (r reserver) Reserve(ctx context.Context, upTo uint64) error {
	var n int64
	err := r.s.k.store.Update(ctx, func(tx *store.Tx) (err error) {
		n, err = tx.Exec(`UPDATE delegate_sequence SET upto = ? WHERE owner = ? AND node = ? AND grp = ? AND name = ? AND upto <= ?`,
			int64(upTo), r.s.k.owner, r.s.node, r.s.group, r.name, int64(upTo))
		return err
	})
	if err == nil && n != 1 {
		return errors.New("delegate: sequence numbers were reserved elsewhere")
	}
	return err
}

// Labels of a kept token.
const (
	accessToken    = 1
	accessKID      = 2
	accessKey      = 3
	accessExpires  = 4 // Unix seconds; 0: not told
	accessMaterial = 5 // of the OSCORE profile
	accessIssued   = 6 // Unix seconds
)

func encodeAccess(a *node.Access, issued time.Time) []byte {
	out := map[int64]any{accessToken: a.Token, accessIssued: issued.Unix(), accessExpires: int64(0)}
	if !a.ExpiresAt.IsZero() {
		out[accessExpires] = a.ExpiresAt.Unix()
	}
	if a.Material != nil {
		out[accessMaterial] = a.Material.Encode()
	} else {
		out[accessKID], out[accessKey] = a.KID, a.Key.Bytes()
	}
	return cose.MustMarshal(out)
}

func decodeAccess(b []byte) (*node.Access, time.Time, error) {
	in, err := cose.DecodeMap(b)
	if err != nil {
		return nil, time.Time{}, errDamaged
	}
	token, _, err1 := in.Bytes(accessToken)
	kid, _, err2 := in.Bytes(accessKID)
	key, _, err3 := in.Bytes(accessKey)
	expires, _, err4 := in.Int(accessExpires)
	issued, _, err5 := in.Int(accessIssued)
	material, oscoreProfile, err6 := in.Bytes(accessMaterial)
	if errors.Join(err1, err2, err3, err4, err5, err6) != nil || len(token) == 0 {
		return nil, time.Time{}, errDamaged
	}
	a := &node.Access{Token: token, KID: kid}
	if expires != 0 {
		a.ExpiresAt = time.Unix(expires, 0)
	}
	if oscoreProfile {
		if a.Material, err = oscore.DecodeMaterial(material); err != nil {
			return nil, time.Time{}, errDamaged
		}
		return a, time.Unix(issued, 0), nil
	}
	if len(kid) == 0 || len(key) == 0 {
		return nil, time.Time{}, errDamaged
	}
	a.Key = cose.NewSecret(key)
	return a, time.Unix(issued, 0), nil
}

var (
	errDamaged = errors.New("kept value is damaged")
	errPin     = fmt.Errorf("%w: it is not the credential that the Group Manager had before; if it really has a new one, `gateway delegate trust GROUP` forgets the old", node.ErrProof)
)
