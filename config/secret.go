package config

import "github.com/seed4911071e/groupgate/cose"

// Secret holds key bytes that cannot be printed.
type Secret = cose.Secret

func newSecret(b []byte) Secret { return cose.NewSecret(b) }
