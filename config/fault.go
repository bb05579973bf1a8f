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
