package gm

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// validate checks what a group with certificates is given.
func (x X5) validate(g *groupcomm.GroupConfig) error {
	if x.Roots == nil || x.Key == nil || x.Chain == nil {
		return errors.New("credentials of kind x5chain need roots, a key and a certificate")
	}
	pub, err := parseCred(g, x.Chain)
	if err != nil {
		return fmt.Errorf("the Group Manager's certificate: %w", err)
	}
	if !x.Key.IsPrivate() || !pub.SamePublic(x.Key) {
		return errors.New("the Group Manager's certificate is not for its key")
	}
	return nil
}

// trust judges a credential that a member brings, beside its key: certificates
// lead to the group's roots, are valid now and allow what the group does with the
// key (RFC 5280, Section 6). What joined stays: a certificate that expires later
// ends no membership, the token does.
func (g *group) trust(cred []byte) error {
	if g.cfg.CredFmt != cose.HeaderX5Chain {
		return nil
	}
	usage := x509.KeyUsageDigitalSignature
	if g.cfg.PairwiseOnly() {
		usage = x509.KeyUsageKeyAgreement
	}
	if g.roots == nil {
		return errors.New("gm: no roots: the group is no longer declared")
	}
	return cose.VerifyX5Chain(cred, g.roots, time.Now(), usage)
}

// selfCred makes the Group Manager's key pair and credential in a new group.
func (m *Manager) selfCred(c *groupcomm.GroupConfig) (*cose.Key, []byte, error) {
	if c.CredFmt == cose.HeaderX5Chain {
		x := m.cfg.X5[c.Name]
		return x.Key, x.Chain, nil
	}
	key, err := makeKDCKey(c)
	if err != nil {
		return nil, nil, err
	}
	if c.CredFmt == cose.HeaderKCWT {
		cred, err := cose.EncodeCWT(kdcSubject, key)
		return key, cred, err
	}
	return key, cose.EncodeCCS(kdcSubject, key.Public()), nil
}

// adoptX5 takes over roots, and a certificate that was renewed. Members learn of
// it when they ask for kdc-cred or join again.
func (m *Manager) adoptX5(ctx context.Context, g *group) error {
	x, ok := m.cfg.X5[g.cfg.Name]
	if !ok || g.cfg.CredFmt != cose.HeaderX5Chain {
		return nil
	}
	g.roots = x.Roots
	if bytes.Equal(g.kdc.cred, x.Chain) {
		return nil
	}
	self, err := newKDC(g.cfg, x.Key, x.Chain)
	if err != nil {
		return err
	}
	sealed := m.st.Seal(kdcKeyContext(g.id), x.Key.Encode())
	if err := m.st.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(`UPDATE gm_configs SET kdc_key = ?, kdc_cred = ? WHERE group_id = ?`, sealed, x.Chain, g.id); err != nil {
			return err
		}
		return emit(tx, groupcomm.EventConfigured, groupcomm.Event{Group: g.cfg.Name})
	}); err != nil {
		return fmt.Errorf("gm: group %q: %w", g.cfg.Name, err)
	}
	g.kdc = self
	m.log.WarnContext(ctx, "certificate of the group manager changed, members do not know it yet", "group", g.cfg.Name)
	return nil
}
