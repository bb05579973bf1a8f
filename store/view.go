package store

import "context"

// View runs fn on one snapshot of the database: it sees every Update that had
// returned before, and none that commits meanwhile. Some Views run at a time,
// more wait. An end of ctx ends fn's queries with ctx.Err().
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	if nested(ctx) {
		return errNested
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var c *conn
	select {
	case <-s.closed:
		return ErrClosed
	default:
	}
	select {
	case c = <-s.readers:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		return ErrClosed
	}
	s.metrics.reads.Inc()
	// Also when fn panics: the connection goes back clean or not at all.
	defer func() { s.readers <- c }()
	drop := func() {
		_ = c.close()
		c = nil
	}
	if c != nil && s.db.begin(c, false) != nil {
		drop() // a server that was restarted, say
	}
	if c == nil {
		var err error
		if c, err = s.db.connect(ctx, false); err != nil {
			return err
		}
		if err := s.db.begin(c, false); err != nil {
			drop()
			return err
		}
	}
	tx := &Tx{ctx: ctx, c: c}
	defer func() {
		tx.end()
		if _, err := c.exec("ROLLBACK"); err != nil {
			drop()
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.err
}
