package bench

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestProxy: the benchmark of the proxy runs, and every answer was the one that
// was asked for.
func TestProxy(t *testing.T) {
	results, err := Proxy(t.Context(), t.TempDir(), 400, time.Millisecond, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.Metric] = r.Bench == "proxy" && r.N > 0
	}
	for _, name := range []string{"cached_gets_per_second", "uncached_gets_per_second", "added_latency_us", "latency_us", "far_latency_us"} {
		if !seen[name] {
			t.Errorf("no %s in %+v", name, results)
		}
		if strings.HasSuffix(name, "latency_us") && !slices.ContainsFunc(results, func(r Result) bool {
			return r.Metric == name && r.PeerName == floorRelay && r.Peer != nil
		}) {
			t.Errorf("no relay beside %s in %+v", name, results)
		}
	}
}
