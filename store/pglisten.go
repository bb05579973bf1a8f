package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// listen wakes the followers when another gateway commits events. After a lost
// connection they look once, because what came meanwhile is not told again.
func (d *postgresDB) listen(ctx context.Context) {
	var wait backoff
	for first := true; ctx.Err() == nil; first = false {
		err := d.hear(ctx, func() {
			wait = backoff{}
			if !first {
				d.log.InfoContext(ctx, "PostgreSQL is back, events of other gateways are heard again")
			}
			d.broadcast.announce()
		})
		if ctx.Err() != nil {
			return
		}
		d.log.WarnContext(ctx, "PostgreSQL does not answer, events of other gateways wait", "err", err)
		if !wait.sleep(ctx) {
			return
		}
	}
}

// hear listens on one connection until it fails or ctx ends.
func (d *postgresDB) hear(ctx context.Context, ready func()) error {
	p, err := pgx.ConnectConfig(ctx, d.cfg.Copy())
	if err != nil {
		return err
	}
	defer hangUp(p)
	if _, err := p.Exec(ctx, "LISTEN "+d.ch); err != nil {
		return err
	}
	ready()
	for {
		n, err := p.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if n.PID != d.writerPID.Load() {
			d.broadcast.announce()
		}
	}
}

// shared: unless we are alone.
func (d *postgresDB) shared() bool { return !d.alone }

// lead holds an advisory lock while run works: on a connection of its own, so
// that the lock ends with the process, however it ends.
func (d *postgresDB) lead(ctx context.Context, name string, run func(context.Context) error) error {
	var wait backoff
	for {
		over, err := d.leadOnce(ctx, d.key("lead "+name), func(ctx context.Context) error {
			wait = backoff{}
			d.log.DebugContext(ctx, "this gateway leads", "for", name)
			return run(ctx)
		})
		if over || ctx.Err() != nil {
			return err
		}
		d.log.WarnContext(ctx, "the lead among gateways is lost", "for", name, "err", err)
		if !wait.sleep(ctx) {
			return ctx.Err()
		}
	}
}

// leadOnce waits for the lock and runs. over says that run ended by itself.
func (d *postgresDB) leadOnce(ctx context.Context, key int64, run func(context.Context) error) (over bool, err error) {
	p, err := pgx.ConnectConfig(ctx, d.cfg.Copy())
	if err != nil {
		return false, err
	}
	defer hangUp(p)
	if _, err := p.Exec(ctx, "SET lock_timeout = 0; SET statement_timeout = 0"); err != nil {
		return false, err
	}
	if _, err := p.Exec(ctx, "SELECT pg_advisory_lock($1)", key); err != nil {
		return false, err
	}
	leading, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			// Nothing is listened for: this ends with the connection.
			if _, err := p.WaitForNotification(leading); err != nil {
				lost(err)
				return
			}
		}
	}()
	err = run(leading)
	over = leading.Err() == nil
	lost(nil)
	<-watched
	return over, err
}

// hangUp closes a connection, politely if that takes no time.
func hangUp(p *pgx.Conn) {
	ctx, cancel := context.WithTimeout(background, time.Second)
	defer cancel()
	_ = p.Close(ctx)
}

// backoff waits longer each time.
type backoff struct{ d time.Duration }

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = 5 * time.Second
)

// sleep says false when ctx ended first.
func (b *backoff) sleep(ctx context.Context) bool {
	b.d = min(max(2*b.d, backoffMin), backoffMax)
	t := time.NewTimer(b.d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
