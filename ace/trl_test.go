package ace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/store"
)

// listAt is an Authorization Server with a list of revoked tokens.
type listAt struct {
	mu      sync.Mutex
	hashes  [][]byte
	body    []byte // nil: made of hashes
	code    coap.Code
	away    bool
	deaf    bool // does not observe
	fn      func(*coap.Response)
	done    chan struct{}
	queries int
}

func (l *listAt) responseLocked(observed bool) *coap.Response {
	code, body := l.code, l.body
	if code == 0 {
		code = coap.Content
	}
	if body == nil {
		set := l.hashes
		if set == nil {
			set = [][]byte{}
		}
		body = cose.MustMarshal(map[int64]any{trlFullSet: set, 2: nil})
	}
	r := &coap.Response{Code: code, Payload: body}
	r.Options.SetContentFormat(coap.ACETRL)
	if observed {
		r.Options.SetUint(coap.ObserveOption, 1)
	}
	return r
}

func (l *listAt) Do(_ context.Context, req *coap.Request) (*coap.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return nil, errors.New("no response")
	}
	l.queries++
	if p := req.Path(); req.Code != coap.GET || len(p) != 2 || p[0] != "revoke" || len(req.Options.Queries()) != 0 {
		return &coap.Response{Code: coap.BadRequest}, nil
	}
	return l.responseLocked(false), nil
}

func (l *listAt) Observe(_ context.Context, _ *coap.Request, fn func(*coap.Response)) (func(context.Context) error, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away {
		return nil, nil, errors.New("no response")
	}
	l.queries++
	l.done = make(chan struct{})
	if !l.deaf {
		l.fn = fn
	}
	fn(l.responseLocked(!l.deaf))
	return func(context.Context) error { return nil }, l.done, nil
}

// list sets the list, and tells those who observe.
func (l *listAt) list(hashes ...[]byte) {
	l.mu.Lock()
	l.hashes = hashes
	fn, r := l.fn, l.responseLocked(true)
	l.mu.Unlock()
	if fn != nil {
		fn(r)
	}
}

// leave lets the server be away, and its associations end.
func (l *listAt) leave(away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away, l.fn = away, nil
	if away && l.done != nil {
		close(l.done)
		l.done = nil
	}
}

func listed(l *listAt) func(*Config) {
	return func(c *Config) {
		for i := range c.Entries {
			c.Entries[i].Revocation = &Revocation{Client: l, Path: []string{"revoke", "trl"}, Interval: time.Minute}
		}
	}
}

// RFC 9770: a token on the list ends at once, and one that was listed before
// anybody posted it is refused.
func TestRevocationList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listAt{}
		b := run(t, newBench(t, listed(l)))
		first := b.token()
		exp := time.Now().Unix() + 3600
		b.mustPost(outside(), first)
		s := b.handshake(popKID)
		b.grant(s)
		second := b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = []byte("another") })

		l.list(cwt.Hash(first), cwt.Hash(second))
		synctest.Wait()
		if _, err := b.Grant(t.Context(), inside(s)); code(err) != coap.Unauthorized {
			t.Errorf("after revocation: %v", err)
		}
		b.expect("revoked", fmt.Sprintf("token.stored kid-0001@%d ", exp), fmt.Sprintf("token.expired kid-0001@%d revoked", exp))
		for _, token := range [][]byte{first, second} {
			if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
				t.Errorf("posted after revocation: %v", err)
			}
		}
		// Its disappearance means that it expired, and revives nothing.
		l.list()
		synctest.Wait()
		if _, err := b.post(outside(), first); code(err) != coap.Unauthorized {
			t.Errorf("no longer listed: %v", err)
		}
		// So does a restart, with the server away.
		l.leave(true)
		again := b.reopen()
		if _, err := again.post(outside(), second); code(err) != coap.Unauthorized {
			t.Errorf("after a restart: %v", err)
		}
	})
}

