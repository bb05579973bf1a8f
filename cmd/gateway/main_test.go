package main

import "testing"

// TestCommandsRun holds that every command of the line can be run.
func TestCommandsRun(t *testing.T) {
	for _, c := range commandLine().Commands(&cli{}) {
		if _, ok := c.(runner); !ok {
			t.Errorf("%T has no Run(*env) error", c)
		}
	}
}
