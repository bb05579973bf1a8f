package oscore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/seed4911071e/groupgate/durable"
)

// File is a [Reserver] that keeps its number in a small file, for who has no
// database. The folder is there, and the file is used by one context alone.
type File struct {
	mu   sync.Mutex
	path string
	upTo uint64
}

// OpenFile reads the file, which need not exist yet.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("oscore: %w", err)
	}
	text, whole := strings.CutSuffix(string(b), "\n")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || !whole || n > maxSequence {
		// To begin at zero would use numbers again.
		return nil, fmt.Errorf("oscore: %s holds no sequence number", path)
	}
	f.upTo = n
	return f, nil
}

// Start is where a context begins that uses the file: [SequenceConfig.Start].
func (f *File) Start() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.upTo
}

// Reserve implements [Reserver]: a new file takes the place of the old one, and
// both its content and its name are on disk before Reserve returns.
func (f *File) Reserve(_ context.Context, upTo uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if upTo <= f.upTo {
		return nil
	}
	if err := durable.Replace(f.path, []byte(strconv.FormatUint(upTo, 10)+"\n")); err != nil {
		return err
	}
	f.upTo = upTo
	return nil
}
