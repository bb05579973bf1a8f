// Package clock makes times as a process sees them after somebody set the clock of its
// machine.
package clock

import (
	"testing"
	"time"
	"unsafe"
)

// Set is the moment t by a clock that was set forward by d, in whole seconds, since the
// process began: another time of day at the same place of the monotonic clock. No function
// of package time makes that, so it is written where the seconds are.
func Set(t testing.TB, at time.Time, d time.Duration) time.Time {
	t.Helper()
	const nanoseconds = 30 // bits below the seconds of a time with a monotonic clock
	out := at
	*(*uint64)(unsafe.Pointer(&out)) += uint64(d/time.Second) << nanoseconds
	if out.Sub(at) != 0 || out.Round(0).Sub(at.Round(0)) != d {
		t.Fatal("clock: this version of Go keeps its times otherwise")
	}
	return out
}
