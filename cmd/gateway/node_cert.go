package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/node"
)

// certificate reads the files that a group with certificates needs.
func (c *nodeJoinCmd) certificate(cfg *node.Config) error {
	read := func(flag, file string, to func([]byte) error) error {
		if file == "" {
			return nil
		}
		text, err := os.ReadFile(file)
		if err == nil {
			err = to(text)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", flag, file, err)
		}
		return nil
	}
	if (c.CertFile == "") != (c.CertKeyFile == "") {
		return errors.New("--cert-file and --cert-key-file go together")
	}
	return errors.Join(
		read("--cert-file", c.CertFile, func(text []byte) (err error) {
			cfg.Cred, err = cose.X5ChainFromPEM(text)
			return err
		}),
		read("--cert-key-file", c.CertKeyFile, func(text []byte) (err error) {
			cfg.Key, err = cose.PrivateKeyFromPEM(text)
			return err
		}),
		read("--roots-file", c.RootsFile, func(text []byte) error {
			cfg.Roots = x509.NewCertPool()
			if !cfg.Roots.AppendCertsFromPEM(text) {
				return errors.New("holds no certificate")
			}
			return nil
		}),
	)
}
