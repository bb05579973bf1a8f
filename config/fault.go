package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one mistake in the configuration.
type Fault struct {
	Line int    // in the file; 0: not from a file
	Key  string // path of the key, as in groups[0].rekey.batch_window
	Msg  string // what is wrong, and what would be right
}

// FaultError reports all faults of a configuration at once.
type FaultError struct {
	File   string
	Faults []Fault // by line
}

// Error gives one line for each fault.
func (e *FaultError) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = e.line(f)
	}
	return strings.Join(lines, "\n")
}

func (e *FaultError) line(f Fault) string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
		}
		b.WriteString(": ")
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Msg)
	return b.String()
}

// faults collects faults; a key has at most one, the first found.
type faults struct {
	file  string
	lines map[string]int
	list  []Fault
	keys  map[string]bool
}

func newFaults(file string, lines map[string]int) *faults {
	return &faults{file: file, lines: lines, keys: map[string]bool{}}
}

func (f *faults) add(key, format string, args ...any) {
	f.addLine(f.line(key), key, format, args...)
}

func (f *faults) addLine(line int, key, format string, args ...any) {
	if key != "" && f.keys[key] {
		return
	}
	f.keys[key] = true
	f.list = append(f.list, Fault{Line: line, Key: key, Msg: fmt.Sprintf(format, args...)})
}

// line finds the line of a key or, where the file lacks it, of the nearest
// section around it.
func (f *faults) line(key string) int {
	for key != "" {
		if n, ok := f.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 0
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	slices.SortStableFunc(f.list, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return &FaultError{File: f.file, Faults: f.list}
}

// suggest returns the candidate that a misspelled word most likely means, or
// "".
func suggest(word string, candidates []string) string {
	best, bestDistance := "", 1+max(1, min(3, len(word)/3))
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the edit distance of two words, a swap of neighbours counting
// once. Words are bounded, for they come from a file.
func distance(a, b string) int {
	const longest = 40
	if len(a) > longest || len(b) > longest {
		return longest
	}
	var prev2 []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(b)]
}
