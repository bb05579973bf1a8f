package bench

import (
	"context"
	"io"
	"os"
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
	roundCPU = 10 * time.Millisecond
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
