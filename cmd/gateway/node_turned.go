package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/rarely"
)

// turned tells of the nodes of a fleet that a gateway turns away: the first of each kind
// at once, and in the end how many there were.
type turned struct {
	w         io.Writer
	one, many string // what became of it, of them
	at        string // the gateway

	mu    sync.Mutex
	kinds []turnedKind
}

type turnedKind struct {
	name string
	n    int
	node string // the first
	err  error  // its
}

// maxTurned bounds the kinds that are told of; the last is of all others.
const maxTurned = 8

func (t *turned) add(identity string, err error) {
	name := rarely.Kind(err.Error())
	if e, ok := errors.AsType[*node.Error](err); ok {
		name = fmt.Sprint(e.Op, e.Code, e.ID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.kinds, func(k turnedKind) bool { return k.name == name })
	if i < 0 && len(t.kinds) == maxTurned {
		i = maxTurned - 1
	}
	if i >= 0 {
		t.kinds[i].n++
		return
	}
	t.kinds = append(t.kinds, turnedKind{name, 1, identity, err})
	_, _ = fmt.Fprintf(t.w, "node %s %s: %v\n", identity, t.one, err)
	if hint := hintFor(nodeAdvice("enter", t.at, err)); hint != "" {
		_, _ = fmt.Fprintf(t.w, "hint: %s\n", hint)
	}
}

func (t *turned) tally() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.kinds {
		n += k.n
	}
	return n
}

// all is the error of a fleet of which nobody got in; nil: somebody did.
func (t *turned) all(fleet int) error {
	t.sum(fleet)
	if t.tally() < fleet {
		return nil
	}
	k := t.kinds[0]
	return nodeAdvice("enter the fleet at", t.at, fmt.Errorf("node %s: %w", k.node, k.err))
}

// sum tells how many there were of each kind, where there was more than one node.
func (t *turned) sum(fleet int) {
	n := t.tally()
	if n < 2 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.w, "%d of %s %s:\n", n, count(fleet, "node"), t.many)
	for _, k := range t.kinds {
		_, _ = fmt.Fprintf(t.w, "  %d like %s: %v\n", k.n, k.node, k.err)
	}
}

// end is the error of a fleet that is not complete; early: its time was over before
// all had tried.
func (t *turned) end(fleet, in int, early bool) error {
	switch n := t.tally(); {
	case n > 0:
		return fmt.Errorf("%d of %s did not get in", n, count(fleet, "node"))
	case early && in < fleet:
		return notYetError(fmt.Sprintf("%d of %s were not in when the time was over", fleet-in, count(fleet, "node")))
	}
	return nil
}
