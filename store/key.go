package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/seed4911071e/groupgate/durable"
)

// LoadOrCreateKey reads a sealing key, 64 hexadecimal digits, from a file; an
// absent file is created with a new random key and mode 0600. A file that
// others can read is refused: its key may be known.
func LoadOrCreateKey(path string) ([]byte, error) {
	key, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("store: create key file: %w", err)
		}
		// Read back: what the disk has is what counts, whoever created it.
		key, err = loadKey(path)
	}
	return key, err
}

// ParseKey reads the text form of a sealing key: 64 hexadecimal digits and
// perhaps a line end. The error does not show the text.
func ParseKey(text string) ([]byte, error) {
	digits := strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	key, err := hex.DecodeString(digits)
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("store: a sealing key is %d hexadecimal digits", 2*KeySize)
	}
	return key, nil
}

func loadKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("store: key file: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("store: key file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("store: key file %s is not a regular file", path)
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("store: key file %s has mode %04o, so others may know the key: "+
			"if nobody could read it, run: chmod 600 %s", path, perm, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, fmt.Errorf("store: key file: %w", err)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%w, key file %s is something else", err, path)
	}
	return key, nil
}

// createKey makes a key file; one that exists is never replaced.
func createKey(path string) error {
	key := make([]byte, KeySize)
	rand.Read(key) // never fails
	return durable.Create(path, []byte(hex.EncodeToString(key)+"\n"))
}
