package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/seed4911071e/groupgate/durable"
)

const lockName = "groupgate.lock"

// LockDir claims a data directory for this process until unlock, or until the
// process ends, however it ends. The directory is created when absent. When
// another instance has it: [ErrLocked], with its process id.
func LockDir(dir string) (unlock func() error, err error) {
	if _, err := ensureDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s belongs to %s: stop it, or use another data_dir", ErrLocked, dir, lockHolder(f))
		}
		return nil, fmt.Errorf("store: lock %s: %w", path, err)
	}
	// The process id is only a hint for people; the lock is what counts. So a
	// full disk does not keep the gateway from starting.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	// The file stays: to remove it would let two processes lock two files.
	return func() error {
		// Said, not left to the end of the descriptor: a program that this process is
		// just starting has a copy of it until its exec.
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		return errors.Join(err, f.Close())
	}, nil
}

func lockHolder(f *os.File) string {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || err2 != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

// ensureDir creates the data directory, for us alone. One that exists and that
// others can write to is refused: they could replace the database. One that
// others can only look into gets a warning, because our files in it are 0600.
func ensureDir(dir string) (warning string, err error) {
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("store: create data directory: %w", err)
		}
		return "", durable.SyncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil {
		return "", fmt.Errorf("store: data directory: %w", err)
	}
	if !fi.IsDir() {
		return "", fmt.Errorf("store: data directory %s is a file", dir)
	}
	perm := fi.Mode().Perm()
	if perm&0o022 != 0 {
		return "", fmt.Errorf("store: others can write to data directory %s (mode %04o): run: chmod 700 %s", dir, perm, dir)
	}
	if perm&0o055 != 0 {
		return "chmod 700 " + dir, nil
	}
	return "", nil
}

// isDiskError says whether err is the disk's doing.
func isDiskError(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EFBIG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
