package plugin

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/test/clock"
)

// A clock that is set is told of once, and one that goes on, or is set by little, is not.
func TestClockSteps(t *testing.T) {
	began := time.Now()
	s := steps{from: began}
	for _, c := range []struct{ after, set, want time.Duration }{
		{0, 0, 0},
		{time.Hour, 0, 0},
		{time.Hour, time.Second, 0},
		{2 * time.Hour, 2 * time.Second, 2 * time.Second}, // little by little
		{2 * time.Hour, 2 * time.Second, 0},
		{3 * time.Hour, -365 * 24 * time.Hour, -365*24*time.Hour - 2*time.Second},
		{4 * time.Hour, -365 * 24 * time.Hour, 0},
		{4 * time.Hour, 0, 365 * 24 * time.Hour},
	} {
		if by := s.look(clock.Set(t, began.Add(c.after), c.set)); by != c.want {
			t.Errorf("after %v, set by %v: %v, want %v", c.after, c.set, by, c.want)
		}
	}
}
