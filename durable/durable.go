// Package durable writes small files so that a crash or a power cut leaves all
// of one or nothing of it: what was there before, or no file.
//
// When a function returns nil, content and name are on disk. Files are for the
// owner alone, 0600.
package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// Replace gives the file its content, whether it is there or not. One writer at
// a time: the content is first in path.new, which a crash may leave behind for
// the next Replace to use.
func Replace(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := write(f, content); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Create makes a new file. Where there is one it stays, and the error is
// [os.ErrExist]: of many who create at once, one wins. A crash may leave a file
// behind whose name is that of path with .new- and digits after it.
func Create(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := write(f, content); err != nil {
		return err
	}
	// A link, unlike a rename, fails when the name is taken.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes new names in a folder survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) {
		err = nil // the file system has nothing to sync
	}
	return errors.Join(err, d.Close())
}

func write(f *os.File, content []byte) error {
	_, err := f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
