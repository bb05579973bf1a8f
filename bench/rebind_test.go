package bench

import (
	"encoding/json"
	"testing"
	"time"
)

// TestRebind: all are served after they moved; who pretends to be them gets a bounded
// amount, and costs nobody an observation.
func TestRebind(t *testing.T) {
	roundCPU = 10 * time.Millisecond
	const n = 20
	results, err := Rebind(t.Context(), inProcess, n, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(results); err != nil {
		t.Error(err) // of a ratio that is no number
	}
	seen := map[string]Result{}
	for _, r := range results {
		seen[r.Metric] = r
		if r.Bench != "rebind" || r.N != n || r.Unit == "" || r.Peer == nil || r.PeerName != stockName {
			t.Errorf("%+v", r)
		}
	}
	for _, m := range []string{"served_without_handshake", "observers_reached_after_move", "observers_reached_after_diversion"} {
		if r := seen[m]; r.Ours != 100 || r.Unit != "%" {
			t.Errorf("%s: %+v", m, r)
		}
	}
	for _, m := range []string{"cpu_us_per_rebind", "rebinds_per_second"} {
		if r := seen[m]; r.Ours <= 0 || r.Ratio == nil {
			t.Errorf("%s: %+v", m, r)
		}
	}
	// The answer, what fits, and pings of 40 bytes.
	if r := seen["bytes_to_unverified_address_per_byte"]; r.Ours <= 0 || r.Ours > 3.5 {
		t.Errorf("%+v", r)
	}
	if r := seen["pushes_to_unverified_address"]; r.Ours >= divertedPushes || *r.Peer < divertedPushes {
		t.Errorf("%+v", r)
	}
	if r := seen["pushes_to_nodes_meanwhile"]; r.Ours < divertedPushes-2 || *r.Peer != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := Rebind(t.Context(), inProcess, 0, func(string) {}); err == nil {
		t.Error("a benchmark without nodes")
	}
}
