package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/rarely"
	"github.com/seed4911071e/groupgate/store"
)

// Requests that a full disk refuses are one line in a minute, and /readyz tells
// while they come.
func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		var tr trouble
		if tr.note(t.Context(), log, errors.New("not a member")) || !tr.component().Ready {
			t.Error("the store is blamed for what it did not do")
		}
		full := fmt.Errorf("gm: join: %w", store.ErrFull)
		for range 100 {
			if !tr.note(t.Context(), log, full) {
				t.Fatal("not taken for the store's")
			}
		}
		c := tr.component()
		if lines := strings.Count(text.String(), "\n"); lines != 1 || c.Ready || !strings.Contains(c.Detail, "disk") || !strings.Contains(text.String(), "free space") {
			t.Errorf("%d lines, %+v:\n%s", lines, c, &text)
		}
		time.Sleep(rarely.Every)
		if !tr.component().Ready {
			t.Error("it is told for ever")
		}
		tr.seen(full) // by what the gateway does itself
		if tr.component().Ready {
			t.Error("only requests are told of")
		}
		text.Reset()
		tr.note(t.Context(), log, full)
		if !strings.Contains(text.String(), "n=100") {
			t.Errorf("how many were refused since is not told:\n%s", &text)
		}
		text.Reset()
		tr.note(t.Context(), log, store.ErrAway)
		if !strings.Contains(text.String(), "PostgreSQL") {
			t.Errorf("another trouble waits for its line:\n%s", &text)
		}
		text.Reset()
		tr.note(t.Context(), log, fmt.Errorf("gm: join: %w", store.ErrServerFull))
		if said := text.String(); !strings.Contains(said, "PostgreSQL") || strings.Contains(said, "data_dir") || !strings.Contains(tr.component().Detail, "server") {
			t.Errorf("the wrong disk:\n%s", said)
		}
	})
}
