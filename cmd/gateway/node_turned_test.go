package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/node"
)

// The first node of each kind that is turned away is told of at once, the others are
// counted, and kinds are few however many errors there are.
func TestTurned(t *testing.T) {
	t.Parallel()
	var w bytes.Buffer
	out := &turned{w: &w, one: "did not get in", many: "did not get in", at: "gw:5684"}
	said := func(want ...string) {
		t.Helper()
		got := w.String()
		w.Reset()
		for _, s := range want {
			if !strings.Contains(got, s) {
				t.Errorf("%q is missing in\n%s", s, got)
			}
		}
		if len(want) == 0 && got != "" {
			t.Errorf("%q", got)
		}
	}
	join := func(detail string) error {
		return fmt.Errorf("x: %w", &node.Error{Op: "join", Code: 0x83, ID: node.NoID, Detail: detail})
	}
	out.add("n1", join("of n1"))
	said("node n1 did not get in: x: node: join: 4.03: of n1\n", "hint: the gateway answered and refused")
	out.add("n2", join("of n2"))
	out.add("n3", join("of n3"))
	said()
	for i := range 100 {
		out.add("n4", fmt.Errorf("handshake of node %d", i))
	}
	said("node n4 did not get in: handshake of node 0\n")
	if err := out.all(104); err != nil {
		t.Error(err)
	}
	said("103 of 104 nodes did not get in:\n  3 like n1: ", "\n  100 like n4: handshake of node 0\n")
	if err := out.all(103); err == nil || !strings.Contains(err.Error(), "n1") {
		t.Errorf("nobody got in: %v", err)
	}
	for i := range 26 {
		out.add("n5", fmt.Errorf("error %c", 'a'+rune(i)))
	}
	if n := out.tally(); n != 129 || len(out.kinds) != maxTurned {
		t.Errorf("%d, of %d kinds", n, len(out.kinds))
	}

	early := &turned{}
	if err, ok := errors.AsType[notYetError](early.end(5, 3, true)); !ok || !strings.Contains(err.Error(), "2 of 5 nodes") {
		t.Errorf("the time was over: %v", err)
	}
	if err := early.end(5, 5, true); err != nil {
		t.Error(err)
	}
	if err := out.end(200, 71, false); err == nil || !strings.Contains(err.Error(), "129 of 200 nodes") {
		t.Errorf("%v", err)
	}
}
