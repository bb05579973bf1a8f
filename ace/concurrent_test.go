package ace

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// A grant read after a commit shows what was committed, however many readers
// fill the cache meanwhile.
func TestGrantIsNeverStale(t *testing.T) {
	b := newBench(t)
	b.mustPost(outside(), b.token())
	s := b.handshake(popKID)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if _, err := b.Grant(t.Context(), inside(s)); err != nil {
					t.Errorf("grant: %v", err)
					return
				}
			}
		})
	}
	for i := range 30 {
		roles := []groupcomm.Roles{2, 4}[i%2]
		ns := b.mustPost(inside(s), b.token(func(c *cwt.Claims) {
			c.IssuedAt += int64(i) + 1
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g1", Roles: roles})
		}))
		if g := b.grant(s); g.Scope[0].Roles != roles || !slices.Equal(g.Challenges[0], ns) {
			t.Fatalf("post %d: stale grant with roles %v", i, g.Scope[0].Roles)
		}
	}
	stop()
	readers.Wait()
}

// Two keys that claim one identifier at one time: one is stored.
func TestConcurrentCollision(t *testing.T) {
	b := newBench(t)
	var posts sync.WaitGroup
	codes := make([]coap.Code, 8)
	for i := range codes {
		token := b.token(func(c *cwt.Claims) { c.Cnf.Key.K = slices.Repeat([]byte{byte(i)}, 16) })
		posts.Go(func() {
			_, err := b.post(outside(), token)
			codes[i] = code(err)
		})
	}
	posts.Wait()
	slices.Sort(codes)
	if codes[0] != coap.Created || codes[1] != coap.BadRequest || codes[7] != coap.BadRequest {
		t.Errorf("answers %v", codes)
	}
	if n := b.stored.Load(); n != 1 {
		t.Errorf("%d keys counted", n)
	}
}

// A reader whose read overlapped a commit does not fill the cache.
func TestCacheRefusesOldReads(t *testing.T) {
	c := newGrantCache()
	s := coap.Subject{Kind: coap.SubjectPoP, ID: "x"}
	e := cachedGrant{grant: &groupcomm.Grant{}}
	before := c.generation()
	c.forget(s) // the commit
	c.put(s, e, before)
	if c.get(s, time.Now()) != nil {
		t.Error("an old read was kept")
	}
	c.put(s, e, c.generation())
	if c.get(s, time.Now()) == nil {
		t.Error("a new read was not kept")
	}
}

func TestKIDIdentityPrefixes(t *testing.T) {
	id := KIDIdentity(popKID)
	for i := range id {
		if _, ok := kidIdentity(id[:i]); ok {
			t.Fatalf("prefix of %d bytes reads as a kid", i)
		}
	}
	for name, h := range map[string]string{
		"further claim":         "a208a101a201040241010100",
		"further cnf member":    "a108a201a20104024101034101",
		"further key member":    "a108a101a30104024101030a",
		"text key outside":      "a208a101a20104024101616100",
		"key value":             "a108a101a30104024101204101",
		"asymmetric":            "a108a101a20102024101",
		"empty kid":             "a108a101a201040240",
		"kid is text":           "a108a101a20104026161",
		"long form of the head": "b80108a101a20104024101",
	} {
		if _, ok := kidIdentity(unhex(t, h)); ok {
			t.Errorf("%s reads as a kid", name)
		}
	}
}

// Grants that were read many at once are those that are read one by one.
func TestWarm(t *testing.T) {
	b := newBench(t)
	var subjects []coap.Subject
	const n = 2*warmAtOnce + 3
	for i := range n {
		kid := fmt.Appendf(nil, "warm%04d", i)
		b.mustPost(outside(), b.token(func(c *cwt.Claims) {
			c.Cnf.Key.KID, c.Cnf.Key.K = kid, slices.Repeat([]byte{byte(i), 1}, 8)
			c.Scope = scopeOf(groupcomm.ScopeEntry{Group: "g1", Roles: []groupcomm.Roles{2, 4}[i%2]})
		}))
		subjects = append(subjects, b.handshake(kid))
	}
	again := b.reopen()
	err := again.store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE ace_tokens SET expires = 1 WHERE subject = ?`, subjectBytes(subjects[1]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	stranger := coap.Subject{Kind: coap.SubjectPoP, ID: "stranger"}
	if err := again.Warm(t.Context(), append(subjects, stranger)); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i, s := range subjects {
		got := again.grants.get(s, now)
		alone, err := again.loadGrant(t.Context(), s, now)
		switch {
		case i == 1:
			if got != nil || !errors.Is(err, store.ErrNotFound) {
				t.Errorf("an expired token gives %+v, %v", got, err)
			}
		case err != nil:
			t.Fatal(err)
		case !reflect.DeepEqual(got, alone):
			t.Errorf("%d: %+v, alone %+v", i, got, alone)
		}
	}
	if g := again.grants.get(stranger, now); g != nil {
		t.Errorf("a stranger has %+v", g)
	}
	good, err := again.InForce(t.Context(), append(subjects, stranger))
	if err != nil || len(good) != n-1 {
		t.Errorf("%d in force of %d, %v", len(good), n, err)
	}
	for i, s := range subjects {
		until, ok := good[s]
		if alone := again.grants.m[s]; ok != (i != 1) || ok && !until.Equal(alone.until) {
			t.Errorf("%d is in force: %t, until %v; alone until %v", i, ok, until, alone.until)
		}
	}
}
