package bench

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/seed4911071e/groupgate/bench/peer"
	"github.com/seed4911071e/groupgate/coap"
)

// TestMain is a server in a process of its own where the tests need one.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		var err error
		if kind, dir := os.Args[2], os.Args[3]; kind == KindGateway {
			err = ServeGateway(context.Background(), dir, os.Stdin, os.Stdout)
		} else {
			err = peer.Serve(context.Background(), kind, peer.Options{Dir: dir}, os.Stdin, os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRekey runs the benchmark small, kills of the gateway included: every figure is
// there and plausible.
func TestRekey(t *testing.T) {
	defer func(joins, rounds int) { rekeyJoins, rekeyRounds = joins, rounds }(rekeyJoins, rekeyRounds)
	rekeyJoins, rekeyRounds = 8, 2
	c := RekeyConfig{Observing: 12, MQTT: 6, Sleeping: 9}
	results, err := Rekey(t.Context(), Command("serve"), t.TempDir(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]Result{}
	for _, r := range results {
		seen[r.Bench+" "+r.Metric] = r
		if r.Unit == "" || r.Ours <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if r := seen["rekey-tree messages_sent"]; r.Ours > 4*2 || r.Peer == nil || *r.Peer < 6 { // degree 4, height 2
		t.Errorf("over the key tree: %+v", r)
	}
	if r := seen["rekey-tree-leave messages_sent"]; r.Ours > 4*2+1 {
		t.Errorf("one of the key tree leaves: %+v", r)
	}
	// Retransmissions do not count.
	if r := seen["rekey-observe messages_sent"]; r.Ours != 12 {
		t.Errorf("to observers: %+v", r)
	}
	for bench, n := range map[string]int{"rekey-observe": c.Observing, "rekey-mqtt": c.MQTT, "rekey-tree": c.MQTT} {
		metrics := []string{"seconds_to_all_confirmed", "messages_sent", "bytes_sent", "join_p99_ms_meanwhile", "gateway_cpu_us_per_member",
			"rss_bytes_per_member", "restart_seconds"}
		if bench == "rekey-observe" {
			metrics = append(metrics, "restart_seconds_to_all_confirmed")
		} else {
			metrics = append(metrics, "restart_seconds_to_all_retained", "wake_seconds_to_all_confirmed")
		}
		for _, m := range metrics {
			if r, ok := seen[bench+" "+m]; !ok || r.N != n {
				t.Errorf("%s has no %s: %+v", bench, m, r)
			}
		}
	}
	for _, m := range []string{"bytes_sent", "gateway_cpu_ms", "seconds_to_the_first", "rss_bytes_per_member"} {
		if r := seen["rekey-tree-leave "+m]; r.N != c.Sleeping {
			t.Errorf("rekey-tree-leave has no %s", m)
		}
	}
	if _, err := Rekey(t.Context(), Command("serve"), t.TempDir(), RekeyConfig{}, nil); err == nil {
		t.Error("a benchmark without members")
	}
}

// TestWatch: who was told nothing, something else or the same twice does not count.
func TestWatch(t *testing.T) {
	w := newWatch(3)
	one, two := rekeyMessage(t, 1), rekeyMessage(t, 2)
	for i, m := range [][]byte{one, one} {
		w.took(i, &coap.Message{Payload: m})
	}
	if w.reached(1) != 2 || w.reached(2) != 0 {
		t.Errorf("%d, %d of version 1 and 2", w.reached(1), w.reached(2))
	}
	for _, i := range []int{2, 2, 0, 7} {
		w.took(i, &coap.Message{Payload: two})
	}
	if w.reached(1) != 2 || w.reached(2) != 2 {
		t.Errorf("%d, %d of version 1 and 2", w.reached(1), w.reached(2))
	}
	w.took(1, &coap.Message{Payload: one}) // an older one after a newer
	if w.reached(2) != 0 {
		t.Error("went back to an older version unnoticed")
	}
}

func rekeyMessage(t *testing.T, num uint64) []byte {
	t.Helper()
	s := &rekeySim{num: num}
	return s.message()
}
