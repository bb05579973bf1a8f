//go:build unix

package durable

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ErrLocked says that another process has a lock.
var ErrLocked = errors.New("another process uses it")

// Lock claims path.lock for this process until unlock, or until the process ends,
// however it ends. The file stays: to remove it would let two processes lock two
// files. Where another process has it the error is [ErrLocked].
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f.Close, nil
}
