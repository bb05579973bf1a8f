package delegate

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/store"
)

// TestWindows: what was received stays received over restarts, also what came at once;
// of keying materials that are long over, only that there were requests is remembered.
func TestWindows(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	load := func() *contexts {
		t.Helper()
		c, err := loadContexts(t.Context(), sequences{r.keep, "a", "g"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load()
	if w, ok := c.Window("m0", []byte{1}); ok {
		t.Fatalf("of nobody: %+v", w)
	}
	if err := c.Keep("m0", []byte{1}, oscore.WindowState{Next: 1}); err == nil {
		t.Error("a window that is not valid is kept")
	}
	// Each of these states has another number of 0 to 15 alone.
	var all sync.WaitGroup
	for n := range uint64(16) {
		all.Go(func() {
			if err := c.Keep("m0", []byte{1}, oscore.WindowState{Valid: true, Next: n + 1, Seen: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	want := oscore.WindowState{Valid: true, Next: 16, Seen: 0xffff}
	for range 2 {
		if w, ok := c.Window("m0", []byte{1}); !ok || w != want {
			t.Errorf("%+v, want %+v", w, want)
		}
		if w, ok := c.Window("m0", []byte{2}); ok {
			t.Errorf("of another member: %+v", w)
		}
		c = load()
	}
	if err := c.Keep("m0", []byte{}, oscore.WindowState{Valid: true, Next: 1, Seen: 1 << 63}); err != nil {
		t.Error(err)
	}
	if w, ok := load().Window("m0", nil); !ok || w.Seen != 1<<63 {
		t.Errorf("the empty Sender ID: %+v", w)
	}

	for n := range keptMaterials {
		if err := c.Keep(fmt.Sprint("m", n+1), []byte{1}, want); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if w, ok := c.Window("m0", []byte{9}); !ok || w.Valid {
			t.Errorf("of a keying material that is long over: %+v, %v", w, ok)
		}
		if w, ok := c.Window("m1", []byte{1}); !ok || w != want {
			t.Errorf("of one that is not: %+v", w)
		}
		if len(c.seen) != keptMaterials || len(c.order) != keptMaterials {
			t.Errorf("windows of %v are kept", c.order)
		}
		c = load()
	}

	// What the store does not take is not received.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := loadContexts(ended, sequences{r.keep, "a", "g"}); err == nil {
		t.Error("read without the store")
	}
}

// After the clock was set back what is new is not taken for the oldest, neither Sender
// Sequence Numbers, which would begin anew after a restart, nor Replay Windows.
func TestKeptWhenClockSetBack(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	s := sequences{r.keep, "a", "g"}
	for n := range keptSequences - 1 {
		if _, _, err := s.Open(fmt.Sprint("old", n)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := loadContexts(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	window := oscore.WindowState{Valid: true, Next: 1, Seen: 1}
	if err := c.Keep("m-old", []byte{1}, window); err != nil {
		t.Fatal(err)
	}
	if err := r.keep.store.Update(t.Context(), func(tx *store.Tx) error {
		for _, table := range []string{"delegate_sequence", "delegate_window"} {
			if _, err := tx.Exec(`UPDATE ` + table + ` SET at = at + ` + fmt.Sprint(int64(365*24*time.Hour))); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"in use", "next"} { // as between two rekeys
		_, reserve, err := s.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := reserve.Reserve(t.Context(), 100); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"in use", "next"} {
		if upTo, _, err := s.Open(name); err != nil || upTo != 100 {
			t.Errorf("%s goes on from %d after a restart, %v", name, upTo, err)
		}
	}
	if err := c.Keep("m-new", []byte{1}, window); err != nil {
		t.Fatal(err)
	}
	if c, err = loadContexts(t.Context(), s); err != nil || c.order[0] != "m-old" {
		t.Errorf("the oldest is %q, %v", c.order, err)
	}
}

// TestWindowsBefore: the requests of a keying material that was in use before windows
// were kept have to be proven fresh.
func TestWindowsBefore(t *testing.T) {
	r := newRoom(t, legacyOf("a"))
	s := sequences{r.keep, "a", "g"}
	if _, _, err := s.Open("material"); err != nil { // as it was done then
		t.Fatal(err)
	}
	c, err := loadContexts(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if w, ok := c.Window("material", []byte{1}); !ok || w.Valid {
		t.Errorf("%+v, %v", w, ok)
	}
	fresh := oscore.WindowState{Valid: true, Next: 7, Seen: ^uint64(0)}
	if err := c.Keep("material", []byte{1}, fresh); err != nil {
		t.Fatal(err)
	}
	if c, err = loadContexts(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if w, ok := c.Window("material", []byte{1}); !ok || w != fresh {
		t.Errorf("once it was: %+v", w)
	}
	if w, ok := c.Window("material", []byte{2}); !ok || w.Valid {
		t.Errorf("another member: %+v", w)
	}
}
