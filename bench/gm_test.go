package bench

import "testing"

// TestGM runs the benchmark small: every figure is there and plausible.
func TestGM(t *testing.T) {
	const n = 40
	results, err := GM(t.Context(), t.TempDir(), "", n, nil)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range results {
		names[r.Metric] = true
		if r.Bench != "gm" || r.N != n || r.Unit == "" || r.Ours <= 0 {
			t.Errorf("%+v", r)
		}
		if (r.Peer == nil) != (r.Ratio == nil) || (r.Peer == nil) != (r.PeerName == "") {
			t.Errorf("half a peer: %+v", r)
		}
	}
	for _, want := range []string{"joins_per_second", "mqtt_joins_per_second", "fetch_creds", "fetch_creds_size", "rekey", "rekey_mqtt",
		"tree_joins_per_second", "tree_leave", "tree_leave_cpu", "tree_leave_messages"} {
		if !names[want] {
			t.Errorf("no %s", want)
		}
	}
}
