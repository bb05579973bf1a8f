package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
)

// A sealed value is
//
//	version (1 byte) | salt (24 bytes) | AES-256-GCM ciphertext and tag
//
// with key and nonce drawn by HKDF-SHA-256 from the master key and the salt.
//
// Random 96-bit nonces under one key are good for 2^32 values (NIST SP 800-38D,
// Section 8.3), and nobody counts across restarts, restored disks and gateways
// that share the key. With a key for each value a nonce repeats only if a
// 192-bit salt does: for that to be as likely as 2^-32 takes 2^80 values. A
// value itself stays far below GCM's 64 GiB.
const (
	sealVersion = 1
	saltSize    = 24
	// SealOverhead is what Seal adds to the length.
	SealOverhead = 1 + saltSize + 16
	// KeySize is the length of the sealing key in bytes.
	KeySize = 32
)

// HKDF labels: one purpose each.
const (
	labelValue = "groupgate seal value 1"
	labelCheck = "groupgate seal check 1"
)

// sealer holds the master key behind a closure, so that no print of a Store
// can show it.
type sealer struct {
	key func() []byte
}

func newSealer(key []byte) sealer {
	k := append([]byte(nil), key...)
	return sealer{key: func() []byte { return k }}
}

// aead returns the cipher and nonce of one value.
func (s sealer) aead(salt []byte) (cipher.AEAD, []byte) {
	okm, err := hkdf.Key(sha256.New, s.key(), salt, labelValue, KeySize+12)
	if err != nil {
		panic("store: internal error: " + err.Error())
	}
	block, err := aes.NewCipher(okm[:KeySize])
	if err != nil {
		panic("store: internal error: " + err.Error())
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("store: internal error: " + err.Error())
	}
	return gcm, okm[KeySize:]
}

// Seal encrypts plain for storage. context says where it is stored, for
// instance "gm_group/secret/" and the row's key: Unseal asks for the same, so a
// value that someone moved to another row does not open.
func (s *Store) Seal(context string, plain []byte) []byte {
	out := make([]byte, 1+saltSize, SealOverhead+len(plain))
	out[0] = sealVersion
	rand.Read(out[1:]) // never fails
	gcm, nonce := s.seal.aead(out[1:])
	return gcm.Seal(out, nonce, plain, []byte(context))
}

// Unseal is the inverse of Seal. Whatever is wrong: [ErrUnseal].
func (s *Store) Unseal(context string, sealed []byte) ([]byte, error) {
	if len(sealed) < SealOverhead || sealed[0] != sealVersion {
		return nil, ErrUnseal
	}
	salt, box := sealed[1:1+saltSize], sealed[1+saltSize:]
	gcm, nonce := s.seal.aead(salt)
	plain, err := gcm.Open(nil, nonce, box, []byte(context))
	if err != nil {
		return nil, ErrUnseal
	}
	return plain, nil
}

// check compares the key with the database's check value, or leaves one in a
// new database. The value is derived one way and tells nothing about the key.
func (s sealer) check(tx *Tx) error {
	want, err := hkdf.Key(sha256.New, s.key(), nil, labelCheck, 32)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	var have []byte
	err = tx.QueryRow("SELECT value FROM store_meta WHERE name = 'seal_check'").Scan(&have)
	if errors.Is(err, ErrNotFound) {
		_, err = tx.Exec("INSERT INTO store_meta (name, value) VALUES ('seal_check', ?)", want)
		return err
	}
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(have, want) != 1 {
		return fmt.Errorf("%w: this database was sealed under another key: start with the key file (or GROUPGATE_SEAL_KEY) that it was created with", ErrWrongKey)
	}
	return nil
}
