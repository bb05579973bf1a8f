package main

import (
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
)

// TestProgressLines: a line for each change, and a version that has come as far as the
// one whose place it took is one.
func TestProgressLines(t *testing.T) {
	var out strings.Builder
	show := new(groupRekeyCmd).shower(&out)
	for _, d := range []admin.DeliveryInfo{{Version: 3}, {Version: 3, Delivered: 1}, {Version: 3, Delivered: 1}, {Version: 4, Delivered: 1}} {
		d.Members, d.Pending = 2, 2-d.Delivered
		if err := show.progress(&d); err != nil {
			t.Fatal(err)
		}
	}
	var starts []string
	for line := range strings.Lines(out.String()) {
		starts = append(starts, line[:len("version 3: 0")])
	}
	if got := strings.Join(starts, ", "); got != "version 3: 0, version 3: 1, version 4: 1" {
		t.Errorf("%s in\n%s", got, out.String())
	}
}
