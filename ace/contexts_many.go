package ace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// contextsAtOnce is how many contexts one statement reads.
const contextsAtOnce = 512

// sealedContext is a context with the sealed material of its key.
type sealedContext struct {
	*contextRow
	sealed []byte
}

// Many finds the Security Contexts with these Recipient IDs that [Server.Context]
// finds one by one. A gateway with very many of them in use starts with it.
func (s *Server) Many(ctx context.Context, kids [][]byte) (map[string]*secure.Stored, error) {
	out := make(map[string]*secure.Stored, len(kids))
	for part := range slices.Chunk(kids, contextsAtOnce) {
		if err := s.someContexts(ctx, part, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Server) someContexts(ctx context.Context, kids [][]byte, out map[string]*secure.Stored) error {
	now := time.Now()
	var found []sealedContext
	err := s.store.View(ctx, func(tx *store.Tx) (err error) {
		if found, err = readContexts(tx, kids, now); err != nil {
			return err
		}
		for i, c := range found {
			ok, err := c.usable(tx, now)
			if err != nil {
				return err
			}
			if !ok {
				found[i].contextRow = nil
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ace: read contexts: %w", err)
	}
	for _, c := range found {
		if c.contextRow == nil {
			continue
		}
		stored, err := s.openContext(c.contextRow, c.sealed)
		if err != nil {
			return err
		}
		out[string(c.id2)] = stored
	}
	return nil
}

// readContexts reads contexts whose key has a valid token.
func readContexts(tx *store.Tx, kids [][]byte, now time.Time) (found []sealedContext, err error) {
	args := make([]any, len(kids), len(kids)+1)
	for i, kid := range kids {
		args[i] = kid
	}
	rows, err := tx.Query(`SELECT c.id2, c.subject, c.nonce1, c.nonce2, c.id1, c.made, c.proved, c.reserved, c.epoch, k.sealed
		FROM ace_contexts c JOIN ace_keys k ON k.subject = c.subject
		WHERE c.id2 IN (?`+strings.Repeat(", ?", len(kids)-1)+`)
		AND EXISTS (SELECT 1 FROM ace_tokens t WHERE t.subject = c.subject AND (t.expires = 0 OR t.expires > ?))`, append(args, now.Unix())...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c sealedContext
		if c.contextRow, err = scanContext(rows, &c.sealed); err != nil {
			return nil, err
		}
		found = append(found, c)
	}
	return found, rows.Err()
}

// openContext is a context with its keys.
func (s *Server) openContext(c *contextRow, sealed []byte) (*secure.Stored, error) {
	raw, err := s.store.Unseal(sealContext(c.subject), sealed)
	if err != nil {
		return nil, fmt.Errorf("ace: stored material: %w", err)
	}
	m, err := oscore.DecodeMaterial(raw)
	if err != nil {
		return nil, fmt.Errorf("ace: stored material: %w", err)
	}
	return &secure.Stored{
		Setup: c.setup(m), Link: c.link(), Subject: c.subject, Reserved: uint64(c.reserved), Epoch: c.epoch,
	}, nil
}
