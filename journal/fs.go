package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/seed4911071e/groupgate/durable"
)

// files is a folder; tests have one that fails and forgets.
type files interface {
	prepare() error // makes the folder
	list() ([]string, error)
	read(name string, most int64) ([]byte, error)
	create(name string) (file, error)                // a new, empty one in the place of what was there
	overwrite(name string, at int64, b []byte) error // what is there, in place: on disk after it, without room for more
	rename(from, to string) error
	remove(name string) error
	sync() error // what was created, renamed and removed is on disk after it
}

type file interface {
	Write(b []byte) (int, error)
	Sync() error
	Close() error
}

// system is a folder of the system.
type system struct{ dir string }

func (s system) path(name string) string { return filepath.Join(s.dir, name) }

func (s system) prepare() error { return os.MkdirAll(s.dir, 0o700) }

func (s system) list() ([]string, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

var errLarge = errors.New("file is too large")

func (s system) read(name string, most int64) ([]byte, error) {
	fi, err := os.Stat(s.path(name))
	if err != nil {
		return nil, err
	}
	if fi.Size() > most || !fi.Mode().IsRegular() {
		return nil, errLarge
	}
	return os.ReadFile(s.path(name))
}

func (s system) create(name string) (file, error) {
	return os.OpenFile(s.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (s system) overwrite(name string, at int64, b []byte) error {
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, at); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s system) rename(from, to string) error { return os.Rename(s.path(from), s.path(to)) }

func (s system) remove(name string) error {
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s system) sync() error { return durable.SyncDir(s.dir) }
