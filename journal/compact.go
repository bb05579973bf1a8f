package journal

import (
	"errors"
	"fmt"
)

// errEnding is the error of a snapshot that was given up.
var errEnding = errors.New("the process ends")

// compact begins a new log, writes a snapshot of everything beside it, and
// removes what was before. Whoever reads finds either all of the old files, or
// the snapshot; the new log counts in both cases.
func (j *Journal) compact() {
	j.one.Lock()
	defer j.one.Unlock()
	j.compactLocked()
}

// compactLocked is compact with one held.
func (j *Journal) compactLocked() {
	gen, err := j.rotate()
	if err == nil {
		err = j.snapshot(gen)
	}
	if err != nil {
		j.giveUp(err)
		return
	}
	j.met.compactions.Inc()
}

// rotate has what is appended from now on written to a new log, where the newest has
// its snapshot. After a failure it is appended again: the snapshot that follows has
// what was lost. Until it is on disk nobody is told that anything is.
func (j *Journal) rotate() (gen uint64, err error) {
	j.write.Lock()
	defer j.write.Unlock()
	if j.out != nil {
		j.flushLocked()
	}
	if j.out != nil && j.snapped != j.gen {
		// Snapshots that fail one after the other must not leave a log each.
		return j.gen, nil
	}
	w, err := j.create(logName(j.gen+1), kindLog, j.gen+1)
	if err != nil {
		return 0, err
	}
	if j.out != nil {
		_ = j.out.f.Close() // it is on disk
	}
	j.gen++
	j.out = w
	j.mu.Lock()
	j.mending = j.failed != nil
	j.mu.Unlock()
	return j.gen, nil
}

// giveUp goes on without a snapshot. One that was to make a failure good leaves
// things as they were: nobody was promised what its log has.
func (j *Journal) giveUp(err error) {
	j.write.Lock()
	j.owing = true
	ending := errors.Is(err, errEnding)
	if j.mendingNow() && !ending {
		_ = j.out.f.Close()
		_ = j.fs.remove(logName(j.gen)) // best effort: the next one replaces it
		j.out = nil
		j.gen--
	}
	if j.out == nil {
		j.fail(err)
	}
	j.write.Unlock()
	if ending {
		return
	}
	if n := j.line.Event(j.o.now()); n > 0 {
		j.log.Warn("no snapshot of the sessions could be written; it is tried again", "n", n,
			"hint", "free space on the disk of data_dir; nothing has to be started anew", "err", err)
	}
}

func (j *Journal) mendingNow() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mending
}

// mended says that everything is on disk again.
func (j *Journal) mended() {
	j.mu.Lock()
	was := j.failed
	j.failed, j.mending = nil, false
	j.mu.Unlock()
	j.met.failed.Set(0)
	if was != nil {
		j.log.Info("sessions can be written to disk again")
	}
}

// snapshot writes everything there is.
func (j *Journal) snapshot(gen uint64) (err error) {
	name := snapshotName(gen)
	w, err := j.create(name+".new", kindSnapshot, gen)
	if err != nil {
		return err
	}
	var buf []byte
	whole := j.o.Dump(func(kind byte, rec []byte) {
		if len(rec) > MaxRecord {
			panic("journal: internal error: record too long")
		}
		if buf = appendRecord(buf, kind, rec); len(buf) >= maxFrame && err == nil {
			err = w.records(buf)
			buf = buf[:0]
		}
	})
	if err == nil && !whole {
		err = errEnding
	}
	if err == nil {
		err = w.records(buf)
	}
	if err == nil {
		err = w.end()
	}
	if err == nil {
		err = w.sync()
	}
	if err = errors.Join(err, w.f.Close()); err == nil {
		err = j.fs.rename(name+".new", name)
	}
	if err == nil {
		err = j.fs.sync()
	}
	if err != nil {
		_ = j.fs.remove(name + ".new") // best effort: the next one replaces it
		return fmt.Errorf("journal: snapshot: %w", err)
	}
	j.write.Lock()
	defer j.write.Unlock()
	j.base, j.owing, j.snapped = w.size, false, gen
	if j.out != nil {
		j.mended()
	}
	j.met.bytes.Set(float64(j.base + j.out.sizeOr0()))
	return j.removeBelow(gen)
}

func (w *writer) sizeOr0() int64 {
	if w == nil {
		return 0
	}
	return w.size
}

// removeBelow removes the files of older generations.
func (j *Journal) removeBelow(gen uint64) error {
	l, err := j.list()
	if err != nil {
		return err
	}
	for _, g := range l.logs {
		if g < gen {
			err = errors.Join(err, j.fs.remove(logName(g)))
		}
	}
	for _, g := range l.snapshots {
		if g < gen {
			err = errors.Join(err, j.fs.remove(snapshotName(g)))
		}
	}
	return errors.Join(err, j.fs.sync())
}

// Erase removes a folder and what is in it: for who keeps nothing over restarts.
func Erase(dir string) error {
	s := system{dir}
	j := &Journal{fs: s}
	names, err := s.list()
	if err != nil || len(names) == 0 {
		return nil // there is none
	}
	l, err := j.list()
	if err != nil {
		return err
	}
	if err := errors.Join(s.remove(bootName), j.removeBelow(l.newest()+1)); err != nil {
		return fmt.Errorf("journal: erase: %w", err)
	}
	return nil
}
