package journal

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// open opens a folder of the system and returns its records.
func open(t *testing.T, dir string, o Options) (*Journal, Found, []string) {
	t.Helper()
	var recs []string
	o.Dir = dir
	if o.Key == nil {
		o.Key = testKey
	}
	j, found, err := Open(o, func(kind byte, rec []byte) error {
		recs = append(recs, string(kind)+string(rec))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, found, recs
}

// TestCommit: what was committed is there, without Close.
func TestCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "j")
	j, _, _ := open(t, dir, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var over sync.WaitGroup
	over.Go(func() { _ = j.Run(ctx) })
	var many sync.WaitGroup
	for range 20 {
		many.Go(func() {
			j.Append('a', []byte("secret"))
			if err := j.Commit(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	many.Wait()
	_, found, recs := open(t, dir, Options{}) // as a crash leaves it
	if len(recs) != 20 || recs[0] != "asecret" || found.Records != 20 || found.Stale != "" {
		t.Errorf("%q, %+v", recs, found)
	}
	cancel()
	over.Wait()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if err := j.Commit(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after the end: %v", err)
	}
	// Nothing is readable without the key, and nobody else may look.
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s holds a record in clear", name)
		}
		if fi, _ := os.Stat(name); fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", name, fi.Mode())
		}
	}
	if fi, _ := os.Stat(dir); fi.Mode().Perm() != 0o700 {
		t.Errorf("folder: mode %v", fi.Mode())
	}
	if err := Erase(dir); err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

// TestEnding: a snapshot during which the process ends is given up, and what was
// written before is there after the next start.
func TestEnding(t *testing.T) {
	dir := t.TempDir()
	first, _, _ := open(t, dir, Options{})
	first.Append('a', []byte{1})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	j, _, _ := open(t, dir, Options{Dump: func(func(byte, []byte)) bool { close(asked); return false }})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- j.Run(ctx) }()
	<-asked
	j.Append('b', []byte{2})
	cancel()
	if err := errors.Join(<-over, j.Close()); err != nil {
		t.Fatal(err)
	}
	last, _, got := open(t, dir, Options{})
	defer last.Close()
	if strings.Join(got, " ") != "a\x01 b\x02" {
		t.Errorf("%q", got)
	}
}

// TestSnapshot: a log that has grown is replaced while records are appended.
func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	state := map[byte]byte{}
	j, _, _ := open(t, dir, Options{Dump: func(emit func(byte, []byte)) bool {
		mu.Lock()
		defer mu.Unlock()
		for k, v := range state {
			emit(k, []byte{v})
		}
		return true
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var over sync.WaitGroup
	over.Go(func() { _ = j.Run(ctx) })
	for i := range 3000 {
		mu.Lock()
		k := byte(i % 7)
		state[k]++
		j.Append(k, []byte{state[k]})
		mu.Unlock()
		if i%500 == 0 {
			j.compact()
		}
	}
	cancel()
	over.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[byte]byte{}
	for range 2 {
		k, _, recs := open(t, dir, Options{})
		for _, r := range recs {
			got[r[0]] = r[1]
		}
		_ = k.Close()
	}
	for k, v := range state {
		if got[k] != v {
			t.Errorf("key %d: %d, want %d", k, got[k], v)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) > 8 {
		t.Errorf("files that nobody needs: %v", names)
	}
}

// TestGivenUp: when nothing is restored, and what is refused.
func TestGivenUp(t *testing.T) {
	at := func(minutes int) func() time.Time {
		return func() time.Time { return bootZero.Add(time.Duration(minutes) * time.Minute) }
	}
	fill := func(t *testing.T, dir string) {
		j, _, _ := open(t, dir, Options{now: at(1000)})
		j.Append('a', []byte("x"))
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	copyOf := func(t *testing.T, dir string) string {
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	for _, c := range []struct {
		name  string
		now   int
		edit  func(t *testing.T, dir string)
		boot  uint32
		stale string
	}{
		{name: "a minute later", now: 1001, boot: 1001},
		{name: "in the same minute", now: 1000, boot: 1001},
		{name: "clock set back", now: 3, boot: 1001},
		{name: "clock before the beginning", now: -90000, boot: 1001},
		{name: "a year", now: 1000 + bootYear, boot: 1000 + bootYear},
		{name: "more than a year", now: 1001 + bootYear, boot: 1001 + bootYear, stale: "clock"},
		{name: "decades", now: maxBoot - 5, boot: 1001, stale: "clock"},
		{name: "no number", now: 1001, boot: 1001, stale: "missing", edit: func(t *testing.T, dir string) {
			_ = os.Remove(filepath.Join(dir, bootName))
		}},
		{name: "damaged number", now: 1001, boot: 1001, stale: "unreadable", edit: func(t *testing.T, dir string) {
			_ = os.WriteFile(filepath.Join(dir, bootName), []byte("what"), 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir)
			if c.edit != nil {
				c.edit(t, dir)
			}
			j, found, recs := open(t, dir, Options{now: at(c.now)})
			defer j.Close()
			if j.Boot() != c.boot {
				t.Errorf("start %d, want %d", j.Boot(), c.boot)
			}
			if (found.Stale == "") != (c.stale == "") || !strings.Contains(found.Stale, c.stale) || (len(recs) == 1) != (c.stale == "") {
				t.Errorf("%q, %d records", found.Stale, len(recs))
			}
			if again, _, recs := open(t, dir, Options{now: at(c.now)}); again.Boot() != c.boot+1 || (len(recs) == 1) != (c.stale == "") {
				t.Errorf("then start %d, %d records", again.Boot(), len(recs))
			}
		})
	}
	t.Run("older files put back", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		old := copyOf(t, dir)
		for range 2 {
			fill(t, dir)
		}
		boot, err := os.ReadFile(filepath.Join(dir, bootName))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(old, bootName), boot, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, recs := open(t, old, Options{now: at(1000)}); len(recs) != 0 || !strings.Contains(found.Stale, "older") {
			t.Errorf("%+v, %q", found, recs)
		}
	})
	t.Run("all of an older folder put back", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		old := copyOf(t, dir)
		j, _, _ := open(t, dir, Options{now: at(1500)})
		_ = j.Close()
		// The clock moves it on, as long as it goes: see docs/endpoint.md.
		if again, _, _ := open(t, old, Options{now: at(1501)}); again.Boot() <= j.Boot() {
			t.Errorf("start %d after %d", again.Boot(), j.Boot())
		}
	})
	t.Run("another key", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		_, _, err := Open(Options{Dir: dir, Key: bytes.Repeat([]byte{8}, KeySize), now: at(1001)}, func(byte, []byte) error { return nil })
		if !errors.Is(err, ErrUnreadable) {
			t.Error(err)
		}
	})
	t.Run("used up", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		_ = os.WriteFile(filepath.Join(dir, bootName), bootMark{maxBoot, 1}.encode(), 0o600)
		if _, _, err := Open(Options{Dir: dir, Key: testKey}, func(byte, []byte) error { return nil }); !errors.Is(err, ErrStarts) {
			t.Error(err)
		}
	})
	t.Run("of another program", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		refuse := errors.New("unknown kind")
		if _, _, err := Open(Options{Dir: dir, Key: testKey, now: at(1001)}, func(byte, []byte) error { return refuse }); !errors.Is(err, ErrUnreadable) || !errors.Is(err, refuse) {
			t.Error(err)
		}
	})
	t.Run("changed", func(t *testing.T) {
		dir := t.TempDir()
		fill(t, dir)
		name := filepath.Join(dir, logName(1))
		b, _ := os.ReadFile(name)
		for i := headerSize; i < len(b); i++ {
			c := bytes.Clone(b)
			c[i] ^= 1
			var recs int
			n, whole, _, err := decodeFile(c, testKey, kindLog, 1, func(byte, []byte) error { recs++; return nil })
			if err == nil || n != 0 || recs != 0 || whole != int64(headerSize) {
				t.Fatalf("byte %d: %d records, %v", i, recs, err)
			}
		}
	})
}

// TestReserve: numbers that a start takes for itself are those of no later one, also
// of one after a crash; a closed journal, and one whose numbers end, takes none.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	o := Options{now: func() time.Time { return bootZero }}
	j, _, _ := open(t, dir, o)
	for _, n := range []uint32{j.Boot() + 5, j.Boot() + 3} { // the second is taken already
		if err := j.Reserve(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Reserve(maxBoot + 1); !errors.Is(err, ErrStarts) {
		t.Errorf("more than there are: %v", err)
	}
	next, found, _ := open(t, dir, o) // nothing was closed
	if next.Boot() != j.Boot()+6 || found.Stale != "" {
		t.Errorf("start %d after %d, %q", next.Boot(), j.Boot(), found.Stale)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next.Reserve(next.Boot() + 1); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestBootEncoding: every start has its number on disk in one piece.
func TestBootEncoding(t *testing.T) {
	b := bootMark{77, 1 << 40}.encode()
	if m, err := decodeBoot(b); err != nil || m != (bootMark{77, 1 << 40}) {
		t.Errorf("%+v, %v", m, err)
	}
	for n := range b {
		if _, err := decodeBoot(b[:n]); err == nil {
			t.Errorf("a prefix of %d bytes is read", n)
		}
		c := bytes.Clone(b)
		c[n] ^= 0x10
		if _, err := decodeBoot(c); err == nil {
			t.Errorf("with byte %d changed it is read", n)
		}
	}
}

// TestBoots: of the two numbers in the file the greater counts, the other is
// overwritten, and next to a damaged one the numbers go on behind what it may have had.
func TestBoots(t *testing.T) {
	file := func(a, b bootMark) []byte {
		f := make([]byte, bootFile)
		copy(f, a.encode())
		copy(f[bootPlace:], b.encode())
		return f
	}
	broken := func(b []byte, at ...int) []byte {
		for _, n := range at {
			b[n] ^= 1
		}
		return b
	}
	for _, c := range []struct {
		name  string
		b     []byte
		m     bootMark
		place int64
		bad   bool
	}{
		{name: "of the time before", b: bootMark{5, 2}.encode(), m: bootMark{5, 2}, place: -1},
		{name: "the first", b: file(bootMark{6, 3}, bootMark{5, 2}), m: bootMark{6, 3}, place: int64(bootPlace)},
		{name: "the second", b: file(bootMark{5, 2}, bootMark{6, 3}), m: bootMark{6, 3}},
		{name: "a new file", b: file(bootMark{5, 2}, bootMark{5, 2}), m: bootMark{5, 2}},
		{name: "the first is damaged", b: broken(file(bootMark{6, 3}, bootMark{5, 2}), 20), m: bootMark{5 + bootDamaged, 2}},
		{name: "the second is damaged", b: broken(file(bootMark{5, 2}, bootMark{6, 3}), bootPlace), m: bootMark{5 + bootDamaged, 2}, place: int64(bootPlace)},
		{name: "both are damaged", b: broken(file(bootMark{5, 2}, bootMark{6, 3}), 3, bootPlace), bad: true},
		{name: "short", b: file(bootMark{5, 2}, bootMark{6, 3})[:bootFile-1], bad: true},
		{name: "long", b: append(file(bootMark{5, 2}, bootMark{6, 3}), 0), bad: true},
		{name: "empty", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, place, err := decodeBoots(c.b)
			if (err != nil) != c.bad || err == nil && (m != c.m || place != c.place) {
				t.Errorf("%+v, %d, %v", m, place, err)
			}
		})
	}
}

// FuzzFile: whatever is in a file, it is read without harm, and what is good of
// it reads the same again.
func FuzzFile(f *testing.F) {
	dir := f.TempDir()
	j, _, err := Open(Options{Dir: dir, Key: testKey, Dump: func(emit func(byte, []byte)) bool { emit('k', []byte("v")); return true }}, func(byte, []byte) error { return nil })
	if err != nil {
		f.Fatal(err)
	}
	j.Append('a', []byte("x"))
	j.flush()
	j.Append('b', nil)
	if err := j.Close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, logName(1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add(b[:headerSize], true)
	f.Add([]byte("\x02ax\x01b"), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if !sealed {
			var again []byte
			if _, err := splitRecords(b, func(kind byte, rec []byte) error {
				again = appendRecord(again, kind, rec)
				return nil
			}); err == nil && !bytes.Equal(again, b) {
				t.Errorf("%x is written as %x", b, again)
			}
			return
		}
		n, whole, _, _ := decodeFile(b, testKey, kindLog, 1, func(byte, []byte) error { return nil })
		if whole > int64(len(b)) {
			t.Fatalf("%d of %d bytes", whole, len(b))
		}
		if m, _, _, err := decodeFile(b[:whole], testKey, kindLog, 1, func(byte, []byte) error { return nil }); whole > 0 && (err != nil || m != n) {
			t.Errorf("%d records, then %d: %v", n, m, err)
		}
		_, _, _ = decodeBoots(b)
	})
}
