package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// ReplaceCred gives the member another key: POST on nodes/NODENAME/cred with the
// credential of key and a proof that the node holds it. The Sender ID stays, and
// other members learn the credential when they ask for credentials. On any error
// the member keeps the key that it has. A monitor has no credential to replace.
//
// RFC 9594, Section 4.9.1; draft-ietf-ace-key-groupcomm-oscore-21, Section 9.4.
func (m *Member) ReplaceCred(ctx context.Context, key *cose.Key) error {
	const op = "new credential"
	if key == nil || len(key.D) == 0 {
		return errors.New("node: the key has no private part")
	}
	m.exchange.Lock()
	defer m.exchange.Unlock()
	s, t, err := m.joined()
	if err != nil {
		return err
	}
	if err := m.prepare(ctx); err != nil { // a member that was resumed does not know it
		return err
	}
	m.mu.Lock()
	group := m.params
	m.mu.Unlock()
	if err := group.checkKey(key); err != nil {
		return fmt.Errorf("%w: the key does not fit the group's algorithm: %w", ErrUnsupported, err)
	}
	cred, err := group.credential(m.cfg.Subject, key)
	if err != nil {
		return fmt.Errorf("node: %s: %w", op, err)
	}
	scope := groupcomm.ScopeEntry{Group: m.cfg.Group, Roles: s.Roles}.Encode()
	sign := key.Signer()
	for attempt := 1; ; attempt++ {
		nc, err := m.nonce()
		if err != nil {
			return err
		}
		m.mu.Lock()
		ns := m.ns
		m.mu.Unlock()
		// Without a challenge the request is how to get one.
		proof, err := group.evidence(key, sign, groupcomm.ClientPoPInput(scope, ns, nc))
		if err != nil {
			return fmt.Errorf("node: %s: proof of possession: %w", op, err)
		}
		req := m.groupRequest(coap.POST, "nodes", s.Node, "cred")
		req.Options.SetContentFormat(coap.ACEGroupcomm)
		req.Payload = (&groupcomm.CredUpdate{
			ClientCred: cred, CNonce: nc, ClientCredVerify: proof,
		}).Encode()
		resp, err := t.Do(ctx, req)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		if resp.Code == coap.Changed {
			m.mu.Lock()
			m.useKey(key, cred)
			m.mu.Unlock()
			return nil
		}
		if attempt == 2 || !m.newChallenge(resp) {
			return m.concern(refused(op, resp))
		}
	}
}

// newChallenge takes N_S out of a 4.00 that carries one, and says whether it
// did.
func (m *Member) newChallenge(r *coap.Response) bool {
	if f, ok := r.Options.ContentFormat(); r.Code != coap.BadRequest || !ok || f != coap.ACEGroupcomm {
		return false
	}
	info, err := groupcomm.DecodeInfoBody(r.Payload)
	if err != nil || len(info.KDCChallenge) < minNonce || len(info.KDCChallenge) > maxNonce {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ns = info.KDCChallenge
	return true
}

// Active asks whether the group is active: while it is not, its members should
// send nothing and process nothing.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.9: GET on active.
func (m *Member) Active(ctx context.Context) (bool, error) {
	const op = "get active"
	resp, err := m.get(ctx, op, m.groupRequest(coap.GET, "active"))
	if err != nil {
		return false, err
	}
	active, err := groupcomm.DecodeActive(resp.Payload)
	if err != nil {
		return false, badAnswer(op, "%v", err)
	}
	return active, nil
}
