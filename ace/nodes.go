package ace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// An enrolled node is a client of the embedded Authorization Server that the
// operator adds while the gateway runs: a pre-shared key for its association
// and the policy that says which tokens it may have. Configured peers
// ([Config].PSK) are the same thing in a file, and win where both have an
// identity.

// nodeRow is a row of ace_nodes.
type nodeRow struct {
	identity string
	sealed   []byte
	keyed    int64 // when the key was set, in nanoseconds: tells keys apart
	audience string
	scope    groupcomm.Scope
	lifetime time.Duration
	disabled int64
	enrolled int64
	version  int64 // another at every change
}

// nodeContext binds a sealed key to its row.
func nodeContext(identity string) string { return "ace_nodes/" + identity }

const nodeColumns = `SELECT identity, sealed, keyed, audience, scope, lifetime, disabled, enrolled, version FROM ace_nodes `

// nodeByIdentity reads an enrolled node: store.ErrNotFound when there is none.
func nodeByIdentity(tx *store.Tx, identity string) (*nodeRow, error) {
	if identityFault(identity) != "" {
		return nil, store.ErrNotFound // also keeps bytes that are no text from the database
	}
	rows, err := tx.Query(nodeColumns+`WHERE identity = ?`, identity)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return nil, err
		}
		return nil, store.ErrNotFound
	}
	return scanNode(rows)
}

func scanNode(rows *store.Rows) (*nodeRow, error) {
	var n nodeRow
	var scope []byte
	var lifetime int64
	if err := rows.Scan(&n.identity, &n.sealed, &n.keyed, &n.audience, &scope, &lifetime, &n.disabled, &n.enrolled, &n.version); err != nil {
		return nil, err
	}
	n.lifetime = time.Duration(lifetime) * time.Second
	var err error
	if n.scope, err = groupcomm.DecodeScope(scope); err != nil {
		return nil, fmt.Errorf("ace: stored scope of a node: %w", err)
	}
	return &n, nil
}

// enrolledNode finds an enrolled node, nil when there is none.
func (s *Server) enrolledNode(ctx context.Context, identity string) (n *nodeRow, err error) {
	if s.store == nil || identityFault(identity) != "" {
		return nil, nil
	}
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		n, err = nodeByIdentity(tx, identity)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ace: read node: %w", err)
	}
	return n, nil
}

// subject says what a handshake with the node's key of now proved. A key that
// was replaced is somebody else's.
func (n *nodeRow) subject() coap.Subject {
	return coap.Subject{Kind: coap.SubjectPSK, ID: fmt.Sprintf("%s%s%x", n.identity, originSeparator, n.keyed)}
}

// nodeOf is the identity of an enrolled node inside a subject.
func nodeOf(s coap.Subject) string {
	if i := strings.LastIndex(s.ID, originSeparator); i >= 0 {
		return s.ID[:i]
	}
	return ""
}

// nodePSK is the key for a handshake with the identity of an enrolled node;
// found is false when there is none of that name.
func (s *Server) nodePSK(ctx context.Context, identity string) (key []byte, found bool, err error) {
	n, err := s.enrolledNode(ctx, identity)
	if n == nil || err != nil {
		return nil, false, err
	}
	if n.disabled != 0 || s.cfg.AS == nil {
		return nil, true, fmt.Errorf("%w: node is disabled", ErrIdentity)
	}
	if key, err = s.store.Unseal(nodeContext(n.identity), n.sealed); err != nil {
		return nil, true, fmt.Errorf("ace: key of a node: %w", err)
	}
	return key, true, nil
}

// maxIdentity bounds identities of enrolled nodes, in bytes (RFC 4279, Section
// 5.3, has everybody support 128).
const maxIdentity = 128

