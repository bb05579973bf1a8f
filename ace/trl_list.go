package ace

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/store"
)

// The Token Revocation List of the embedded Authorization Server (RFC 9770,
// Section 5): token hashes of what it issued, was revoked, and has not expired.
// ace_granted has every token that can get there. Whoever asks sees what is its
// own: a client the tokens that were issued to it, a Resource Server those for its
// audience, an administrator all. Each has a collection of the latest changes, for
// diff queries (Section 6.2).

// Bounds of diff queries: what RFC 9770 calls MAX_N, MAX_DIFF_BATCH, MAX_INDEX.
const (
	trlChanges  = 16
	trlBatch    = 8
	trlMaxIndex = 1<<63 - 1

	trlListed     = 1 << 16 // hashes in one answer
	grantedTokens = 64      // not revoked, of one client: what is remembered for it
)

// eventTRL says that the list changed for a requester, whose name in hex is the
// key.
const eventTRL = "ace.trl"

// requester is whose part of the list is meant: everything, what concerns a
// client, or what concerns a Resource Server. It is a key of tables and events.
type requester string

const allTokens requester = "a"

func clientTokens(identity string) requester   { return requester("c" + identity) }
func audienceTokens(audience string) requester { return requester("r" + audience) }

// requesterOf says what part of the list is a peer's; "" none. RFC 9770, Section
// 6: nobody but registered devices and administrators has access. An identity that
// has several roles sees what most of them sees.
func (s *Server) requesterOf(ctx context.Context, peer coap.Peer) (requester, error) {
	if peer.Subject.Kind != coap.SubjectPSK || peer.Via == coap.Plain {
		return "", nil
	}
	if p := s.identities[peer.Subject.ID]; p != nil {
		switch {
		case p.MayList:
			return allTokens, nil
		case p.MayIntrospect:
			return audienceTokens(peer.Subject.ID), nil
		}
	}
	c, err := s.client(ctx, peer)
	if err != nil || c == nil {
		return "", err
	}
	return clientTokens(c.identity), nil
}

// granted is a token that the embedded Authorization Server issued.
type granted struct {
	hash     []byte
	client   []byte // empty: the operator
	audience string
	expires  int64
}

// noteGranted remembers a token before it leaves.
func (s *Server) noteGranted(tx *store.Tx, client []byte, i *Issued, hash []byte) error {
	if s.cfg.AS == nil {
		return nil
	}
	_, err := tx.Exec(`INSERT INTO ace_granted (hash, client, audience, expires) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING`,
		hash, client, i.Audience, i.Expires.Unix())
	if err != nil || len(client) == 0 {
		return err
	}
	// A client can ask for tokens without end.
	_, err = tx.Exec(`DELETE FROM ace_granted WHERE hash IN (SELECT hash FROM ace_granted WHERE client = ? AND revoked = 0
		ORDER BY expires DESC, hash LIMIT ? OFFSET ?)`, client, grantedTokens, grantedTokens)
	return err
}

// list puts tokens that were revoked on the list, those of a hash or of a client.
func (s *Server) list(tx *store.Tx, column string, value []byte, now int64) ([]granted, error) {
	if s.cfg.AS == nil {
		return nil, nil
	}
	all, err := grantedRows(tx, `UPDATE ace_granted SET revoked = ? WHERE `+column+` = ? AND revoked = 0 AND expires > ?
		RETURNING hash, client, audience, expires`, now, value, now)
	for _, g := range all {
		tx.AfterCommit(func() { s.planFor(g.expires) }) // to be taken off
	}
	return all, err
}

// unlist forgets tokens that expired, and tells which of them were on the list.
func unlist(tx *store.Tx, now int64) ([]granted, error) {
	over, err := grantedRows(tx, `DELETE FROM ace_granted WHERE revoked > 0 AND expires <= ? RETURNING hash, client, audience, expires`, now)
	if err == nil {
		_, err = tx.Exec(`DELETE FROM ace_granted WHERE expires <= ?`, now)
	}
	return over, err
}

