package plugin

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/rarely"
	"github.com/seed4911071e/groupgate/store"
)

// troubleLasts is how long after the last such request the store counts as not
// ready.
const troubleLasts = 30 * time.Second

// trouble remembers that the store takes no data. Requests that this fails are as many
// as peers ask, on a disk that the log may share. The zero value is ready.
type trouble struct {
	mu   sync.Mutex
	what string // of the newest; "": none yet
	last time.Time
	said string // by the newest line
	line rarely.Line
}

// troubleOf says what is wrong with the store when a request or something of our own
// fails with err, and what to do; "": nothing.
func troubleOf(err error) (what, do string) {
	switch {
	case errors.Is(err, store.ErrServerFull):
		return "the disk of the database server takes no data, requests are refused", "free space where the PostgreSQL server of store keeps its data, and see that it still runs; the gateway need not be started anew"
	case errors.Is(err, store.ErrFull):
		return "the disk takes no data, requests are refused", "free space on the disk of data_dir; nothing has to be started anew"
	case errors.Is(err, store.ErrAway):
		return "the database server is away, requests are refused", "see that the PostgreSQL server of store runs and can be reached; nothing has to be started anew"
	}
	return "", ""
}

// note takes an error of a request; it says whether it is one of the store.
func (t *trouble) note(ctx context.Context, log *slog.Logger, err error) bool {
	what, do := troubleOf(err)
	if what == "" {
		return false
	}
	t.seen(err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if what != t.said {
		t.line.Due()
	}
	t.said = what
	if n := t.line.Event(t.last); n > 0 {
		log.ErrorContext(ctx, what, "n", n, "hint", do, "err", err)
	}
	return true
}

// seen takes an error of the store, whoever met it: an operator and what the gateway does
// by itself have lines of their own.
func (t *trouble) seen(err error) {
	what, _ := troubleOf(err)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.what, t.last = what, time.Now()
}

// component tells of it in /readyz.
func (t *trouble) component() admin.Component {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.what == "" || time.Since(t.last) >= troubleLasts {
		return admin.Component{Name: "store", Ready: true}
	}
	return admin.Component{Name: "store", Detail: t.what}
}
