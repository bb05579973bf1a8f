//go:build long

package e2e

import "testing"

// TestStormOf1000 is a storm of 50 groups with 20 nodes each.
func TestStormOf1000(t *testing.T) { weather(t, 50, 20, 400) }
