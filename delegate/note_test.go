package delegate

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/node"
)

// A failure is told once, though each try has a port of its own; another kind is told
// too, and two in turn, or one that comes back, once a minute at most.
func TestNote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, legacyOf("a"))
		var text bytes.Buffer
		m := r.nodes[0].memberships[0]
		m.log = slog.New(slog.NewTextHandler(&text, nil))
		lines := func(what string, want int) {
			t.Helper()
			if got := strings.Count(text.String(), "level=WARN"); got != want {
				t.Errorf("%s: %d lines, want %d\n%s", what, got, want, &text)
			}
			text.Reset()
		}
		refused := func(port int) error {
			return fmt.Errorf("read udp 127.0.0.1:%d->127.0.0.1:5684: connection refused", port)
		}
		m.note(refused(40001))
		lines("the first", 1)
		for i := range 20 {
			time.Sleep(time.Minute)
			m.note(refused(40002 + i))
		}
		lines("each with a port of its own", 0)
		if m.failed != refused(40021).Error() {
			t.Errorf("shown: %s", m.failed)
		}
		other := errors.New("not authorized")
		m.note(other)
		lines("another", 1)
		for range 60 {
			time.Sleep(time.Second)
			m.note(refused(40003))
			m.note(other)
		}
		lines("two in turn for a minute", 1)
		m.note(fmt.Errorf("x: %w", node.ErrEvicted))
		lines("an eviction", 0)
	})
}
