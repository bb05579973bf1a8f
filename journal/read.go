package journal

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxFile bounds what is read of one file, in bytes: a million sessions take a
// quarter of that.
const maxFile = 2 << 30

func logName(gen uint64) string      { return "log." + strconv.FormatUint(gen, 10) }
func snapshotName(gen uint64) string { return "snapshot." + strconv.FormatUint(gen, 10) }

// listing is which files there are, by generation, oldest first.
type listing struct{ logs, snapshots []uint64 }

func (l listing) newest() uint64 {
	var n uint64
	for _, all := range [][]uint64{l.logs, l.snapshots} {
		if len(all) > 0 {
			n = max(n, all[len(all)-1])
		}
	}
	return n
}

func (j *Journal) list() (l listing, err error) {
	names, err := j.fs.list()
	if err != nil {
		return l, fmt.Errorf("journal: %w", err)
	}
	if len(names) > maxFiles {
		return l, fmt.Errorf("journal: %d files in the folder", len(names))
	}
	for _, name := range names {
		kind, number, _ := strings.Cut(name, ".")
		gen, err := strconv.ParseUint(number, 10, 63)
		if err != nil || gen == 0 || strconv.FormatUint(gen, 10) != number {
			continue // unfinished, or none of ours
		}
		switch kind {
		case "log":
			l.logs = append(l.logs, gen)
		case "snapshot":
			l.snapshots = append(l.snapshots, gen)
		}
	}
	slices.Sort(l.logs)
	slices.Sort(l.snapshots)
	return l, nil
}

// read gives apply the newest snapshot, and the logs that began with it or after
// it. Each log ends where a crash cut it; what a later start wrote is in a later
// one.
func (j *Journal) read(l listing, apply func(byte, []byte) error) (found Found, err error) {
	var from uint64
	if n := len(l.snapshots); n > 0 {
		// It took its name when it was whole and on disk: there is no older one to
		// go back to.
		from = l.snapshots[n-1]
		b, err := j.fs.read(snapshotName(from), maxFile)
		if err != nil {
			return found, fmt.Errorf("journal: %w", err)
		}
		n, _, complete, err := decodeFile(b, j.o.Key, kindSnapshot, from, apply)
		found.Records += n
		if err == nil && !complete {
			err = errFrame
		}
		if err != nil {
			return found, j.unreadable(snapshotName(from), err)
		}
		j.base = int64(len(b))
	}
	for _, gen := range l.logs {
		if gen < from {
			continue
		}
		b, err := j.fs.read(logName(gen), maxFile)
		if err != nil {
			return found, fmt.Errorf("journal: %w", err)
		}
		n, whole, _, err := decodeFile(b, j.o.Key, kindLog, gen, apply)
		found.Records += n
		found.Torn += int64(len(b)) - whole
		switch {
		case err == nil, errors.Is(err, errFrame), errors.Is(err, errHeader) && len(b) <= headerSize:
		default:
			return found, j.unreadable(logName(gen), err)
		}
	}
	return found, nil
}

// ErrUnreadable is the error of files that are not as they were written: damaged
// where no crash does that, changed, sealed under another key, or by a newer
// program.
var ErrUnreadable = errors.New("journal: what was kept cannot be read")

func (j *Journal) unreadable(name string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnreadable, name, err)
}
