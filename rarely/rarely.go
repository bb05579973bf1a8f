// Package rarely has the log tell of very many like events in few lines: whoever
// causes them must not fill the disk.
package rarely

import (
	"strings"
	"time"
)

// Every is the time between two lines.
const Every = time.Minute

// Line counts the events that the next line is to tell of. The zero value tells of the
// first at once. Calls must not be concurrent.
type Line struct {
	told time.Time
	n    int // since then
}

// Event counts one, and returns of how many a line has to tell now; 0: there is none yet.
func (l *Line) Event(now time.Time) (n int) {
	l.n++
	if now.Sub(l.told) < Every {
		return 0
	}
	n, l.told, l.n = l.n, now, 0
	return n
}

// Kind is what the texts of like events have in common: but for their numbers they are
// the same.
func Kind(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
}

// Due has the next event told of at once: it is of another kind.
func (l *Line) Due() { l.told = time.Time{} }
