package groupgate_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	citedPage    = regexp.MustCompile(`(?:\.\./)*(docs/[a-z0-9-]+\.md)(?:#([\w-]+)|, Section (\d+))?`)
	protocolPage = regexp.MustCompile(`(?:docs/)?protocol\.md.{0,12}`)
	protocolForm = regexp.MustCompile(`^docs/protocol\.md, Section \d`)
	linkedPage   = regexp.MustCompile(`\]\(([^)\s]*)\)`)
	headingLine  = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fencedCode   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// page is what can be cited of a page of documentation.
type page struct{ sections, anchors map[string]bool }

// readPage reads the headings: `## 5. Title` is Section 5, and its anchor is
// 5-title, as browsers of Markdown make it.
func readPage(t *testing.T, file string) page {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := page{map[string]bool{}, map[string]bool{}}
	for _, m := range headingLine.FindAllStringSubmatch(fencedCode.ReplaceAllString(string(b), ""), -1) {
		if number, _, ok := strings.Cut(m[1], ". "); ok {
			p.sections[number] = true
		}
		p.anchors[strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return p
}

// TestCitations: every page of documentation that a comment or another page
// names is there, and has the section or heading that is named.
func TestCitations(t *testing.T) {
	pages := map[string]page{}
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, top...) {
		pages[filepath.ToSlash(f)] = readPage(t, f)
	}
	cited := 0
	check := func(where, file, anchor, section string) {
		p, ok := pages[file]
		switch {
		case !ok:
			t.Errorf("%s: there is no %s", where, file)
		case anchor != "" && !p.anchors[anchor]:
			t.Errorf("%s: %s has no heading #%s; it has %v", where, file, anchor, slices.Sorted(maps.Keys(p.anchors)))
		case section != "" && !p.sections[section]:
			t.Errorf("%s: %s has no Section %s", where, file, section)
		}
	}
	err = filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n != "." && strings.HasPrefix(n, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		name = filepath.ToSlash(name)
		ext := filepath.Ext(name)
		if ext != ".go" && ext != ".md" && ext != ".yaml" || name == "docs_test.go" {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if ext == ".md" {
			for _, m := range linkedPage.FindAllStringSubmatch(fencedCode.ReplaceAllString(string(b), ""), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				file, anchor, _ := strings.Cut(m[1], "#")
				to := name // a heading of the same page
				if file != "" {
					to = filepath.ToSlash(filepath.Join(filepath.Dir(name), file))
				}
				if _, isPage := pages[to]; isPage || strings.HasSuffix(to, ".md") {
					check(name, to, anchor, "")
				} else if _, err := os.Stat(filepath.FromSlash(to)); err != nil {
					t.Errorf("%s: there is no %s", name, to)
				}
			}
			return nil
		}
		// A citation may go on behind the end of a line.
		text := strings.Join(strings.Fields(strings.NewReplacer("//", " ", "#", " # ").Replace(string(b))), " ")
		text = strings.ReplaceAll(text, ".md # ", ".md#")
		// Of the protocol's page all citations have one form, to be found by.
		for _, m := range protocolPage.FindAllString(text, -1) {
			if ext == ".go" && !protocolForm.MatchString(m) {
				t.Errorf("%s: %q is not cited as \"docs/protocol.md, Section N\"", name, m)
			}
		}
		for _, m := range citedPage.FindAllStringSubmatch(text, -1) {
			cited++
			check(name, m[1], m[2], m[3])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if cited < 50 {
		t.Errorf("%d citations found: is the pattern right?", cited)
	}
}
