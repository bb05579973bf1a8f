//go:build long

package soak

import (
	"flag"
	"testing"
	"time"
)

var soakTime = flag.Duration("soak", 10*time.Minute, "how long the soak lasts")

// TestSoakLong: a fifth of the time without restarts, then restarts under load, then
// as long as at first without.
func TestSoakLong(t *testing.T) {
	begin := time.Now()
	until := func(part int) func(*soak) bool {
		return func(k *soak) bool {
			return time.Since(begin) < *soakTime*time.Duration(part)/5
		}
	}
	runSoak(t, 2000, 10_000, true, 12*time.Second, [3]func(*soak) bool{until(1), until(4), until(5)})
}
