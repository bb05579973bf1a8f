package bench

import (
	"math"
	"testing"
)

// TestRekeySim: the cost of a leave grows with the height of the tree.
func TestRekeySim(t *testing.T) {
	const n, degree = 500, 4
	results, err := RekeySim(t.Context(), n, degree, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]float64{}
	for _, r := range results {
		seen[r.Metric] = r.Ours
		if r.Bench != "rekey-sim" || r.N != n || r.Unit == "" || r.Ours <= 0 && r.Unit != "ms" {
			t.Errorf("%+v", r)
		}
	}
	height := math.Ceil(math.Log(n) / math.Log(degree))
	if seen["height"] != height || seen["leave_1_messages_most"] > degree*height+1 || seen["member_messages"] > height+1 {
		t.Errorf("height %v of %v, %v", seen["height"], height, seen)
	}
	if seen["leave_10_messages"] > 10*seen["leave_1_messages"] {
		t.Errorf("a batch costs more than its leaves: %v", seen)
	}
}
