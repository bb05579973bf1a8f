package bench

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/bench/peer"
)

// inProcess serves in this process.
func inProcess(ctx context.Context, kind, dir string) (io.WriteCloser, io.ReadCloser, error) {
	in, lines := io.Pipe()
	answers, out := io.Pipe()
	go func() {
		out.CloseWithError(peer.Serve(ctx, kind, peer.Options{Dir: dir}, in, out))
	}()
	return lines, answers, nil
}

// TestEndpoint: every benchmark of the endpoint gives its figures, and loses
// nothing on the way.
func TestEndpoint(t *testing.T) {
	roundCPU, sessionRounds = 10*time.Millisecond, 1
	quiet := func(string) {}
	for name, run := range map[string]func(context.Context) ([]Result, error){
		"fanout":   func(ctx context.Context) ([]Result, error) { return Fanout(ctx, inProcess, 20, quiet) },
		"requests": func(ctx context.Context) ([]Result, error) { return Requests(ctx, inProcess, 20, quiet) },
		"sessions": func(ctx context.Context) ([]Result, error) {
			return Sessions(ctx, Command("serve"), t.TempDir(), 20, 0, quiet)
		},
	} {
		results, err := run(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		beside := map[string]bool{}
		for _, r := range results {
			if key := r.Metric + " of " + r.PeerName; beside[key] {
				t.Errorf("%s twice", key)
			} else {
				beside[key] = true
			}
			if r.Bench != name || r.N != 20 || r.Metric == "" || r.Unit == "" {
				t.Errorf("%+v", r)
			}
			switch r.Metric {
			case "non_notifications_lost", "con_notifications_lost", "requests_lost":
				if r.Ours != 0 {
					t.Errorf("%s: %v", r.Metric, r.Ours)
				}
			case "cpu_us_per_non_notification", "cpu_us_per_con_notification", "cpu_us_per_request":
				if r.Ours <= 0 || r.Peer == nil || *r.Peer <= 0 || r.Ratio == nil {
					t.Errorf("%+v", r)
				}
			}
		}
		if name == "sessions" {
			for _, kind := range []string{"", "_member", "_persisted"} {
				if !beside["rss_bytes_per_session"+kind+" of "+stockName] {
					t.Errorf("rss_bytes_per_session%s is not measured", kind)
				}
			}
		}
		if cpu := map[string]string{"fanout": "cpu_us_per_con_notification", "requests": "cpu_us_per_request"}[name]; cpu != "" {
			for _, k := range rivals[1:] {
				if !beside[cpu+" of "+k.name] {
					t.Errorf("%s is not measured beside %s", cpu, k.name)
				}
			}
		}
	}
	results, err := Shards(t.Context(), inProcess, 20, 2, quiet)
	if err != nil || len(results) != 6 {
		t.Fatalf("%v, %v", results, err)
	}
	for _, r := range results {
		if r.Bench != "shards-2" || r.Peer == nil != (r.Ours == 0) {
			t.Errorf("%+v", r)
		}
	}
	if _, err := Shards(t.Context(), inProcess, 20, 1, quiet); err == nil {
		t.Error("one shard beside one shard")
	}
	if _, err := Fanout(t.Context(), inProcess, 0, quiet); err == nil {
		t.Error("a benchmark without nodes")
	}
}

// TestNoServer: a server that does not start is an error with its reason.
func TestNoServer(t *testing.T) {
	for name, start := range map[string]Start{
		"unknown kind": func(ctx context.Context, _, dir string) (io.WriteCloser, io.ReadCloser, error) {
			return inProcess(ctx, "?", dir)
		},
		"no program": func(context.Context, string, string) (io.WriteCloser, io.ReadCloser, error) {
			return nil, nil, os.ErrNotExist
		},
	} {
		if _, err := Sessions(t.Context(), start, t.TempDir(), 3, 0, func(string) {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestAlternate: sides take turns in the order ABBA, each in an empty folder, and the
// median counts.
func TestAlternate(t *testing.T) {
	dir, order := t.TempDir(), ""
	measure := func(name string, values ...float64) side {
		return func(own string) (held, error) {
			if files, err := os.ReadDir(own); err != nil || len(files) > 0 {
				t.Errorf("%s: %v, %v", own, files, err)
			}
			order += name
			v := values[0]
			values = values[1:]
			return held{rss: v, heap: v + 1}, os.WriteFile(filepath.Join(own, "state"), nil, 0o600)
		}
	}
	got, err := alternate(dir, 3, []side{measure("A", 5, 1, 3), measure("B", 7, 9, 8)})
	if err != nil || order != "ABBAAB" || !slices.Equal(got, []held{{rss: 3, heap: 4}, {rss: 8, heap: 9}}) {
		t.Errorf("%s, %+v, %v", order, got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
