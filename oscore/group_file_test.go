package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/durable"
)

// openState opens a state file for the time of a test.
func openState(t testing.TB, path string) *GroupFile {
	t.Helper()
	f, err := OpenGroupFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// content is what a file holds, to be compared.
func (g *GroupFile) content() string {
	return fmt.Sprintln(g.reserved, g.senders, g.windows, g.material, g.closed, string(g.note))
}

func TestGroupFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := openState(t, path)
	if n, _, err := f.Open("one"); err != nil || n != 0 {
		t.Fatalf("a new file: %d, %v", n, err)
	}
	if _, err := OpenGroupFile(path); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	for _, n := range []uint64{256, 512, 300} {
		_, r, _ := f.Open("one")
		if err := r.Reserve(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	// Windows may come in another order than their messages.
	for _, w := range []WindowState{{true, 6, 0b100001}, {true, 3, 0b101}, {true, 6, 0b100011}} {
		if err := f.Keep("m", []byte("a"), w); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.SetNote([]byte("note")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		before := f.content()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = openState(t, path)
		if got := f.content(); got != before {
			t.Errorf("opened again: %s, want %s", got, before)
		}
	}
	if n, _, _ := f.Open("one"); n != 512 {
		t.Errorf("%d is reserved, want 512", n)
	}
	if w, ok := f.Window("m", []byte("a")); !ok || w != (WindowState{true, 6, 0b101011}) {
		t.Errorf("window %+v, %v", w, ok)
	}
	if _, ok := f.Window("m", []byte("b")); ok {
		t.Error("a window of a member that sent nothing")
	}
	if string(f.Note()) != "note" {
		t.Errorf("note %q", f.Note())
	}
	_, r, _ := f.Open("one")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.Keep("m", nil, WindowState{Valid: true}) == nil || r.Reserve(t.Context(), 1000) == nil || f.SetNote(nil) == nil {
		t.Error("a closed file keeps something")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenGroupFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
}

// Windows of keying material that is long over are forgotten, but not that there were
// some.
func TestGroupFileForgets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := openState(t, path)
	for i := range 2 * maxMaterials {
		if err := f.Keep(fmt.Sprint(i), []byte("a"), WindowState{Valid: true, Next: 1, Seen: 1}); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		for i := range 2 * maxMaterials {
			if w, ok := f.Window(fmt.Sprint(i), []byte("a")); !ok || w.Valid != (i >= maxMaterials) {
				t.Errorf("material %d: %+v, %v", i, w, ok)
			}
			if _, ok := f.Window(fmt.Sprint(i), []byte("b")); ok != (i < maxMaterials) {
				t.Errorf("material %d: nothing may have been accepted of somebody: %v", i, !ok)
			}
		}
	}
	check()
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = openState(t, path)
		check()
	}
	// What was forgotten and proved to be fresh is known again.
	if err := f.Keep("0", []byte("a"), WindowState{Valid: true, Next: 9, Seen: ^uint64(0)}); err != nil {
		t.Fatal(err)
	}
	if w, ok := f.Window("0", []byte("a")); !ok || w.Next != 9 {
		t.Errorf("%+v, %v", w, ok)
	}
}

// A file that grows is written anew, with what it holds.
func TestGroupFileGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := openState(t, path)
	note := make([]byte, growBy/8)
	largest := int64(0)
	for i := range 40 {
		note[0] = byte(i)
		if err := f.SetNote(note); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	if largest > 2*growBy {
		t.Errorf("%d bytes", largest)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f = openState(t, path); !bytes.Equal(f.Note(), note) {
		t.Error("the note is another")
	}
}

// What is appended when the file is written anew is not lost with the old one.
func TestGroupFileGrowsWith(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := openState(t, path)
	_, r, _ := f.Open("s")
	for i := range uint64(20) {
		f.limit = 0 // every append has it written anew
		if err := r.Reserve(t.Context(), 10*i+1); err != nil {
			t.Fatal(err)
		}
		f.limit = 0
		if err := f.Keep("m", []byte("a"), WindowState{Valid: true, Next: i + 1, Seen: 1}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		g := &GroupFile{reserved: map[string]uint64{}, windows: map[string]map[string]WindowState{}}
		if err := g.load(b); err != nil || g.content() != f.content() {
			t.Fatalf("%v: the file has %s, want %s", err, g.content(), f.content())
		}
	}
}

// At every length that a crash may leave the file has what was kept before its last
// record, or that as well; a byte that is wrong is found everywhere but in the last.
func TestGroupFileCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	f := openState(t, path)
	states, ends := []string{f.content()}, []int64{f.size}
	_, r, _ := f.Open("s")
	for _, do := range []func() error{
		func() error { return r.Reserve(t.Context(), 256) },
		func() error { return f.Keep("m", []byte("a"), WindowState{Valid: true, Next: 5, Seen: 0b11001}) },
		func() error { return f.SetNote([]byte("a note")) },
		func() error { return f.Keep("m", []byte("b"), WindowState{Valid: true, Next: 1, Seen: 1}) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		states, ends = append(states, f.content()), append(ends, f.size)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	load := func(b []byte) (string, error) {
		g := &GroupFile{reserved: map[string]uint64{}, windows: map[string]map[string]WindowState{}}
		err := g.load(b)
		return g.content(), err
	}
	at := 0
	for n := int(ends[0]); n <= len(whole); n++ {
		if at+1 < len(ends) && int64(n) == ends[at+1] {
			at++
		}
		for _, tail := range []int{0, 1, 100} {
			got, err := load(append(bytes.Clone(whole[:n]), make([]byte, tail)...))
			if err == nil && got != states[at] {
				t.Fatalf("%d bytes and %d zeros: %s, want %s", n, tail, got, states[at])
			}
			if err != nil && (tail == 0 || int64(n) == ends[at]) {
				t.Fatalf("%d bytes and %d zeros: %v", n, tail, err)
			}
		}
	}
	last := ends[len(ends)-2]
	for i := range whole[:last] {
		spoiled := bytes.Clone(whole)
		spoiled[i] ^= 0x40
		if got, err := load(spoiled); err == nil {
			t.Fatalf("byte %d is wrong: %s", i, got)
		}
	}
}

// A disk that is full costs what could not be written and nothing else.
func TestGroupFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := openState(t, path)
	if err := f.SetNote([]byte("before")); err != nil {
		t.Fatal(err)
	}
	good := f.f
	broken, err := os.Open(path) // for reading: nothing can be written
	if err != nil {
		t.Fatal(err)
	}
	f.f = broken
	_, r, _ := f.Open("s")
	if err := r.Reserve(t.Context(), 256); err == nil {
		t.Error("reserved without a write")
	}
	// Taking back a half of a record was not possible either, so nothing goes on.
	f.f = good
	if err := f.SetNote([]byte("after")); err == nil {
		t.Error("goes on after a file that cannot be repaired")
	}
	_ = broken.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openState(t, path)
	if n, _, _ := f.Open("s"); n != 0 || string(f.Note()) != "before" {
		t.Errorf("%d, %q", n, f.Note())
	}
}

// FuzzGroupFile: no content of a file is fatal, and what is read is written so that it
// is read again.
func FuzzGroupFile(f *testing.F) {
	b := []byte(groupFileHead)
	for _, body := range [][]byte{
		appendReserve(nil, "s", 256), appendWindow(nil, "m", []byte("a"), WindowState{Valid: true, Next: 5, Seen: 3}),
		append([]byte{recordNote}, "note"...), {recordClosed, 1, 'm'},
	} {
		f.Add(frame(nil, body))
		b = frame(b, body)
	}
	f.Add(b[len(groupFileHead):])
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &GroupFile{reserved: map[string]uint64{}, windows: map[string]map[string]WindowState{}}
		if g.load(append([]byte(groupFileHead), b...)) != nil {
			return
		}
		g.path = filepath.Join(t.TempDir(), "state")
		if err := g.rewriteLocked(); err != nil {
			t.Fatal(err)
		}
		_ = g.f.Close()
		whole, err := os.ReadFile(g.path)
		if err != nil {
			t.Fatal(err)
		}
		again := &GroupFile{reserved: map[string]uint64{}, windows: map[string]map[string]WindowState{}}
		if err := again.load(whole); err != nil || again.content() != g.content() {
			t.Errorf("%v: %s, want %s", err, again.content(), g.content())
		}
	})
}
