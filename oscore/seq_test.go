package oscore

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// memory is a Reserver that remembers.
type memory struct {
	mu    sync.Mutex
	upTo  uint64
	calls int
	err   error
}

func (m *memory) Reserve(_ context.Context, upTo uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.err != nil {
		return m.err
	}
	m.upTo = max(m.upTo, upTo)
	return nil
}

// What leaves was reserved, and who begins at the reservation repeats nothing.
func TestSequence(t *testing.T) {
	ctx := t.Context()
	store := &memory{}
	used := map[uint64]bool{}
	for restart := range 20 {
		s, err := NewSequence(SequenceConfig{Start: store.upTo, Step: 10, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		for range restart*7%23 + 1 {
			n, err := s.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if n >= store.upTo {
				t.Fatalf("%d is used, reserved are numbers below %d", n, store.upTo)
			}
			if used[n] {
				t.Fatalf("%d is used twice", n)
			}
			used[n] = true
		}
	}
}

func TestSequenceStoreFails(t *testing.T) {
	ctx := t.Context()
	store := &memory{err: errors.New("disk full")}
	s, err := NewSequence(SequenceConfig{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Next(ctx); !errors.Is(err, store.err) {
			t.Errorf("got %v", err)
		}
	}
	store.err = nil
	if n, err := s.Next(ctx); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if store.calls != 4 {
		t.Errorf("the store was asked %d times", store.calls)
	}
}

// RFC 8613, Section 7.2.1: beyond the maximum nothing is protected any more.
func TestSequenceExhausted(t *testing.T) {
	ctx := t.Context()
	store := &memory{}
	s, err := NewSequence(SequenceConfig{Start: maxSequence - 2, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{maxSequence - 2, maxSequence - 1} {
		if n, err := s.Next(ctx); n != want || err != nil {
			t.Errorf("got %d, %v, want %d", n, err, want)
		}
	}
	for range 2 {
		if n, err := s.Next(ctx); !errors.Is(err, ErrExhausted) {
			t.Errorf("got %d, %v", n, err)
		}
	}
	if store.upTo != maxSequence {
		t.Errorf("reserved to %d", store.upTo)
	}
	s, err = NewSequence(SequenceConfig{Start: store.upTo, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Next(ctx); !errors.Is(err, ErrExhausted) {
		t.Errorf("after a restart: %d, %v", n, err)
	}
	if _, err := NewSequence(SequenceConfig{Limit: maxSequence + 1}); err == nil {
		t.Error("a limit above 2^40 is taken")
	}
	if s, err = NewSequence(SequenceConfig{Limit: 1}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Next(ctx); n != 0 || err != nil || s.Used() != 1 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := s.Next(ctx); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestSequenceConcurrent(t *testing.T) {
	store := &memory{}
	s, err := NewSequence(SequenceConfig{Step: 3, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 8, 200
	got := make([][]uint64, workers)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			for range each {
				n, err := s.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = append(got[i], n)
			}
		})
	}
	wg.Wait()
	used := map[uint64]bool{}
	for _, ns := range got {
		for _, n := range ns {
			if used[n] {
				t.Fatalf("%d twice", n)
			}
			used[n] = true
		}
	}
	if len(used) != workers*each {
		t.Errorf("%d numbers", len(used))
	}
}
