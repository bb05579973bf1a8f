//go:build long

package e2e

import (
	"testing"
	"time"
)

// TestFleetOf1000 is the proof with 1,000 nodes.
func TestFleetOf1000(t *testing.T) {
	proveDelivery(t, 1000, 5*time.Second, 0, 10*time.Minute)
}
