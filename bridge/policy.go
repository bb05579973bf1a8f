package bridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// Policy says how long a group's members are run after. Zero values mean the
// defaults, but for EvictAfter.
type Policy struct {
	// RetryFor is how long a member that does not answer is tried again by
	// itself, in growing distances; after that, and with a negative value, the
	// newest rekey waits for a sign of life. 0: 24 h.
	RetryFor time.Duration
	// UnreachableAfter is how long a member may be behind and silent before it
	// counts as unreachable; 0: 7 days.
	UnreachableAfter time.Duration
	// EvictAfter is how long a member may be behind and silent before it is
	// evicted; 0: never.
	EvictAfter time.Duration
}

func (p Policy) withDefaults() Policy {
	if p.RetryFor == 0 {
		p.RetryFor = defaultRetryFor
	}
	if p.UnreachableAfter == 0 {
		p.UnreachableAfter = defaultUnreachableAfter
	}
	return p
}

// validate reports what cannot be meant.
func (p Policy) validate() error {
	switch {
	case p.UnreachableAfter < 0 || p.EvictAfter < 0:
		return errors.New("negative times make no sense")
	case p.EvictAfter != 0 && p.EvictAfter < p.withDefaults().UnreachableAfter:
		return fmt.Errorf("evict_after %v comes before unreachable_after %v", p.EvictAfter, p.withDefaults().UnreachableAfter)
	}
	return nil
}

// policer is the optional part of a [Source] that knows the policies of groups that
// the configuration does not name.
type policer interface {
	DeliveryPolicy(group string) (groupcomm.DeliveryPolicy, bool)
}

// policy is that of a group: as configured, as it was created with, or the default.
func (b *Bridge) policy(group string) Policy {
	if p, ok := b.cfg.Policies[group]; ok {
		return p.withDefaults()
	}
	if s, ok := b.source.(policer); ok {
		if p, ok := s.DeliveryPolicy(group); ok && p != (groupcomm.DeliveryPolicy{}) {
			return Policy(p).withDefaults()
		}
	}
	return b.cfg.Policy
}
