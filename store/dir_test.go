package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestLockDir(t *testing.T) {
	dir := newDir(t)
	unlock, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second instance: %v", err)
	}
	// A program that is being started has a copy of every descriptor until its exec.
	copied := 0
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to != filepath.Join(dir, lockName) {
			continue
		}
		n, err := strconv.Atoi(fd.Name())
		if err == nil {
			n, err = syscall.Dup(n)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Close(n) }()
		copied++
		break // a copy may have the number of one further on
	}
	if copied != 1 {
		t.Fatalf("%d descriptors of the lock", copied)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = LockDir(dir)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestDataDir(t *testing.T) {
	dir := newDir(t)
	s := openTest(t, dir, onSQLite)
	if err := s.Update(t.Context(), put(1, "x")); err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{".": 0o700, "groupgate.db": 0o600, "groupgate.db-wal": 0o600, "groupgate.db-shm": 0o600}
	for name, want := range modes {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, fi.Mode().Perm(), want)
		}
	}

	for mode, refused := range map[fs.FileMode]bool{0o777: true, 0o720: true, 0o755: false, 0o700: false} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		s, err := open(t, dir, onSQLite)
		if (err != nil) != refused {
			t.Errorf("directory with mode %04o: %v", mode, err)
		}
		if refused && !strings.Contains(fmt.Sprint(err), "chmod 700") {
			t.Errorf("mode %04o: no advice in %q", mode, err)
		}
		if s != nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A database that somebody made readable is closed to others again.
func TestDatabaseMode(t *testing.T) {
	dir := newDir(t)
	s, err := open(t, dir, onSQLite)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "groupgate.db")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	openTest(t, dir, onSQLite)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestDSN(t *testing.T) {
	abs := filepath.Join(t.TempDir(), "with space?#%41.db")
	for dsn, want := range map[string]string{
		"":                      "d/groupgate.db",
		"sqlite:other.db":       "d/other.db",
		"sqlite:" + abs:         abs,
		"sqlite:":               "error",
		"sqlite::memory:":       "error",
		"sqlite:sub/":           "error",
		"mysql:x":               "error",
		"groupgate.db":          "error",
		"postgres://u:pw@h:x/d": "error",
	} {
		got := "error"
		d, err := newDialect(Options{Dir: "d", DSN: dsn})
		if err == nil {
			got = d.(*sqliteDB).path
		}
		if got != want && !strings.HasSuffix(got, "/"+want) {
			t.Errorf("%q is %s, want %s", dsn, got, want)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: the password is in the error", dsn)
		}
	}
	s := openTest(t, newDir(t), func(o *Options) { o.DSN = "sqlite:" + abs })
	if err := s.Update(t.Context(), put(1, "x")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(abs); err != nil {
		t.Error(err)
	}
}

// The pragmas that durability and integrity hang on.
func TestPragmas(t *testing.T) {
	s := openTest(t, newDir(t), onSQLite)
	want := map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		for name, want := range want {
			var got string
			if err := tx.QueryRow("PRAGMA " + name).Scan(&got); err != nil {
				return err
			}
			if got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestNotADatabase(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "groupgate.db"), bytes.Repeat([]byte("text "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := open(t, dir, onSQLite); err == nil {
		t.Error(s.Close())
		t.Error("a text file was opened")
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seal.key")
	key, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(key) != KeySize || bytes.Equal(key, make([]byte, KeySize)) {
		t.Errorf("key of %d bytes", len(key))
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	again, err := LoadOrCreateKey(path)
	if err != nil || !bytes.Equal(key, again) {
		t.Errorf("read again: %v", err)
	}
	if left, _ := filepath.Glob(path + ".new-*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others can read: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "short": "00ff", "long": strings.Repeat("00", 33), "no hex": strings.Repeat("zz", 32), "huge": strings.Repeat("00", 4000)} {
		p := filepath.Join(t.TempDir(), "seal.key")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreateKey(p); err == nil {
			t.Errorf("%s key file was taken", name)
		} else if text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the file's text is in the error", name)
		}
		if got, _ := os.ReadFile(p); string(got) != text {
			t.Errorf("%s key file was overwritten", name)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(strings.Repeat("0f", KeySize))
	f.Add(strings.Repeat("0F", KeySize) + "\r\n")
	f.Add(strings.Repeat("0f", KeySize) + "\n\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		if got := hex.EncodeToString(key); len(key) != KeySize || got != strings.ToLower(strings.TrimRight(text, "\r\n")) {
			t.Errorf("%q is read as %s", text, got)
		}
	})
}
