package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/seed4911071e/groupgate/durable"
	"github.com/seed4911071e/groupgate/node"
)

// Sizes of generated secrets, in bytes.
const (
	adminTokenSize = 32
	clientKeySize  = 16
	issuerKeySize  = 16 // AES-CCM-16-64-128
)

// Bootstrap makes the data folder ready and fills c with every key: it creates
// the folder (0700) and the secrets that the gateway itself owns (0600) where
// they are absent, and reads all key files. What exists is never changed, so
// that it can run at every start. Faults are a [*FaultError].
func (c *Config) Bootstrap() error {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("config: data_dir: %w", err)
	}
	f := newFaults(c.file, c.lines)
	c.checkMachine(f)
	if err := f.err(); err != nil {
		return err
	}
	if err := c.createOwned(); err != nil {
		return err
	}
	if err := c.readKeys(func(string) bool { return false }); err != nil {
		return err
	}
	token, err := c.ReadAdminToken()
	if err != nil {
		return err
	}
	c.AdminToken = token
	if c.embedded {
		return c.addClient()
	}
	return nil
}

// owned says which files the gateway creates when they are absent: its sealing
// key, and the keys with which only its embedded AS issues.
func (c *Config) owned(file string) bool {
	return file == c.Seal.KeyFile || slices.ContainsFunc(c.Tokens, func(t Token) bool {
		return t.SymmetricKeyFile == file && c.issuing(t)
	})
}

// issuing says whether an entry's key file is the embedded AS's own. An entry
// without an issuer may hold the key of another AS, which we must not invent.
func (c *Config) issuing(t Token) bool {
	as := c.AuthorizationServer
	return as.Enabled && t.SymmetricKeyFile != "" && t.Issuer == as.Issuer && t.AlgID() == tokenAlgs["AES-CCM-16-64-128"]
}

func (c *Config) createOwned() error {
	if _, ok := os.LookupEnv(SealKeyEnv); !ok {
		if err := c.createSealKey(); err != nil {
			return err
		}
	}
	for _, t := range c.Tokens {
		if c.issuing(t) {
			if err := createSecret(c.Path(t.SymmetricKeyFile), issuerKeySize); err != nil {
				return err
			}
		}
	}
	return createSecret(c.Path(AdminTokenFile), adminTokenSize)
}

// createSealKey never invents a key for a database that another key sealed.
func (c *Config) createSealKey() error {
	path := c.Path(c.Seal.KeyFile)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil // there, or reading it will say what is wrong
	}
	if c.isPostgres() {
		return createSecret(path, sealKeySize) // the store compares it with the database's
	}
	db := c.Path(strings.TrimPrefix(c.Store, "sqlite:"))
	if _, err := os.Stat(db); err == nil {
		return fmt.Errorf("config: the sealing key %s is missing, but the database %s exists: restore the key, or set %s", path, db, SealKeyEnv)
	}
	return createSecret(path, sealKeySize)
}

// addClient makes the one client of a first run's embedded AS known: a random
// key, shared with `gateway node` through a file.
func (c *Config) addClient() error {
	path := c.Path(node.ClientFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, clientKeySize)
		rand.Read(key)
		err := node.SaveClient(path, node.Client{
			Identity: embeddedClient,
			Key:      newSecret(key),
			Audience: embeddedAudience,
			AS:       "coaps://" + c.Listen.CoAPS + "/token",
		})
		if err != nil {
			return fmt.Errorf("config: %w", err)
		}
	}
	client, err := node.LoadClient(path)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if client.Identity != embeddedClient || client.Audience != embeddedAudience {
		return fmt.Errorf("config: %s is not the credential of this gateway: remove it, and one is made anew", path)
	}
	c.PSK = []PSK{{Identity: client.Identity, Key: client.Key, May: []string{"token"}}}
	return nil
}

// createSecret writes size random bytes in hexadecimal to a new file; an
// existing one stays.
func createSecret(path string, size int) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	b := make([]byte, size)
	rand.Read(b)
	return createFile(path, []byte(hex.EncodeToString(b)+"\n"))
}

// createFile creates a file 0600, whole or not at all: a crash or power cut
// leaves no half-written key behind. An existing file wins.
func createFile(path string, content []byte) error {
	err := durable.Create(path, content)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}
