package bench

import "testing"

// TestRekey runs the benchmark small: every figure is there and plausible.
func TestRekey(t *testing.T) {
	const n = 6
	results, err := Rekey(t.Context(), t.TempDir(), n, nil)
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
	for _, bench := range []string{"rekey-observe", "rekey-mqtt"} {
		if v := seen[bench+" messages_sent"]; v < n/2 || v > 2*n {
			t.Errorf("%s: %v messages for %d members", bench, v, n)
		}
		for _, metric := range []string{"seconds_to_all_confirmed", "bytes_sent", "join_p99_ms_meanwhile"} {
			if seen[bench+" "+metric] == 0 {
				t.Errorf("%s has no %s", bench, metric)
			}
		}
	}
}
