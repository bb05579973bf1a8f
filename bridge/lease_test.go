package bridge

import "testing"

// What is known of a lease, whatever order its events come in.
func TestLeases(t *testing.T) {
	m := member{testGroup, "n"}
	for name, tc := range map[string]struct {
		do   func(*leases) (lost bool)
		lost bool
		has  bool
	}{
		"taken":   {do: func(l *leases) bool { l.begin(m); return l.end(m, 1) }, has: true},
		"unknown": {do: func(l *leases) bool { return l.lost(m, 1) }, lost: true},
		"taken by another": {do: func(l *leases) bool {
			l.begin(m)
			l.end(m, 1)
			return l.lost(m, 2)
		}, lost: true},
		"news of before": {do: func(l *leases) bool {
			l.begin(m)
			l.end(m, 3)
			return l.lost(m, 2)
		}, has: true},
		"news while it is taken, of before": {do: func(l *leases) bool {
			l.begin(m)
			return l.lost(m, 1) || l.end(m, 2)
		}, has: true},
		"news while it is taken, of after": {do: func(l *leases) bool {
			l.begin(m)
			if l.lost(m, 2) {
				t.Error("said too early")
			}
			return l.end(m, 1)
		}, lost: true},
		"two at once, and news of between": {do: func(l *leases) bool {
			l.begin(m)
			l.begin(m)
			l.lost(m, 2)
			return l.end(m, 1) || l.end(m, 3)
		}, has: true},
		"not written": {do: func(l *leases) bool { l.begin(m); return l.end(m, 0) }},
		"not written, and there was one": {do: func(l *leases) bool {
			l.begin(m)
			l.end(m, 1)
			l.begin(m)
			return l.end(m, 0)
		}, has: true},
		"the membership ended": {do: func(l *leases) bool {
			l.begin(m)
			l.forget(m)
			return l.end(m, 1)
		}},
	} {
		l := &leases{}
		if lost := tc.do(l); lost != tc.lost || l.has(m) != tc.has {
			t.Errorf("%s: lost %t, has it %t", name, lost, l.has(m))
		}
	}
}

// What lets a member go takes nothing away from a registration that has begun.
func TestUnlessOurs(t *testing.T) {
	m := member{testGroup, "n"}
	runs := func(l *leases) (ran bool) {
		l.unlessOurs(m, func() { ran = true })
		return ran
	}
	l := &leases{}
	if !runs(l) {
		t.Error("not let go, and nobody wants it")
	}
	l.begin(m)
	if runs(l) {
		t.Error("let go while its registration is under way")
	}
	l.end(m, 2)
	if l.lost(m, 1); runs(l) {
		t.Error("let go for a lease that is older than ours")
	}
	if l.lost(m, 3); !runs(l) {
		t.Error("not let go, and another gateway has it")
	}
}
