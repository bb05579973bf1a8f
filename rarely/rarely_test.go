package rarely

import (
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	var l Line
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		due   bool
		want  int
	}{
		{0, false, 1},
		{0, false, 0},
		{Every - 1, false, 0},
		{Every, false, 3},
		{Every + 1, false, 0},
		{Every + 2, true, 2},
		{2*Every + 1, false, 0},
		{2*Every + 2, false, 2},
	} {
		if c.due {
			l.Due()
		}
		if n := l.Event(start.Add(c.after)); n != c.want {
			t.Errorf("after %v: %d, want %d", c.after, n, c.want)
		}
	}
}
