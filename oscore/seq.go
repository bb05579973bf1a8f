package oscore

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

const (
	// maxSequence is one more than the largest sequence number (RFC 8613, Section
	// 7.2.1).
	maxSequence = 1 << 40

	// defaultStep is how many numbers are reserved at once: what is lost in a
	// crash, and how many messages share one write.
	defaultStep = 256
)

// ErrExhausted says that a context has no sequence numbers left: it must not
// protect anything any more (RFC 8613, Section 7.2.1).
var ErrExhausted = errors.New("oscore: sequence numbers are exhausted")

// Reserver keeps the one number that must survive a crash.
type Reserver interface {
	// Reserve returns when it is durable that sequence numbers below upTo may be
	// used. Whoever makes the context again after a restart begins at the largest
	// upTo that was recorded; recording one that Reserve failed for is harmless.
	Reserve(ctx context.Context, upTo uint64) error
}

// Sequence hands out the Sender Sequence Numbers of a Sender Context: each once,
// also over crashes, because none leaves before it is reserved (RFC 8613, Section
// 7.5 and Appendix B.1.1). All methods may be called concurrently.
type Sequence struct {
	mu       sync.Mutex
	next     uint64
	reserved uint64 // numbers below may be used
	limit    uint64
	step     uint64
	store    Reserver
}

// SequenceConfig says where a Sequence begins and ends.
type SequenceConfig struct {
	// Start is the first number: 0 for a new context, else the largest that was
	// ever reserved.
	Start uint64
	// Limit is one more than the last number; 0: 2^40.
	Limit uint64
	// Step is how many numbers are reserved at once; 0: 256.
	Step uint64
	// Store makes reservations durable. nil: the numbers live as long as the
	// process, and so must the context.
	Store Reserver
}

// NewSequence makes a sequence. It does not call the store.
func NewSequence(c SequenceConfig) (*Sequence, error) {
	s := &Sequence{}
	return s, s.init(c)
}

func (s *Sequence) init(c SequenceConfig) error {
	if c.Limit == 0 {
		c.Limit = maxSequence
	}
	if c.Step == 0 {
		c.Step = defaultStep
	}
	if c.Limit > maxSequence {
		return fmt.Errorf("oscore: sequence numbers end at 2^40, not %d", c.Limit)
	}
	s.next, s.reserved, s.limit, s.step, s.store = c.Start, c.Start, c.Limit, c.Step, c.Store
	if s.store == nil {
		s.reserved = s.limit
	}
	return nil
}

// Next returns a number that was never returned before and never will be. ctx
// is for the store, which is asked once in a step.
func (s *Sequence) Next(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.prepareLocked(ctx); err != nil {
		return 0, err
	}
	n := s.next
	s.next++
	return n, nil
}

// Prepare has a number ready, so that Next does without the store once: for what may
// have to be said when the store has forgotten the context.
func (s *Sequence) Prepare(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prepareLocked(ctx)
}

func (s *Sequence) prepareLocked(ctx context.Context) error {
	if s.next >= s.limit {
		return ErrExhausted
	}
	if s.next >= s.reserved {
		upTo := min(s.next+s.step, s.limit)
		if err := s.store.Reserve(ctx, upTo); err != nil {
			return fmt.Errorf("oscore: reserve sequence numbers: %w", err)
		}
		s.reserved = upTo
	}
	return nil
}

// Used is the number that comes next, if it is not exhausted: for status pages,
// not for going on after a restart.
func (s *Sequence) Used() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}
