package groupgate_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	declared  = regexp.MustCompile(`(?m)^(?:func (?:\([^)]*\) )?|\t?(?:type|var|const) |\t)([A-Za-z_]\w*)`)
	proofName = regexp.MustCompile("`([a-z0-9_/]+)`|\\b((?:Test|Fuzz)[A-Z]\\w*)(…?)")
	codePlace = regexp.MustCompile("`((?:[\\w/]+/)?\\w+\\.go)(?::(\\w+))?`")
)

// TestProofs: the tests that pages name are there, in the package that docs/spec-map.md
// and docs/proxy.md say, and so is the code that docs/spec-map.md names.
func TestProofs(t *testing.T) {
	names := map[string]map[string]bool{} // by file and by folder
	tests := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") {
			return err
		}
		file := filepath.ToSlash(name)
		folder := path.Dir(file)
		if names[folder] == nil {
			names[folder] = map[string]bool{}
		}
		names[file] = found(declared, readText(t, name))
		for f := range names[file] {
			names[folder][f] = true
			if strings.HasSuffix(name, "_test.go") {
				tests[f] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	begins := func(prefix string) bool {
		for f := range tests {
			if strings.HasPrefix(f, prefix) {
				return true
			}
		}
		return false
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	proofs, places := 0, 0
	for _, page := range append(pages, "README.md") {
		page = filepath.ToSlash(page)
		for line := range strings.Lines(readText(t, page)) {
			folder := ""
			for _, m := range proofName.FindAllStringSubmatch(line, -1) {
				switch name := m[2]; {
				case name == "":
					if info, err := os.Stat(m[1]); err == nil && info.IsDir() {
						folder = m[1]
					}
				case m[3] != "":
					if !begins(name) {
						t.Errorf("%s: no test begins with %s", page, name)
					}
				case !tests[name]:
					t.Errorf("%s: there is no test %s", page, name)
				case folder != "" && slices.Contains([]string{"docs/spec-map.md", "docs/proxy.md"}, page):
					if proofs++; !names[folder][name] {
						t.Errorf("%s: %s is not in %s", page, name, folder)
					}
				}
			}
			if page != "docs/spec-map.md" {
				continue
			}
			last := ""
			for _, m := range codePlace.FindAllStringSubmatch(line, -1) {
				file := m[1]
				if !strings.Contains(file, "/") {
					file = path.Join(path.Dir(last), file) // in the folder of the one before
				}
				last = file
				if places++; names[file] == nil {
					t.Errorf("%s: there is no %s", page, file)
				} else if m[2] != "" && !names[file][m[2]] {
					t.Errorf("%s: %s has no %s", page, file, m[2])
				}
			}
		}
	}
	if proofs < 200 || places < 150 {
		t.Errorf("%d tests and %d places found: are the patterns right?", proofs, places)
	}
}
