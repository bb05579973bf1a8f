package ace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/store"
)

// Revoke ends tokens by their token hash (RFC 9770, Section 4; cwt.Hash), stored
// or not, and refuses them from now on. Members that they admitted are evicted
// by those who follow the event.
func (s *Server) Revoke(ctx context.Context, hashes ...[]byte) error {
	for len(hashes) > 0 {
		batch := hashes[:min(len(hashes), revokedAtOneTime)]
		hashes = hashes[len(batch):]
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			now := time.Now().Unix()
			for _, hash := range batch {
				if err := s.revoke(tx, hash, now); err != nil {
					return err
				}
			}
			// RFC 9770, Section 11.1: under pressure the oldest hashes go first.
			var n int64
			if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_revoked`).Scan(&n); err != nil {
				return err
			}
			if over := n - 2*int64(s.cfg.Limits.MaxTokens); over > 0 {
				_, err := tx.Exec(`DELETE FROM ace_revoked WHERE digest IN (SELECT digest FROM ace_revoked ORDER BY revoked LIMIT ?)`, over)
				return err
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("ace: revoke: %w", err)
		}
	}
	return nil
}

func (s *Server) revoke(tx *store.Tx, hash []byte, now int64) error {
	var core, id []byte
	var slot int
	var expires int64
	err := tx.QueryRow(`SELECT subject, slot, core, expires FROM ace_tokens WHERE hash = ? OR twin = ?`, hash, hash).Scan(&id, &slot, &core, &expires)
	found := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	digests := [][]byte{hash}
	if found {
		digests = append(digests, core)
		subject := coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}
		if err := s.endToken(tx, subject, slot, expires, now, "revoked"); err != nil {
			return err
		}
	}
	for _, d := range digests {
		_, err := tx.Exec(`INSERT INTO ace_revoked (digest, revoked, expires) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING`, d, now, expires)
		if err != nil {
			return err
		}
	}
	return nil
}
