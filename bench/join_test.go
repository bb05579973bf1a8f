package bench

import "testing"

// TestJoin runs the benchmark small: every figure is there and plausible.
func TestJoin(t *testing.T) {
	const n = 20
	var heard []string
	results, err := Join(t.Context(), t.TempDir(), n, func(what string) { heard = append(heard, what) })
	if err != nil {
		t.Fatal(err)
	}
	if len(heard) != 3 {
		t.Errorf("heard of %q", heard)
	}
	byName := map[string]Result{}
	for _, r := range results {
		byName[r.Metric] = r
		if r.Bench != "join" || r.N != n || r.Unit == "" || r.Ours <= 0 {
			t.Errorf("%+v", r)
		}
		if (r.Peer == nil) != (r.Ratio == nil) || (r.Peer == nil) != (r.PeerName == "") {
			t.Errorf("half a peer: %+v", r)
		}
	}
	if len(results) != 4 || len(byName) != 4 {
		t.Fatalf("%d results under %d names", len(results), len(byName))
	}
	rate, cpu := byName["joins_per_second"], byName["cpu_us_per_join"]
	if rate.Peer == nil || *rate.Ratio != rate.Ours / *rate.Peer || *rate.Ratio >= 1 {
		t.Errorf("more joins than signatures: %+v", rate)
	}
	if cpu.Peer == nil || *cpu.Ratio != *cpu.Peer/cpu.Ours || *cpu.Ratio >= 1 {
		t.Errorf("a join is cheaper than its signatures: %+v", cpu)
	}
	if p50, p99 := byName["p50"], byName["p99"]; p50.Ours > p99.Ours || p50.Unit != "ms" {
		t.Errorf("p50 %v, p99 %v", p50.Ours, p99.Ours)
	}
}

func TestNoJoins(t *testing.T) {
	if _, err := Join(t.Context(), t.TempDir(), 0, nil); err == nil {
		t.Error("a benchmark of nothing")
	}
}
