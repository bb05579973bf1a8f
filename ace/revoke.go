package ace

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/store"
)

// Revoke ends tokens by their token hash (RFC 9770, Section 4; cwt.Hash), stored
// or not, and refuses them from now on. Members that they admitted are evicted
// by those who follow the event.
func (s *Server) Revoke(ctx context.Context, hashes ...[]byte) error {
	_, err := s.revokeAll(ctx, hashes)
	return err
}

// RevokeTokens is [Server.Revoke] for a list of tokens, as they are or by their
// token hashes: in all the forms that a token can be given. It returns how many of
// them were stored here.
func (s *Server) RevokeTokens(ctx context.Context, list ...[]byte) (ended int, err error) {
	var hashes [][]byte
	for _, b := range list {
		if len(b) == tokenHashLen && b[0] == hashSHA256 {
			hashes = append(hashes, b)
			continue
		}
		t, err := cwt.Parse(b)
		if err != nil {
			return 0, ErrNoToken
		}
		core := t.Core()
		hashes = append(hashes, cwt.Hash(b), core[:])
		if twin := t.Twin(); twin != nil {
			hashes = append(hashes, cwt.Hash(twin))
		}
	}
	return s.revokeAll(ctx, hashes)
}

// ErrNoToken is the error of bytes that are neither an access token nor the token
// hash of one.
var ErrNoToken = errors.New("ace: neither an access token nor a token hash")

// revokeAll returns how many stored tokens it ended.
func (s *Server) revokeAll(ctx context.Context, hashes [][]byte) (ended int, err error) {
	for len(hashes) > 0 {
		batch := hashes[:min(len(hashes), revokedAtOneTime)]
		hashes = hashes[len(batch):]
		var n int
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			now := time.Now().Unix()
			n = 0
			var listed []granted
			for _, hash := range batch {
				found, err := s.revoke(tx, hash, now)
				if err != nil {
					return err
				}
				if found {
					n++
				}
				fresh, err := s.list(tx, "hash", hash, now)
				if err != nil {
					return err
				}
				listed = append(listed, fresh...)
			}
			if err := changeList(tx, nil, listed); err != nil {
				return err
			}
			// RFC 9770, Section 11.1: under pressure the oldest hashes go first.
			var kept int64
			if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_revoked`).Scan(&kept); err != nil {
				return err
			}
			if over := kept - 2*int64(s.cfg.Limits.MaxTokens); over > 0 {
				_, err := tx.Exec(`DELETE FROM ace_revoked WHERE digest IN (SELECT digest FROM ace_revoked ORDER BY revoked LIMIT ?)`, over)
				return err
			}
			return nil
		})
		if err != nil {
			return ended, fmt.Errorf("ace: revoke: %w", err)
		}
		ended += n
	}
	return ended, nil
}

// revoke ends the token of a hash if it is stored.
func (s *Server) revoke(tx *store.Tx, hash []byte, now int64) (found bool, err error) {
	var core, id []byte
	var slot int
	var expires int64
	err = tx.QueryRow(`SELECT subject, slot, core, expires FROM ace_tokens WHERE hash = ? OR twin = ?`, hash, hash).Scan(&id, &slot, &core, &expires)
	found = err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	digests := [][]byte{hash}
	if found {
		digests = append(digests, core)
		subject := coap.Subject{Kind: coap.SubjectKind(id[0]), ID: string(id[1:])}
		if err := s.endToken(tx, subject, slot, expires, now, "revoked"); err != nil {
			return false, err
		}
	}
	for _, d := range digests {
		_, err := tx.Exec(`INSERT INTO ace_revoked (digest, revoked, expires) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING`, d, now, expires)
		if err != nil {
			return false, err
		}
	}
	return found, nil
}