func grantedRows(tx *store.Tx, query string, args ...any) (all []granted, err error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var g granted
		if err := rows.Scan(&g.hash, &g.client, &g.audience, &g.expires); err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, rows.Err()
}

// changeList is one update of the list, for everybody whom it concerns (RFC 9770,
// Sections 5.1 and 6.2).
func changeList(tx *store.Tx, removed, added []granted) error {
	type patch struct{ removed, added []byte }
	patches := map[requester]*patch{}
	of := func(r requester) *patch {
		p := patches[r]
		if p == nil {
			p = &patch{removed: []byte{}, added: []byte{}}
			patches[r] = p
		}
		return p
	}
	concerned := func(g granted) []requester {
		all := []requester{allTokens, audienceTokens(g.audience)}
		if len(g.client) > 0 {
			all = append(all, clientTokens(string(g.client)))
		}
		return all
	}
	for _, g := range removed {
		for _, r := range concerned(g) {
			p := of(r)
			p.removed = append(p.removed, g.hash...)
		}
	}
	for _, g := range added {
		for _, r := range concerned(g) {
			p := of(r)
			p.added = append(p.added, g.hash...)
		}
	}
	// In one order, so that two gateways do not wait for each other.
	for _, r := range slices.Sorted(maps.Keys(patches)) {
		var index int64
		err := tx.QueryRow(`INSERT INTO ace_trl_last (requester, idx) VALUES (?, 0)
			ON CONFLICT (requester) DO UPDATE SET idx = ace_trl_last.idx + 1 RETURNING idx`, []byte(r)).Scan(&index)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO ace_trl (requester, idx, removed, added) VALUES (?, ?, ?, ?)`,
			[]byte(r), index, patches[r].removed, patches[r].added); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM ace_trl WHERE requester = ? AND idx <= ?`, []byte(r), index-trlChanges); err != nil {
			return err
		}
		if err := tx.Emit(eventTRL, hex.EncodeToString([]byte(r)), nil); err != nil {
			return err
		}
	}
	return nil
}

// trlChange is an item of a requester's collection.
type trlChange struct {
	index          int64
	removed, added [][]byte
}

// trlState is what a requester may know.
type trlState struct {
	last    int64       // index of the newest change; -1: there was none
	changes []trlChange // newest first
	hashes  [][]byte    // on the list
}

func (s *Server) trlState(ctx context.Context, r requester) (*trlState, error) {
	t := &trlState{}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		*t = trlState{last: -1, hashes: [][]byte{}}
		err := tx.QueryRow(`SELECT idx FROM ace_trl_last WHERE requester = ?`, []byte(r)).Scan(&t.last)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := t.readChanges(tx, r); err != nil {
			return err
		}
		query, args := `SELECT hash, client, audience, expires FROM ace_granted WHERE revoked > 0 AND expires > ?`, []any{time.Now().Unix()}
		switch r[0] {
		case 'c':
			query, args = query+` AND client = ?`, append(args, []byte(r[1:]))
		case 'r':
			query, args = query+` AND audience = ?`, append(args, string(r[1:]))
		}
		rows, err := grantedRows(tx, query+` LIMIT ?`, append(args, trlListed)...)
		for _, g := range rows {
			t.hashes = append(t.hashes, g.hash)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ace: list of revoked tokens: %w", err)
	}
	slices.SortFunc(t.hashes, bytes.Compare)
	return t, nil
}

func (t *trlState) readChanges(tx *store.Tx, r requester) error {
	rows, err := tx.Query(`SELECT idx, removed, added FROM ace_trl WHERE requester = ? ORDER BY idx DESC`, []byte(r))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var c trlChange
		var removed, added []byte
		if err := rows.Scan(&c.index, &removed, &added); err != nil {
			return err
		}
		c.removed, c.added = split(removed), split(added)
		t.changes = append(t.changes, c)
	}
	return rows.Err()
}

// split takes token hashes apart that stand one behind the other.
func split(b []byte) [][]byte {
	return slices.AppendSeq([][]byte{}, slices.Chunk(b, tokenHashLen))
}