// The list is asked for again when the association ended, and now and then
// where the server does not notify.
func TestRevocationListAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listAt{}
		b := run(t, newBench(t, listed(l)))
		post := func(kid string) []byte {
			token := b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = []byte(kid) })
			b.mustPost(outside(), token)
			return token
		}
		refused := func(what string, token []byte) {
			t.Helper()
			if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
				t.Errorf("%s: %v", what, err)
			}
		}
		one, two, three := post("one"), post("two"), post("three")
		synctest.Wait()
		l.leave(true)
		l.list(cwt.Hash(one))
		time.Sleep(10 * time.Minute)
		if _, err := b.post(outside(), one); err != nil {
			t.Errorf("revoked by nobody we can hear: %v", err)
		}
		l.mu.Lock()
		before := l.queries
		l.mu.Unlock()
		l.leave(false)
		time.Sleep(trlLongestPause + time.Second)
		refused("after the association was back", one)
		l.mu.Lock()
		after := l.queries
		l.mu.Unlock()
		if after == before {
			t.Error("not asked again")
		}

		l.leave(true) // ends the association
		l.mu.Lock()
		l.deaf, l.away = true, false
		l.mu.Unlock()
		time.Sleep(10 * time.Second)
		l.list(cwt.Hash(one), cwt.Hash(two))
		time.Sleep(time.Minute + time.Second)
		refused("by a query in between", two)

		// What is no list changes nothing, and the next list counts.
		for _, body := range []string{"", "80", "a0", "a10040", "a10081" + "01", "a100814101", "a100", "a10080" + "00"} {
			l.mu.Lock()
			l.body = append([]byte{}, unhex(t, body)...)
			l.mu.Unlock()
			time.Sleep(5 * time.Minute)
		}
		l.mu.Lock()
		l.body, l.code = nil, coap.Forbidden
		l.mu.Unlock()
		time.Sleep(5 * time.Minute)
		b.mustPost(outside(), three)
		l.mu.Lock()
		l.code = 0
		l.mu.Unlock()
		l.list(cwt.Hash(three))
		time.Sleep(5 * time.Minute)
		refused("after answers that were none", three)
	})
}

