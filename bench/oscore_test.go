package bench

import "testing"

// TestOSCORE runs the benchmark small: every figure is there and plausible.
func TestOSCORE(t *testing.T) {
	const n = 20
	results, err := OSCORE(t.Context(), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range results {
		names[r.Metric] = true
		if r.Bench != "oscore" || r.N != n && r.N != 1 || r.Unit != "1/s" || r.Ours <= 0 || r.Peer == nil || r.Ratio == nil || r.PeerName == "" {
			t.Errorf("%+v", r)
		}
	}
	for _, want := range []string{"protect_64", "unprotect_64", "protect_1024", "unprotect_1024"} {
		for _, mode := range []string{"group_", "pairwise_"} {
			if !names[mode+want] {
				t.Errorf("no %s%s", mode, want)
			}
		}
		if !names[want] {
			t.Errorf("no %s", want)
		}
	}
	if _, err := OSCORE(t.Context(), 0, nil); err == nil {
		t.Error("no messages are a benchmark")
	}
}
