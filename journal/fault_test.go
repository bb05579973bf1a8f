package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"
)

// faulty is a folder in memory that knows what of it a power cut would leave:
// bytes are safe when their file was synchronised, names when the folder was.
type faulty struct {
	rng   *rand.Rand
	now   map[string]*inode // names
	safe  map[string]*inode // names on disk
	ops   int
	crash int  // the operation that does not happen any more; 0: none
	full  bool // nothing but what is there can be written
	room  int  // bytes that all files may have; 0: any number
	down  bool
}

type inode struct {
	b    []byte
	safe int // bytes on disk
}

var errCrash = errors.New("power cut")

func newFaulty(seed uint64) *faulty {
	return &faulty{rng: rand.New(rand.NewPCG(seed, 3)), now: map[string]*inode{}, safe: map[string]*inode{}}
}

// step counts an operation that changes something.
func (f *faulty) step() error {
	if f.down {
		return errCrash
	}
	if f.ops++; f.ops == f.crash {
		f.down = true
		return errCrash
	}
	if f.full {
		return syscall.ENOSPC
	}
	return nil
}

// roomless is a step that takes no room.
func (f *faulty) roomless() error {
	full := f.full
	f.full = false
	err := f.step()
	f.full = full
	return err
}

// after is the folder as it is found after a power cut: of what was not
// synchronised some is there, some is not, and the end of a file may be anything.
func (f *faulty) after() *faulty {
	next := newFaulty(f.rng.Uint64())
	names := map[string]bool{}
	for _, m := range []map[string]*inode{f.now, f.safe} {
		for name := range m {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := f.safe[name]
		if f.now[name] != n && f.rng.IntN(2) == 0 {
			n = f.now[name]
		}
		if n == nil {
			continue
		}
		b := bytes.Clone(n.b[:n.safe])
		if rest := n.b[n.safe:]; len(rest) > 0 {
			part := bytes.Clone(rest[:f.rng.IntN(len(rest)+1)])
			if len(part) > 0 && f.rng.IntN(3) == 0 {
				clear(part[f.rng.IntN(len(part)):]) // the length was written, the bytes were not
			}
			b = append(b, part...)
		}
		i := &inode{b: b, safe: len(b)}
		next.now[name], next.safe[name] = i, i
	}
	return next
}

func (f *faulty) prepare() error { return nil }

func (f *faulty) list() ([]string, error) {
	return slices.Sorted(maps.Keys(f.now)), nil
}

func (f *faulty) read(name string, most int64) ([]byte, error) {
	n := f.now[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	if int64(len(n.b)) > most {
		return nil, errLarge
	}
	return bytes.Clone(n.b), nil
}

func (f *faulty) create(name string) (file, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	n := &inode{}
	f.now[name] = n
	return handle{f, n}, nil
}

// overwrite changes a sector: after a power cut it is the old or the new one, or
// damaged.
func (f *faulty) overwrite(name string, at int64, b []byte) error {
	n := f.now[name]
	if f.down {
		return errCrash
	}
	if n == nil || n.safe < len(n.b) || int(at)+len(b) > len(n.b) {
		return fs.ErrNotExist
	}
	err := f.roomless()
	if err != nil {
		if f.ops != f.crash || f.rng.IntN(3) == 0 {
			return err
		}
		if b = bytes.Clone(b); f.rng.IntN(3) == 0 {
			clear(b[f.rng.IntN(len(b)):])
		}
	}
	copy(n.b[at:], b)
	return err
}

func (f *faulty) rename(from, to string) error {
	if err := f.roomless(); err != nil {
		return err
	}
	f.now[to] = f.now[from]
	delete(f.now, from)
	return nil
}

func (f *faulty) remove(name string) error {
	if err := f.roomless(); err != nil {
		return err
	}
	delete(f.now, name)
	return nil
}

func (f *faulty) sync() error {
	if err := f.roomless(); err != nil {
		return err
	}
	f.safe = maps.Clone(f.now)
	return nil
}

// used is how many bytes all files have.
func (f *faulty) used() (n int) {
	for _, i := range f.now {
		n += len(i.b)
	}
	return n
}

type handle struct {
	f *faulty
	n *inode
}

func (h handle) Write(b []byte) (int, error) {
	err := h.f.step()
	if used := h.f.used(); err == nil && h.f.room > 0 && used+len(b) > h.f.room {
		n := max(0, h.f.room-used)
		h.n.b = append(h.n.b, b[:n]...)
		return n, syscall.ENOSPC
	}
	if err != nil {
		n := h.f.rng.IntN(len(b) + 1)
		h.n.b = append(h.n.b, b[:n]...)
		return n, err
	}
	h.n.b = append(h.n.b, b...)
	return len(b), nil
}

func (h handle) Sync() error {
	if err := h.f.step(); err != nil {
		h.n.safe = min(len(h.n.b), h.n.safe+h.f.rng.IntN(1+len(h.n.b)-h.n.safe))
		return err
	}
	h.n.safe = len(h.n.b)
	return nil
}

func (h handle) Close() error { return nil }

// store is an owner of records: a number for each key, which only grows.
type store struct{ m map[byte]uint16 }

func (s *store) apply(kind byte, rec []byte) error {
	if len(rec) != 2 {
		return fmt.Errorf("record of %d bytes", len(rec))
	}
	v := uint16(rec[0])<<8 | uint16(rec[1])
	s.m[kind] = max(s.m[kind], v)
	return nil
}

func (s *store) dump(emit func(byte, []byte)) bool {
	for k, v := range s.m {
		emit(k, []byte{byte(v >> 8), byte(v)})
	}
	return true
}

var testKey = bytes.Repeat([]byte{7}, KeySize)

// life is one process: what it had, and what of that was promised.
type life struct {
	s        *store
	promised map[byte]uint16
	boot     uint32
}

// live opens the folder, works, and ends in one way or another.
func (l *life) live(t *testing.T, f *faulty, rng *rand.Rand, clock func() time.Time) {
	s := &store{m: map[byte]uint16{}}
	j, found, err := Open(Options{Key: testKey, Dump: s.dump, files: f, now: clock}, s.apply)
	if err != nil {
		if !f.down {
			t.Fatalf("open: %v", err)
		}
		return // l.promised holds on
	}
	if found.Stale != "" && l.boot != 0 {
		t.Fatalf("given up: %s", found.Stale)
	}
	if j.Boot() <= l.boot {
		t.Fatalf("start %d after %d", j.Boot(), l.boot)
	}
	l.boot = j.Boot()
	for k, v := range l.promised {
		if s.m[k] < v {
			t.Fatalf("key %d: promised %d, found %d", k, v, s.m[k])
		}
	}
	for k, v := range s.m {
		if v > l.s.m[k] {
			t.Fatalf("key %d: found %d, never had more than %d", k, v, l.s.m[k])
		}
	}
	// A new process goes on from what it found.
	l.s, l.promised = s, maps.Clone(s.m)
	for range 40 {
		switch n := rng.IntN(20); {
		case n == 1 && rng.IntN(4) == 0:
			if n := l.boot + 1 + rng.Uint32N(3); j.Reserve(n) == nil && !f.down {
				l.boot = n // those of later starts are greater
			}
		case n == 0:
			j.compact()
			if !f.down && !j.behind() {
				l.promised = maps.Clone(s.m)
			}
		case n < 4:
			j.flush()
			if !f.down && !j.behind() {
				l.promised = maps.Clone(s.m)
			}
		default:
			k := byte(rng.IntN(5))
			s.m[k]++
			j.Append(k, []byte{byte(s.m[k] >> 8), byte(s.m[k])})
		}
		if f.down {
			return
		}
	}
	if rng.IntN(2) == 0 && !f.down {
		if err := j.Close(); err == nil && !f.down {
			l.promised = maps.Clone(s.m)
		}
	}
}

// TestCrashes cuts the power at every operation of lives that follow each other.
func TestCrashes(t *testing.T) {
	for seed := range uint64(12) {
		for crash := 1; crash < 70; crash++ {
			f := newFaulty(seed)
			rng := rand.New(rand.NewPCG(seed, uint64(crash)))
			l := &life{s: &store{m: map[byte]uint16{}}}
			at := bootZero.Add(1000 * time.Minute)
			for n := range 4 {
				f.ops, f.crash = 0, 1+(crash+17*n)%70
				// The clock may be set back, and stand still.
				clock := func() time.Time { return at.Add(-time.Duration(rng.IntN(500)) * time.Minute) }
				l.live(t, f, rng, clock)
				if l.boot != 0 && rng.IntN(2) == 0 {
					at = at.Add(time.Duration(rng.IntN(3)) * time.Minute)
				}
				f = f.after()
			}
			if t.Failed() {
				t.Fatalf("seed %d, crash %d", seed, crash)
			}
		}
	}
}

// TestDiskFull: while the disk takes nothing nobody waits for ever, and once it
// does everything is on it.
func TestDiskFull(t *testing.T) {
	f := newFaulty(1)
	s := &store{m: map[byte]uint16{}}
	j, _, err := Open(Options{Key: testKey, Dump: s.dump, files: f}, s.apply)
	if err != nil {
		t.Fatal(err)
	}
	put := func(k byte) {
		s.m[k]++
		j.Append(k, []byte{byte(s.m[k] >> 8), byte(s.m[k])})
	}
	put(1)
	j.flush()
	f.full = true
	put(1)
	j.flush()
	if err := j.Commit(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("commit on a full disk: %v", err)
	}
	put(2)
	j.compact() // does not work either
	if !j.behind() {
		t.Error("nothing is missing on a full disk")
	}
	f.full = false
	put(3)
	j.compact()
	if j.behind() {
		t.Error("something is missing once there is room")
	}
	put(4)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	again := &store{m: map[byte]uint16{}}
	if _, _, err := Open(Options{Key: testKey, files: f}, again.apply); err != nil || !maps.Equal(again.m, s.m) {
		t.Errorf("%v, %v; want %v", again.m, err, s.m)
	}
}

// TestStartOnFullDisk: a start that can write nothing brings back what was kept, has a
// number of its own all the same, and writes everything once there is room.
func TestStartOnFullDisk(t *testing.T) {
	f := newFaulty(1)
	s := &store{m: map[byte]uint16{}}
	clock := func() time.Time { return bootZero }
	begin := func(s *store) *Journal {
		t.Helper()
		j, found, err := Open(Options{Key: testKey, Dump: s.dump, files: f, now: clock}, s.apply)
		if err != nil || found.Stale != "" {
			t.Fatalf("%+v, %v", found, err)
		}
		return j
	}
	first := begin(s)
	s.m[1] = 7
	first.Append(1, []byte{0, 7})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	last := first.Boot()
	f.full = true
	for range 3 {
		again := &store{m: map[byte]uint16{}}
		j := begin(again)
		if j.Boot() <= last || again.m[1] != 7 {
			t.Fatalf("start %d after %d with %v", j.Boot(), last, again.m)
		}
		if last = j.Boot() + 16; j.Reserve(last) != nil {
			t.Fatal("a full disk keeps a start from taking numbers")
		}
		j.compact()
		if err := j.Commit(t.Context()); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("commit: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
	s = &store{m: map[byte]uint16{}}
	j := begin(s)
	s.m[2] = 9
	j.Append(2, []byte{0, 9})
	f.full = false
	j.compact()
	if err := j.Close(); err != nil || j.behind() && j.snapped != j.gen {
		t.Errorf("with room: %v", err)
	}
	if again := (&store{m: map[byte]uint16{}}); begin(again) == nil || !maps.Equal(again.m, s.m) {
		t.Errorf("%v, want %v", again.m, s.m)
	}
}

// TestLittleRoom: on a disk with room for logs but not for a snapshot nothing piles up,
// and what is said to be on disk is.
func TestLittleRoom(t *testing.T) {
	for _, failing := range []bool{false, true} {
		f := newFaulty(1)
		s := &store{m: map[byte]uint16{}}
		j, _, err := Open(Options{Key: testKey, files: f, Dump: func(emit func(byte, []byte)) bool {
			for range 5000 {
				emit(0, []byte{0, 0})
			}
			return s.dump(emit)
		}}, s.apply)
		if err != nil {
			t.Fatal(err)
		}
		put := func() {
			s.m[1]++
			j.Append(1, []byte{0, byte(s.m[1])})
			j.flush()
		}
		put()
		if failing {
			f.full = true
			put()
			f.full = false
		}
		f.room = f.used() + 3*headerSize
		for range 100 {
			j.compact()
			if failed := j.failed != nil; failed != failing { // as Commit says
				t.Fatalf("failed: %v, want %v", failed, failing)
			}
			if n := len(f.now); n > 3 {
				t.Fatalf("%d files", n)
			}
		}
		f.room = 0
		j.compact()
		put()
		if j.behind() || len(f.now) != 3 {
			t.Errorf("with room: behind %v, %d files", j.behind(), len(f.now))
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		again := &store{m: map[byte]uint16{}}
		if _, _, err := Open(Options{Key: testKey, files: f}, again.apply); err != nil || again.m[1] != s.m[1] {
			t.Errorf("%v, %v; want %v", again.m, err, s.m)
		}
	}
}