// RFC 9770, Section 11.1: a token in another form would have another hash, so it
// is refused where revocation is followed.
func TestRevocableForms(t *testing.T) {
	l := &listAt{}
	plain, followed := newBench(t), newBench(t, listed(l))
	followed.signer = plain.signer
	token := plain.token()
	body := token[3:] // after tags 61 and 16
	long := slices.Concat(token[:3], []byte{0x98, 3}, body[1:])
	for name, c := range map[string]struct {
		token []byte
		want  coap.Code
	}{
		"as it was issued":  {token, coap.Created},
		"without tag 61":    {token[2:], coap.BadRequest},
		"without COSE tag":  {slices.Concat(token[:2], body), coap.BadRequest},
		"without any tag":   {body, coap.BadRequest},
		"a longer encoding": {long, coap.BadRequest},
	} {
		if _, err := followed.post(outside(), c.token); code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := plain.post(outside(), token[2:]); err != nil {
		t.Errorf("without revocation: %v", err)
	}
}

// ECDSA has two signatures for what was signed: revocation meets both.
func TestRevokedTwin(t *testing.T) {
	signer, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	es256 := func(c *Config) {
		c.Entries = []TokenEntry{{Issuer: "as3", Audience: "rs2", Alg: cose.AlgES256, PublicKey: signer.Public(), DerivationKey: cose.NewSecret(kdkKey)}}
		c.AS = nil
	}
	holder := testSigner(t).Public()
	seal := func() []byte {
		token, err := cwt.Seal(cwt.Protection{Alg: cose.AlgES256, Signer: signer}, claims(func(c *cwt.Claims) {
			c.Issuer, c.Cnf = "as3", &cwt.Confirmation{Key: holder}
		}).Encode())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for name, posted := range map[string]bool{"stored": true, "not stored": false} {
		b := newBench(t, es256)
		issued := seal()
		parsed, err := cwt.Parse(issued)
		if err != nil {
			t.Fatal(err)
		}
		twin := parsed.Twin()
		if bytes.Equal(twin, issued) || !parsed.Canonical() {
			t.Fatalf("twin %x", twin)
		}
		if posted {
			b.mustPost(outside(), twin)
		}
		if err := b.Revoke(t.Context(), cwt.Hash(issued)); err != nil {
			t.Fatal(err)
		}
		if posted && b.tokensLeft(t) != 0 {
			t.Errorf("%s: the token in force did not end", name)
		}
		for _, token := range [][]byte{issued, twin} {
			if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// An operator names tokens themselves or their hashes, known here or not.
func TestRevokeTokens(t *testing.T) {
	b := newBench(t)
	stored := b.token()
	b.mustPost(outside(), stored)
	other := b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = []byte("other") })
	third := b.token(func(c *cwt.Claims) { c.Cnf.Key.KID = []byte("third") })
	for _, junk := range [][]byte{nil, {1}, {0xa0}, other[:len(other)-1], append(bytes.Clone(other), 0)} {
		if _, err := b.RevokeTokens(t.Context(), stored, junk); !errors.Is(err, ErrNoToken) {
			t.Errorf("%x: %v", junk, err)
		}
	}
	if b.tokensLeft(t) != 1 {
		t.Error("a list with a mistake ended a token")
	}
	ended, err := b.RevokeTokens(t.Context(), stored, other, cwt.Hash(third))
	if err != nil || ended != 1 || b.tokensLeft(t) != 0 {
		t.Errorf("%d ended, %d left, %v", ended, b.tokensLeft(t), err)
	}
	// Its outer form is free, and each is refused.
	for _, token := range [][]byte{stored, stored[2:], other, other[2:], third} {
		if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
			t.Errorf("%x: %v", token[:4], err)
		}
	}
}

// tokensLeft counts stored tokens.
func (b *bench) tokensLeft(t *testing.T) (n int) {
	t.Helper()
	err := b.store.View(t.Context(), func(tx *store.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM ace_tokens`).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// RFC 9770, Section 11.1: the sequence number of a revoked token that counts its
// life from the first sight is used up, whatever becomes of the hash.
func TestRevokedSequence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		token := b.token(func(c *cwt.Claims) { c.ExpiresIn, c.Expires, c.ID = 60, 0, append([]byte("rs2"), 5) })
		if err := b.Revoke(t.Context(), cwt.Hash(token)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
			t.Errorf("revoked: %v", err)
		}
		time.Sleep(61 * time.Second)
		if _, err := b.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := b.store.Update(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Exec(`DELETE FROM ace_revoked`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.post(outside(), token); code(err) != coap.Unauthorized {
			t.Errorf("without the hash: %v", err)
		}
	})
}

func goodTRL(n int) []byte {
	set := make([][]byte, n)
	for i := range set {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		set[i] = append([]byte{1}, sum[:]...)
	}
	return cose.MustMarshal(map[int64]any{trlFullSet: set, 2: 5})
}

func TestDecodeTRL(t *testing.T) {
	good := goodTRL(3)
	for n := range good {
		if _, _, err := decodeTRL(good[:n]); err == nil {
			t.Errorf("%d bytes of %d read", n, len(good))
		}
	}
	if h, others, err := decodeTRL(good); err != nil || len(h) != 3 || others != 0 {
		t.Errorf("%d hashes, %d others, %v", len(h), others, err)
	}
	// RFC 9770: {0: []}.
	if h, _, err := decodeTRL([]byte{0xa1, 0, 0x80}); err != nil || len(h) != 0 {
		t.Error(h, err)
	}
	if h, others, err := decodeTRL(cose.MustMarshal(map[int64]any{0: [][]byte{append([]byte{7}, make([]byte, 48)...)}})); err != nil || len(h) != 0 || others != 1 {
		t.Error(h, others, err)
	}
	if h, _, err := decodeTRL(goodTRL(7000)); err != nil || len(h) != 7000 {
		t.Error(len(h), err)
	}
	if _, _, err := decodeTRL(make([]byte, maxTRL+1)); err == nil {
		t.Error("read beyond the limit")
	}
}

func FuzzDecodeTRL(f *testing.F) {
	f.Add(goodTRL(2))
	f.Add([]byte{0xa1, 0, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		hashes, _, err := decodeTRL(b)
		for _, h := range hashes {
			if err != nil || len(h) != 33 || h[0] != 1 {
				t.Errorf("%x", h)
			}
		}
	})
}
