package bench

import "testing"

// TestRekey runs the benchmark small: every figure is there and plausible.
func TestRekey(t *testing.T) {
	const n = 6
	results, err := Rekey(t.Context(), t.TempDir(), n, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]float64{}
	for _, r := range results {
		seen[r.Bench+" "+r.Metric] = r.Ours
		if r.N != n || r.Unit == "" || r.Ours <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if v := seen["rekey-tree messages_sent"]; v < 1 || v > 4*2 { // degree 4, height 2
		t.Errorf("%v messages over the key tree", v)
	}
	for _, bench := range []string{"rekey-observe", "rekey-mqtt", "rekey-tree"} {
		if v := seen[bench+" messages_sent"]; v < 1 || (v > 2*n && bench != "rekey-tree") {
			t.Errorf("%s: %v messages for %d members", bench, v, n)
		}
		for _, metric := range []string{"seconds_to_all_confirmed", "bytes_sent", "join_p99_ms_meanwhile"} {
			if seen[bench+" "+metric] == 0 {
				t.Errorf("%s has no %s", bench, metric)
			}
		}
	}
}