// identityFault says why a text cannot be the identity of an enrolled node, ""
// when it can.
func identityFault(identity string) string {
	switch {
	case identity == "":
		return "identity is empty"
	case len(identity) > maxIdentity:
		return fmt.Sprintf("identity is longer than %d bytes", maxIdentity)
	case !utf8.ValidString(identity) || strings.ContainsFunc(identity, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "identity has characters that cannot be printed"
	case strings.TrimSpace(identity) != identity:
		return "identity begins or ends with a space"
	}
	if _, ok := kidIdentity([]byte(identity)); ok {
		return "identity reads as the key identifier of an access token"
	}
	return ""
}

// NodeStatus is an enrolled node as operators see it.
type NodeStatus struct {
	Identity string
	State    string // enabled, disabled, shadowed (by a configured peer)
	Audience string
	Scope    groupcomm.Scope
	Lifetime time.Duration
	Enrolled time.Time
}

// Nodes lists enrolled nodes in the order of their identities, after the one
// named, limit at most.
func (s *Server) Nodes(ctx context.Context, after string, limit int) ([]NodeStatus, error) {
	var list []NodeStatus
	err := s.store.View(ctx, func(tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(nodeColumns+`WHERE identity > ? ORDER BY identity LIMIT ?`, after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			n, err := scanNode(rows)
			if err != nil {
				return err
			}
			state := "enabled"
			switch {
			case s.identities[n.identity] != nil:
				state = "shadowed"
			case n.disabled != 0:
				state = "disabled"
			}
			list = append(list, NodeStatus{n.identity, state, n.audience, n.scope, n.lifetime, time.Unix(n.enrolled, 0)})
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("ace: list nodes: %w", err)
	}
	return list, nil
}

// EnableNodes lets disabled nodes have tokens again. Like its siblings it
// changes all of the nodes named or, when one is not enrolled, none; n is how
// many were in another state before.
func (s *Server) EnableNodes(ctx context.Context, identities []string) (n int, err error) {
	return s.changeNodes(ctx, identities, "enabled", func(tx *store.Tx, node *nodeRow, _ int64) (bool, error) {
		if node.disabled == 0 {
			return false, nil
		}
		_, err := tx.Exec(`UPDATE ace_nodes SET disabled = 0, version = version + 1 WHERE identity = ?`, node.identity)
		return true, err
	})
}

// DisableNodes refuses the handshakes and token requests of nodes from now on
// and revokes their tokens, so that their memberships end.
func (s *Server) DisableNodes(ctx context.Context, identities []string) (n int, err error) {
	return s.changeNodes(ctx, identities, "disabled", func(tx *store.Tx, node *nodeRow, now int64) (bool, error) {
		if node.disabled != 0 {
			return false, nil
		}
		if _, err := tx.Exec(`UPDATE ace_nodes SET disabled = ?, version = version + 1 WHERE identity = ?`, now, node.identity); err != nil {
			return true, err
		}
		return true, s.revokeClient(tx, node.identity, now)
	})
}

// RemoveNodes forgets nodes; their tokens are revoked as with DisableNodes.
func (s *Server) RemoveNodes(ctx context.Context, identities []string) (n int, err error) {
	return s.changeNodes(ctx, identities, "removed", func(tx *store.Tx, node *nodeRow, now int64) (bool, error) {
		if _, err := tx.Exec(`DELETE FROM ace_nodes WHERE identity = ?`, node.identity); err != nil {
			return true, err
		}
		tx.AfterCommit(func() { s.countNodes(-1) })
		if s.identities[node.identity] != nil {
			return true, nil // the tokens are those of the configured peer
		}
		return true, s.revokeClient(tx, node.identity, now)
	})
}

func (s *Server) changeNodes(ctx context.Context, identities []string, what string, change func(*store.Tx, *nodeRow, int64) (bool, error)) (n int, err error) {
	identities = slices.Compact(slices.Sorted(slices.Values(identities)))
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		n = 0
		now := time.Now().Unix()
		var unknown, shadowed []string
		for _, id := range identities {
			node, err := nodeByIdentity(tx, id)
			switch {
			case errors.Is(err, store.ErrNotFound) && s.identities[id] != nil,
				err == nil && s.identities[id] != nil && what != "removed":
				shadowed = append(shadowed, fmt.Sprintf("%q", id))
				continue
			case errors.Is(err, store.ErrNotFound):
				unknown = append(unknown, fmt.Sprintf("%q", id))
				continue
			case err != nil:
				return err
			}
			if len(unknown)+len(shadowed) > 0 {
				continue // all that is wrong is told at once
			}
			changed, err := change(tx, node, now)
			if err != nil {
				return err
			}
			if changed {
				n++
			}
		}
		if len(shadowed) > 0 {
			return coap.Errorf(coap.Conflict, "configured in the file, to be changed there: %s", strings.Join(shadowed, ", "))
		}
		if len(unknown) > 0 {
			return coap.Errorf(coap.NotFound, "not enrolled: %s", strings.Join(unknown, ", "))
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("ace: %w", err)
	}
	s.log.InfoContext(ctx, "nodes "+what, "n", n)
	return n, nil
}

// revokeClient ends the tokens of a client and refuses those that were issued
// to it and not posted yet: by their keys, which are blocked until the last
// token that confirms them has expired.
func (s *Server) revokeClient(tx *store.Tx, client string, now int64) error {
	var kids [][]byte
	rows, err := tx.Query(`SELECT kid FROM ace_issued WHERE client = ?`, []byte(client))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var kid []byte
		if err := rows.Scan(&kid); err != nil {
			return err
		}
		kids = append(kids, kid)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE ace_issued SET blocked = ? WHERE client = ?`, now, []byte(client)); err != nil {
		return err
	}
	listed, err := s.list(tx, "client", []byte(client), now)
	if err != nil {
		return err
	}
	if err := changeList(tx, nil, listed); err != nil {
		return err
	}
	for _, kid := range kids {
		k, err := issuedKeyRow(tx, kid)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !s.ownOrigin(k.origin) {
			continue // another server's key of the same name
		}
		for slot, t := range k.tokens {
			if t == nil {
				continue
			}
			if err := s.endToken(tx, k.subject, slot, t.expires, now, "revoked"); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownOrigin says whether keys of an origin may come from the embedded AS.
func (s *Server) ownOrigin(origin string) bool {
	return slices.ContainsFunc(s.cfg.Entries, func(e TokenEntry) bool {
		return e.origin() == origin && s.cfg.AS != nil && canIssue(&e, s.cfg.AS.Issuer)
	})
}

// blocked says whether a token is bound to a key of the embedded AS whose client
// was disabled, removed or given other rights.
func (s *Server) blocked(tx *store.Tx, v *verified) (bool, error) {
	kid := v.issuedName()
	if kid == nil || !s.ownOrigin(v.entry.origin()) {
		return false, nil
	}
	var since int64
	err := tx.QueryRow(`SELECT blocked FROM ace_issued WHERE kid = ? AND audience = ?`, kid, v.entry.Audience).Scan(&since)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	// A symmetric key is not given out again.
	return since != 0 && (v.kid != nil || v.issued <= since), err
}

// issuedKeyRow is the stored key of an issued one.
func issuedKeyRow(tx *store.Tx, kid []byte) (*keyRow, error) {
	if subject, ok := publicSubject(kid); ok {
		return keyBySubject(tx, subject)
	}
	return keyByKID(tx, kid)
}

// stillEnrolled refuses a token for a node that changed since the policy was
// read.
func stillEnrolled(tx *store.Tx, n *nodeRow) error {
	var one int
	err := tx.QueryRow(`SELECT 1 FROM ace_nodes WHERE identity = ? AND version = ? AND disabled = 0`, n.identity, n.version).Scan(&one)
	if errors.Is(err, store.ErrNotFound) {
		return oauthFailure(invalidClient, "node was changed meanwhile")
	}
	return err
}

func (s *Server) countNodes(n int64) { s.metrics.nodes.Set(float64(s.nodes.Add(n))) }

// warnShadowed tells of enrolled nodes whose identity is configured as well.
func (s *Server) warnShadowed(ctx context.Context) error {
	n := 0
	err := s.store.View(ctx, func(tx *store.Tx) error {
		n = 0
		for id := range s.identities {
			switch _, err := nodeByIdentity(tx, id); {
			case err == nil:
				n++
			case !errors.Is(err, store.ErrNotFound):
				return err
			}
		}
		return nil
	})
	if n > 0 {
		s.log.WarnContext(ctx, "enrolled nodes have the identity of a configured peer, which wins", "n", n)
	}
	return err
}

// sameKey compares a stored key with another, in constant time.
func (s *Server) sameKey(n *nodeRow, key cose.Secret) (bool, error) {
	old, err := s.store.Unseal(nodeContext(n.identity), n.sealed)
	if err != nil {
		return false, fmt.Errorf("ace: key of a node: %w", err)
	}
	return cose.NewSecret(old).Equal(key), nil
}

// keepsRights says whether everything that a node could have it still can.
func (n *nodeRow) keepsRights(audience string, scope groupcomm.Scope) bool {
	return n.audience == audience && !slices.ContainsFunc(n.scope, func(e groupcomm.ScopeEntry) bool {
		return !scope.RolesFor(e.Group).Has(e.Roles)
	})
}

// tidy merges entries of one group and orders them by name, so that equal
// rights are equal bytes.
func tidy(scope groupcomm.Scope) groupcomm.Scope {
	var out groupcomm.Scope
	for _, e := range scope {
		out = addEntry(out, e)
	}
	slices.SortFunc(out, func(a, b groupcomm.ScopeEntry) int { return bytes.Compare([]byte(a.Group), []byte(b.Group)) })
	return out
}
