package groupgate_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// How metrics are named in the sources: in full, or by a helper of the package that
// puts its prefix before.
var (
	metricInFull = regexp.MustCompile(`(?:Name:\s*|NewDesc\()"(groupgate_[a-z0-9_]*[a-z])"`)
	metricShort  = regexp.MustCompile(`\b(?:counter|vec|gauge|one)\("([a-z_]+)", *"|Subsystem: (?:sub|"gm"), Name: "([a-z_]+)"`)
	metricRow    = regexp.MustCompile("(?m)^\\| `(groupgate_[a-z0-9_]+)`")
	requestRow   = regexp.MustCompile("(?m)^\\| `((?:GET|POST|DELETE) /v1/[^`]*)`")
	requestGo    = regexp.MustCompile(`"((?:GET|POST|DELETE) /v1/[^"]*)"`)
)

// prefixed are the packages with such helpers.
var prefixed = map[string]bool{"endpoint": true, "gm": true, "delegate": true, "proxy": true}

// TestOperations: docs/operations.md lists every metric and every request of the
// HTTP API that the program has, and no other; what other pages name is there.
func TestOperations(t *testing.T) {
	text := readText(t, "docs/operations.md")
	metrics := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		src := readText(t, name)
		if !strings.Contains(src, "client_golang/prometheus") {
			return nil
		}
		for _, m := range metricInFull.FindAllStringSubmatch(src, -1) {
			metrics[m[1]] = true
		}
		if room, _, _ := strings.Cut(filepath.ToSlash(name), "/"); prefixed[room] {
			for _, m := range metricShort.FindAllStringSubmatch(src, -1) {
				metrics["groupgate_"+room+"_"+m[1]+m[2]] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(metrics) < 100 {
		t.Errorf("%d metrics found: are the patterns right?", len(metrics))
	}
	compare(t, "metric", metrics, found(metricRow, text))
	compare(t, "request", found(requestGo, readText(t, "admin/admin.go")), found(requestRow, text))

	// Pages may name a family by its beginning, which ends with _.
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`groupgate_[a-z0-9_]*[a-z0-9]\b`)
	for _, page := range append(pages, "README.md", "configs/gateway.yaml") {
		for _, name := range named.FindAllString(readText(t, page), -1) {
			if !metrics[name] {
				t.Errorf("%s names the metric %s, which is not there", page, name)
			}
		}
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func found(pattern *regexp.Regexp, text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		all[m[1]] = true
	}
	return all
}

func compare(t *testing.T, what string, program, page map[string]bool) {
	t.Helper()
	for name := range program {
		if !page[name] {
			t.Errorf("docs/operations.md lacks the %s %s", what, name)
		}
	}
	for name := range page {
		if !program[name] {
			t.Errorf("docs/operations.md has the %s %s, which is not there", what, name)
		}
	}
}
