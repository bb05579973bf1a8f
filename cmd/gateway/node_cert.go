package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/node"
)

// certificate reads the files that a group with certificates needs.
func (c *nodeJoinCmd) certificate(cfg *node.Config) error {
	if (c.CertFile == "") != (c.CertKeyFile == "") {
		return errors.New("--cert-file and --cert-key-file go together")
	}
	return errors.Join(
		readFlag("--cert-file", c.CertFile, func(text []byte) (err error) {
			cfg.Cred, err = cose.X5ChainFromPEM(text)
			return err
		}),
		readFlag("--cert-key-file", c.CertKeyFile, func(text []byte) (err error) {
			cfg.Key, err = cose.PrivateKeyFromPEM(text)
			return err
		}),
		readFlag("--roots-file", c.RootsFile, rootsInto(&cfg.Roots)),
		c.brokerTLS(cfg),
	)
}

// brokerTLS reads the files for an MQTT broker with TLS.
func (c *nodeJoinCmd) brokerTLS(cfg *node.Config) error {
	if c.BrokerCA == "" && c.BrokerCert == "" && c.BrokerKey == "" {
		return nil
	}
	if !c.MQTT {
		return errors.New("--broker-ca-file, --broker-cert-file and --broker-key-file are for --mqtt")
	}
	if (c.BrokerCert == "") != (c.BrokerKey == "") {
		return errors.New("--broker-cert-file and --broker-key-file go together")
	}
	cfg.BrokerTLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.BrokerCert != "" {
		cert, err := tls.LoadX509KeyPair(c.BrokerCert, c.BrokerKey)
		if err != nil {
			return fmt.Errorf("--broker-cert-file: %w", err)
		}
		cfg.BrokerTLS.Certificates = []tls.Certificate{cert}
	}
	return readFlag("--broker-ca-file", c.BrokerCA, rootsInto(&cfg.BrokerTLS.RootCAs))
}

// readFlag hands over the file that a flag names, if it does.
func readFlag(flag, file string, to func([]byte) error) error {
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

func rootsInto(pool **x509.CertPool) func([]byte) error {
	return func(text []byte) error {
		*pool = x509.NewCertPool()
		if !(*pool).AppendCertsFromPEM(text) {
			return errors.New("holds no certificate")
		}
		return nil
	}
}
