package bridge

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// policed is a Group Manager that knows the policy of one group.
type policed struct {
	*manager
	policies map[string]groupcomm.DeliveryPolicy
}

func (p policed) DeliveryPolicy(group string) (groupcomm.DeliveryPolicy, bool) {
	d, ok := p.policies[group]
	return d, ok
}

// The policy of a group is that of the configuration, else what it was created with,
// else the default; what either leaves open is the default's.
func TestPolicyOfGroup(t *testing.T) {
	source := policed{newManager(t), map[string]groupcomm.DeliveryPolicy{
		"created": {RetryFor: -1, EvictAfter: 400 * time.Hour}, "declared": {RetryFor: time.Hour}, "older": {},
	}}
	b := New(Config{Policies: map[string]Policy{"declared": {UnreachableAfter: time.Hour}}}, Deps{Store: open(t), Source: source, Hub: nobody{}})
	for group, want := range map[string]Policy{
		"created":  {RetryFor: -1, UnreachableAfter: defaultUnreachableAfter, EvictAfter: 400 * time.Hour},
		"declared": {RetryFor: defaultRetryFor, UnreachableAfter: time.Hour},
		"older":    {RetryFor: defaultRetryFor, UnreachableAfter: defaultUnreachableAfter},
		"unknown":  {RetryFor: defaultRetryFor, UnreachableAfter: defaultUnreachableAfter},
	} {
		if got := b.policy(group); got != want {
			t.Errorf("%s: %+v, want %+v", group, got, want)
		}
	}
}
