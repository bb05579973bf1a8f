package main

import (
	"fmt"
	"os"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/node"
)

// rawKey is the private key for an association by raw public keys; nil: there is
// to be none.
func (c *nodeJoinCmd) rawKey() (*cose.Key, error) {
	if c.RPKKeyFile != "" {
		text, err := os.ReadFile(c.RPKKeyFile)
		if err != nil {
			return nil, fmt.Errorf("--rpk-key-file: %w", err)
		}
		key, err := cose.PrivateKeyFromPEM(text)
		if err == nil && key.CheckAlg(cose.AlgEdDSA) != nil && key.CheckAlg(cose.AlgES256) != nil {
			err = fmt.Errorf("a key of Ed25519 or P-256 is needed")
		}
		if err != nil {
			return nil, fmt.Errorf("--rpk-key-file %s: %w", c.RPKKeyFile, err)
		}
		return key, nil
	}
	if !c.RPK {
		return nil, nil
	}
	return cose.GenerateKey(cose.AlgEdDSA)
}

// sameKey has the key of the association be that of the credential, where the
// group has no other algorithm and there is no other key.
func (c *nodeJoinCmd) sameKey(cfg *node.Config, access *node.Access) {
	if access.PrivateKey == nil || cfg.Key != nil && !cfg.Key.SamePublic(access.PrivateKey) || cfg.Transfer == nil {
		return
	}
	for _, s := range cfg.Transfer.SignInfo {
		for _, g := range s.Groups {
			if g == cfg.Group && access.PrivateKey.CheckAlg(s.Alg) == nil {
				cfg.Key, cfg.SameKey = access.PrivateKey, true
			}
		}
	}
}
