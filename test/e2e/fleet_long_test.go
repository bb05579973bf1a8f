//go:build long

package e2e

import (
	"testing"
	"time"
)

// TestFleetOf1000 is the proof with 1,000 nodes.
func TestFleetOf1000(t *testing.T) {
	proveDelivery(t, 1000, "point-to-point", 5*time.Second, 0, 10*time.Minute)
}

// TestFleetTreeOf1000 is it in a group with a key tree.
func TestFleetTreeOf1000(t *testing.T) {
	proveDelivery(t, 1000, "key-tree", 5*time.Second, 0, 10*time.Minute)
}
