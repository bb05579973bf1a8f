package plugin

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/store"
)

// Of requests that the store fails there are as many as peers ask, on a disk that
// the log may share: one line tells of all within a minute.
const (
	troubleEvery = time.Minute
	// troubleLasts is how long after the last such request the store counts as not
	// ready.
	troubleLasts = 30 * time.Second
)

// trouble remembers that the store takes no data. The zero value is ready.
type trouble struct {
	mu      sync.Mutex
	what    string // of the newest; "": none yet
	last    time.Time
	logged  time.Time
	refused int // since logged
}

// note takes an error of a request; it says whether it is one of the store.
func (t *trouble) note(ctx context.Context, log *slog.Logger, err error) bool {
	what, do := "", ""
	switch {
	case errors.Is(err, store.ErrFull):
		what, do = "the disk takes no data, requests are refused", "free space on the disk of data_dir; nothing has to be started anew"
	case errors.Is(err, store.ErrAway):
		what, do = "the database server is away, requests are refused", "see that the PostgreSQL server of store runs and can be reached; nothing has to be started anew"
	default:
		return false
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused++
	first := what != t.what
	t.what, t.last = what, now
	if first || now.Sub(t.logged) >= troubleEvery {
		log.ErrorContext(ctx, what, "n", t.refused, "hint", do, "err", err)
		t.logged, t.refused = now, 0
	}
	return true
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
