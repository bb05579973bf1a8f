package bridge

import (
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/store"
)

// TestLedgerIsDurable: a confirmation is shown when it is on disk, not before:
// a crash in between would take back what the operator was shown.
func TestLedgerIsDurable(t *testing.T) {
	m := newManager(t)
	s := open(t)
	b := New(Config{}, Deps{Store: s, Source: m, Hub: nobody{}})
	if err := b.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.join(t, b, "n1", nil)
	num := m.rekey(t, b)
	b.confirms.add(member{testGroup, "n1"}, num, channelPoll, nil)

	// The store's writer is busy, so the confirmation waits for it.
	busy, release, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var begun sync.Once // it may run again
	go func() {
		over <- s.Update(t.Context(), func(tx *store.Tx) error {
			begun.Do(func() { close(busy) })
			<-release
			return nil
		})
	}()
	<-busy
	written := make(chan bool, 1)
	go func() { written <- b.confirms.flush(t.Context()) }()
	eventually(t, "the confirmation is under way", func() bool {
		b.confirms.mu.Lock()
		defer b.confirms.mu.Unlock()
		return len(b.confirms.pending) == 0
	})
	if e := entry(t, b, "n1"); e.State != StatePending || e.Confirmed == num {
		t.Errorf("before it is written: %+v", e)
	}
	close(release)
	if err := <-over; err != nil {
		t.Error(err)
	}
	if !<-written {
		t.Error("not written")
	}
	if e := entry(t, b, "n1"); e.State != StateCurrent || e.Confirmed != num {
		t.Errorf("afterwards: %+v", e)
	}
}
