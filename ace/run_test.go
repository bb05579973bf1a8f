package ace

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// running is a bench whose Run runs, and the events that it emits.
type running struct {
	*bench
	events chan string
}

func run(t *testing.T, b *bench) *running {
	t.Helper()
	r := &running{bench: b, events: make(chan string, 64)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- b.Run(ctx) }()
	go func() {
		b.store.Follow(ctx, "test", func(_ context.Context, list []store.Event) error {
			for _, e := range list {
				d, err := groupcomm.DecodeEvent(e.Data)
				if err != nil {
					return err
				}
				if e.Key != fmt.Sprintf("%02x%x", byte(d.Subject.Kind), d.Subject.ID) {
					t.Errorf("key %s of %v", e.Key, d.Subject)
				}
				r.events <- fmt.Sprintf("%s %s@%d %s", e.Kind, subjectKID(d.Subject), d.Expires, d.Reason)
			}
			return nil
		})
		ended <- nil
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	})
	return r
}

func (r *running) seen() (list []string) {
	synctest.Wait()
	for {
		select {
		case e := <-r.events:
			list = append(list, e)
		default:
			return list
		}
	}
}

func (r *running) expect(what string, want ...string) {
	r.t.Helper()
	got := r.seen()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Errorf("%s: events %q, want %q", what, got, want)
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, newBench(t))
		start := time.Now().Unix()
		stored := func(exp int64) string { return fmt.Sprintf("token.stored kid-0001@%d ", exp) }
		expired := func(exp int64) string { return fmt.Sprintf("token.expired kid-0001@%d ", exp) }

		b.mustPost(outside(), b.token(func(c *cwt.Claims) { c.Expires = start + 100 }))
		s := b.handshake(popKID)
		b.expect("stored", stored(start+100))
		b.mustPost(outside(), b.token(func(c *cwt.Claims) { c.Expires = start + 100 }))
		b.expect("the same again")

		// A waiting token is not in force, so nothing is told of it.
		b.mustPost(outside(), b.token(func(c *cwt.Claims) { c.IssuedAt, c.Expires = start+1, start+50 }))
		time.Sleep(50 * time.Second)
		b.expect("waiting token expired")

		time.Sleep(50*time.Second - time.Millisecond)
		b.grant(s)
		b.expect("not yet")
		time.Sleep(time.Millisecond)
		if _, err := b.Grant(t.Context(), inside(s)); code(err) != coap.Unauthorized {
			t.Errorf("grant at the second of expiry: %v", err)
		}
		b.expect("expired", expired(start+100))
		if _, err := b.PSK(t.Context(), KIDIdentity(popKID)); err == nil {
			t.Error("handshake with an expired token")
		}

		// The same key with another token is the same subject.
		b.mustPost(outside(), b.token(func(c *cwt.Claims) { c.Expires = start + 1000 }))
		b.expect("renewed outside")
		if again := b.handshake(popKID); again != s {
			t.Error("another subject")
		}
		b.expect("proved", stored(start+1000))
		b.grant(s)

		time.Sleep(1000*time.Second + keyLinger)
		b.expect("expired again", expired(start+1000))
		synctest.Wait()
		if b.dump() != "" {
			t.Errorf("left over: %s", b.dump())
		}
	})
}

func TestUnusedTokensAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, newBench(t, func(c *Config) { c.Limits.UnusedAfter = time.Hour }))
		token := func(kid string) []byte {
			return b.token(func(c *cwt.Claims) { c.Expires, c.Cnf.Key.KID = 0, []byte(kid) })
		}
		b.mustPost(outside(), token("unused"))
		b.mustPost(outside(), token("proved"))
		b.handshake([]byte("proved"))
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if _, err := b.PSK(t.Context(), KIDIdentity([]byte("unused"))); err == nil {
			t.Error("kept")
		}
		b.handshake([]byte("proved"))
		if n := b.stored.Load(); n != 1 {
			t.Errorf("%d keys counted", n)
		}
	})
}

// The token of a member is not dropped as unused when the gateway crashes right after the
// join and is away for long: its join says that it was proved.
func TestUsedBeforeACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		token := b.token(func(c *cwt.Claims) { c.Expires = 0 })
		ns := b.mustPost(outside(), token)
		s := b.handshake(popKID)
		b.use(s, ns)
		time.Sleep(defaultUnusedAfter + time.Hour)
		b = b.reopen()
		if _, err := b.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.grant(s)
	})
}

// What expired while nothing ran is ended before anything else begins.
func TestSetupExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.mustPost(outside(), b.token())
		b.handshake(popKID)
		time.Sleep(2 * time.Hour)
		again := b.reopen()
		err := again.store.View(t.Context(), func(tx *store.Tx) error {
			var n int
			if err := tx.QueryRow(`SELECT COUNT(*) FROM ace_tokens`).Scan(&n); err != nil {
				return err
			}
			if n != 0 {
				t.Errorf("%d tokens in force", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// What was answered is on disk; what was only asked is not.
func TestRestart(t *testing.T) {
	b := newBench(t)
	ns := b.mustPost(outside(), b.token())
	s := b.handshake(popKID)
	before := b.grant(s)
	b.use(s, ns)
	b = b.reopen()
	g := b.grant(s)
	if g.Token != before.Token || !g.Expires.Equal(before.Expires) || len(g.Challenges) != 1 || !has(g.Challenges, ns) {
		t.Errorf("grant differs: %+v", g)
	}
	b.handshake(popKID)
	if n := b.stored.Load(); n != 1 {
		t.Errorf("%d keys counted", n)
	}
}

func TestRevokedEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, newBench(t))
		exp := time.Now().Unix() + 3600
		token := b.token()
		b.mustPost(outside(), token)
		if err := b.Revoke(t.Context(), cwt.Hash(token)); err != nil {
			t.Fatal(err)
		}
		b.expect("revoked", fmt.Sprintf("token.stored kid-0001@%d ", exp), fmt.Sprintf("token.expired kid-0001@%d revoked", exp))
	})
}

// TestSetupOnFullDisk: a start waits for no room, and what could not be ended is ended
// once there is some.
func TestSetupOnFullDisk(t *testing.T) {
	signer := testSigner(t)
	s := New(testConfig(signer), Deps{Store: storetest.OpenFile(t, Migrations()), Groups: testGroups()})
	room := func(pages int, statements ...string) {
		t.Helper()
		if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
			var n int
			if err := tx.QueryRow("PRAGMA page_count").Scan(&n); err != nil {
				return err
			}
			for _, q := range statements {
				if _, err := tx.Exec(q); err != nil {
					return err
				}
			}
			return tx.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", n+pages)).Scan(&n)
		}); err != nil {
			t.Fatal(err)
		}
	}
	// To end this takes much.
	room(50, `CREATE TABLE greedy (a BLOB)`, `INSERT INTO ace_revoked (digest, revoked, expires) VALUES (x'00', 1, 1)`,
		`CREATE TRIGGER much AFTER DELETE ON ace_revoked BEGIN INSERT INTO greedy VALUES (zeroblob(400000)); END`)
	if err := s.Setup(t.Context()); err != nil {
		t.Errorf("the start fails: %v", err)
	}
	if _, err := s.purge(t.Context()); !errors.Is(err, store.ErrFull) {
		t.Errorf("the disk is not full: %v", err)
	}
	room(1000)
	if _, err := s.purge(t.Context()); err != nil {
		t.Errorf("with room: %v", err)
	}
}
