package crash

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/ace/cwt"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// standing is what a client knows about its membership.
type standing int

const (
	outside   standing = iota // no member, the gateway said so or was never asked
	inside                    // member, acknowledged
	uncertain                 // a request was cut off: doubt says which
)

// doubt is the kind of request that was cut off.
type doubt int

const (
	joining  doubt = iota + 1 // it was outside: member or not
	changing                  // it was inside: its old Sender ID or a new one
	ending                    // it was inside: member or not
)

// client is one node. Its lives follow each other: each has an access token, a
// key and so an identity of its own.
type client struct {
	w       *world
	id      int
	group   string
	roles   groupcomm.Roles
	anchor  bool // never leaves and is never evicted
	mqtt    bool
	cast    bool // listens to IP multicast
	follows bool
	rng     *mathrand.Rand

	// mu is held by whoever changes the membership: the client or the operator.
	mu     sync.Mutex
	life   *life
	at     standing
	doubt  doubt
	since  uint64 // floor of the version when the request in doubt was sent
	node   string // name of the membership; "" when a first join is in doubt
	sid    groupcomm.SenderID
	serial int // counts what was given to this client

	pollEvery time.Duration // while it follows

	pin      *site                    // where it connects, if that matters
	site     atomic.Pointer[site]     // where it connected last; nil: there is one gateway
	siteLife atomic.Pointer[siteLife] // that gateway's life
	observed atomic.Int64             // rekeys that notifications brought

	following atomic.Bool
	stop      context.CancelFunc // ends Follow
	wg        sync.WaitGroup
}

// life is one access token and what hangs on it.
type life struct {
	access   node.Access
	conveyed bool // the token goes in psk_identity, not to /authz-info
	stored   bool // the gateway answered in a way that only a stored token gets
	conveys  int  // handshakes with the token that were begun
	asked    bool // a join was sent over the newest of them
	unsureNS bool // N_S may be that of a handshake that was cut off
	transfer *groupcomm.TokenTransferResponse
	member   *node.Member
	joined   node.Event // the latest

	mu sync.Mutex
	t  node.Transport // nil: no association
}

func (l *life) transport() node.Transport {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.t
}

func (l *life) setTransport(t node.Transport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = t
}

// who names the membership and its Sender ID in the ledger.
func (c *client) who() string { return fmt.Sprintf("%x/%d", c.life.access.KID, c.serial) }

// newLife mints an access token with the issuer's key.
func (c *client) newLife() *life {
	kid, key := make([]byte, 8), make([]byte, 16)
	rand.Read(kid)
	rand.Read(key)
	scope := groupcomm.Scope{{Group: c.group, Roles: c.roles}}
	now := time.Now()
	claims := &cwt.Claims{
		Issuer: issuer, Audience: []string{audience}, IssuedAt: now.Unix(), Expires: now.Add(24 * time.Hour).Unix(),
		ID: kid, Cnf: &cwt.Confirmation{Key: &cose.Key{Kty: cose.KtySymmetric, KID: kid, K: key}},
		Scope: groupcomm.EncodeTokenScope(scope, false),
	}
	token, err := cwt.Seal(cwt.Protection{Alg: cose.AlgAESCCM16_64_128, Key: c.w.issuerKey}, claims.Encode())
	if err != nil {
		panic(err) // the arguments are constants but for random bytes
	}
	return &life{
		access:   node.Access{Token: token, KID: kid, Key: cose.NewSecret(key), Scope: scope},
		conveyed: c.rng.IntN(2) == 0,
	}
}

// run works until ctx ends.
func (c *client) run(ctx context.Context) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.hangUp()
	}()
	for ctx.Err() == nil {
		c.step(ctx)
		c.think(ctx)
	}
}

// think is the pause between two requests.
func (c *client) think(ctx context.Context) {
	t := time.NewTimer(time.Duration(c.rng.Int64N(int64(maxThink))))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// step does one thing.
func (c *client) step(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	load := ctx
	ctx, cancel := c.during(ctx)
	defer cancel()
	if c.life == nil || c.life.transport() == nil {
		c.connect(ctx)
		return
	}
	dice := c.rng.IntN(100)
	switch c.at {
	case uncertain:
		if c.doubt == joining && dice < 50 {
			c.join(ctx)
		} else {
			c.look(ctx)
		}
	case outside:
		switch {
		case dice < 15 && c.life.stored:
			c.trespass(ctx)
		case dice < 30:
			c.hangUp()
			c.life = nil
		default:
			c.join(ctx)
		}
	case inside:
		c.follow(load)
		switch {
		case dice < 30:
			c.look(ctx)
		case dice < 55:
			c.poll(ctx)
		case dice < 70:
			c.rejoin(ctx)
		case dice < 80:
			c.renew(ctx)
		case !c.anchor:
			c.leave(ctx)
		}
	}
}

// outcome is what is known after a request.
type outcome int

const (
	acked   outcome = iota
	refused         // answered: nothing changed
	unknown         // cut off: it may have happened
)

// judge says what err means and records what should not be.
func (c *client) judge(op string, err error) outcome {
	var e *node.Error
	switch {
	case err == nil:
		return acked
	case errors.As(err, &e):
		if e.Code>>5 == 5 {
			c.w.count.unavailable.Add(1)
			c.w.ledger.note(c.group, "client %d: %s: %v", c.id, op, err)
			return unknown
		}
		return refused
	case badAnswer(err):
		c.w.ledger.breach(c.group, "client %d: %s: %v", c.id, op, err)
	case !c.w.down.Load():
		c.w.lost(c, op, err)
	}
	return unknown
}

func badAnswer(err error) bool {
	return errors.Is(err, node.ErrBadAnswer) || errors.Is(err, node.ErrProof) || errors.Is(err, node.ErrUnsupported)
}

// alert says that a living gateway ended a handshake.
func alert(err error) bool { return strings.Contains(err.Error(), "alert") }

// join becomes a member, or finds out that it is one.
func (c *client) join(ctx context.Context) {
	since := c.w.ledger.floor(c.group)
	c.w.ledger.attempt(c.group) // with on_join
	c.life.asked = true
	err := c.w.during(func() error { return c.life.member.Join(ctx) })
	switch c.judge("join", err) {
	case acked:
		c.w.count.joins.Add(1)
		c.admitted(since)
	case refused:
		c.joinRefused(err)
	case unknown:
		if c.at == outside {
			c.at, c.doubt, c.since, c.node = uncertain, joining, since, ""
		}
	}
}

// rejoin gets the keying material anew and another Sender ID.
func (c *client) rejoin(ctx context.Context) {
	m := c.life.member
	again := m.Rejoin
	if _, ok := m.State(); !ok {
		again = m.Join // lost it together with an earlier life of the member
	}
	since := c.w.ledger.floor(c.group)
	err := c.w.during(func() error { return again(ctx) })
	switch c.judge("re-join", err) {
	case acked:
		c.w.count.rejoins.Add(1)
		c.admitted(since)
	case refused:
		c.joinRefused(err)
	case unknown:
		c.at, c.doubt, c.since = uncertain, changing, since
	}
}

// joinRefused judges the refusal of a join that has every right.
func (c *client) joinRefused(err error) {
	l := c.life
	var e *node.Error
	switch {
	case errors.As(err, &e) && e.Code == coap.TooManyRequests:
	case errors.Is(err, groupcomm.ErrPoP) && l.conveyed && l.unsureNS:
		// Which handshake gave N_S only the gateway knows: a post gives a new one.
		c.w.count.otherNS.Add(1)
		c.hangUp()
		l.conveyed, l.unsureNS, l.stored, l.member = false, false, false, nil
	default:
		c.w.ledger.breach(c.group, "client %d (%x): join refused: %v", c.id, l.access.KID, err)
	}
}

// admitted records an acknowledged Join Response.
func (c *client) admitted(since uint64) {
	l := c.life
	l.stored = true
	s, ok := l.member.State()
	if !ok { // the notice of an end came at once; nobody may have asked for it
		c.w.ledger.breach(c.group, "client %d (%x): the membership ended with its beginning", c.id, l.access.KID)
		return
	}
	if c.node != "" && c.at != outside && s.Node != c.node {
		c.w.ledger.breach(c.group, "node %s joined again and is called %s", c.node, s.Node)
	}
	if c.at == inside && s.SenderID != nil && bytes.Equal(s.SenderID, c.sid) {
		c.w.ledger.breach(c.group, "node %s joined again and keeps Sender ID %q", s.Node, s.SenderID)
	}
	c.serial++
	c.at, c.node, c.sid = inside, s.Node, s.SenderID
	c.w.ledger.note(c.group, "client %d: node %s is %s", c.id, c.node, c.who())
	c.w.ledger.gave(c.group, l.joined.Gid, c.sid, c.who())
	c.w.ledger.current(c.group, since, l.joined.Version, l.joined.Gid, cose.Secret{})
}

// leave ends the membership.
func (c *client) leave(ctx context.Context) {
	since := c.w.ledger.floor(c.group)
	c.w.ledger.attempt(c.group)
	err := c.w.during(func() error {
		if s, ok := c.life.member.State(); ok && s.Node == c.node {
			return c.life.member.Leave(ctx)
		}
		resp, err := c.do(ctx, coap.DELETE, "nodes", c.node)
		if err == nil && resp.Code != coap.Deleted {
			err = &node.Error{Op: "leave", Code: resp.Code, ID: problemID(resp)}
		}
		return err
	})
	switch c.judge("leave", err) {
	case acked:
		c.w.count.leaves.Add(1)
		c.ended("leave", since)
	case refused:
		c.w.ledger.breach(c.group, "client %d (%s): a member's leave is refused: %v", c.id, c.node, err)
		c.at = outside
	case unknown:
		c.at, c.doubt, c.since = uncertain, ending, since
	}
}

// ended records that the membership is over.
func (c *client) ended(why string, since uint64) {
	c.w.ledger.over(c.group, c.node, why, since)
	c.at = outside
}

// renew asks for another Sender ID, or gets the rekey that is due.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.2.
func (c *client) renew(ctx context.Context) {
	if c.roles == groupcomm.Monitor {
		return
	}
	since := c.w.ledger.floor(c.group)
	var resp *coap.Response
	err := c.w.during(func() (err error) {
		resp, err = c.do(ctx, coap.POST, "nodes", c.node)
		return err
	})
	if c.judge("renew", err) == unknown || resp.Code>>5 == 5 {
		c.at, c.doubt, c.since = uncertain, changing, since
		return
	}
	if resp.Code == coap.TooManyRequests {
		return
	}
	if resp.Code != coap.Changed {
		c.w.ledger.breach(c.group, "client %d (%s): a member's renewal is refused: %v", c.id, c.node, resp.Code)
		return
	}
	if r, err := groupcomm.DecodeRekeyMessage(resp.Payload); err == nil {
		c.w.ledger.current(c.group, since, r.Num, r.ContextID, cose.NewSecret(r.MasterSecret))
		return
	}
	r, err := groupcomm.DecodeKeyRenewal(resp.Payload)
	if err != nil || r.SenderID == nil || bytes.Equal(r.SenderID, c.sid) {
		c.w.ledger.breach(c.group, "client %d (%s): a renewal gives no new Sender ID: %v", c.id, c.node, err)
		return
	}
	c.w.count.renewals.Add(1)
	c.serial++
	c.sid = r.SenderID
	c.w.ledger.note(c.group, "client %d: node %s renewed, is %s with Sender ID %q", c.id, c.node, c.who(), c.sid)
}

// poll has the member catch up. Afterwards it holds what was current before.
func (c *client) poll(ctx context.Context) {
	m := c.life.member
	if _, ok := m.State(); !ok {
		return
	}
	since := c.w.ledger.floor(c.group)
	err := m.Poll(ctx)
	switch c.judge("poll", err) {
	case acked:
		// Without a state its end was noticed meanwhile: the next look judges that.
		if s, ok := m.State(); ok && s.Version < since {
			c.w.ledger.breach(c.group, "client %d (%s): holds version %d after a poll, but %d was shown before", c.id, c.node, s.Version, since)
		}
	case refused:
		c.w.ledger.breach(c.group, "client %d (%s): a member's poll is refused: %v", c.id, c.node, err)
	}
}

// look reads the own node resource: it settles what is uncertain, and must
// agree with what is known.
func (c *client) look(ctx context.Context) {
	since := c.w.ledger.floor(c.group)
	below := []string{"nodes", c.node}
	if c.node == "" || c.at == uncertain && c.doubt == joining {
		below = []string{"num"}
	}
	resp, err := c.do(ctx, coap.GET, below...)
	if c.judge("look", err) != acked {
		return
	}
	switch {
	case resp.Code == coap.Forbidden && problemID(resp) == groupcomm.ErrNotMember.ID:
		c.life.stored = true
		c.notMember()
	case resp.Code != coap.Content:
		if resp.Code>>5 != 5 {
			c.w.ledger.breach(c.group, "client %d (%s): GET %v is answered %v", c.id, c.node, below, resp.Code)
		}
	case below[0] == "num":
		c.life.stored = true // a member: its next join tells the rest
	default:
		d, err := groupcomm.DecodeKeyDistribution(resp.Payload)
		if err != nil {
			c.w.ledger.breach(c.group, "client %d (%s): %v", c.id, c.node, err)
			return
		}
		c.life.stored = true
		c.w.ledger.current(c.group, since, d.Num, d.Key.ContextID, cose.NewSecret(d.Key.MasterSecret))
		c.isMember(d)
	}
}

// isMember is what the node resource says.
func (c *client) isMember(d *groupcomm.KeyDistribution) {
	if !bytes.Equal(d.Key.SenderID, c.sid) {
		if c.at != uncertain || c.doubt != changing {
			c.w.ledger.breach(c.group, "node %s has Sender ID %q, but was given %q", c.node, d.Key.SenderID, c.sid)
		}
		c.serial++
		c.sid = d.Key.SenderID
		c.w.ledger.note(c.group, "client %d: node %s is now %s with Sender ID %q", c.id, c.node, c.who(), c.sid)
	}
	c.at = inside
	c.w.ledger.holds(c.group, d.Key.ContextID, c.sid, c.who())
}

// notMember is what a refusal says.
func (c *client) notMember() {
	switch {
	case c.at == uncertain && c.doubt == ending:
		c.ended("an end that was cut off", c.since)
	case c.at == uncertain && c.doubt == joining:
		c.at = outside
	default:
		c.w.ledger.breach(c.group, "node %s is a member no more, and nobody ended that", c.node)
		c.at = outside
	}
}

// trespass asks for the keys from outside.
func (c *client) trespass(ctx context.Context) {
	resp, err := c.do(ctx, coap.GET)
	if c.judge("trespass", err) != acked || resp.Code>>5 == 5 {
		return
	}
	c.w.count.trespasses.Add(1)
	if resp.Code != coap.Forbidden || problemID(resp) != groupcomm.ErrNotMember.ID {
		c.w.ledger.breach(c.group, "client %d (%x): GET by a node that is no member is answered %v", c.id, c.life.access.KID, resp.Code)
	}
}

// do sends a request for the group or below.
func (c *client) do(ctx context.Context, code coap.Code, below ...string) (*coap.Response, error) {
	t := c.life.transport()
	if t == nil {
		return nil, node.ErrLost
	}
	req := &coap.Request{Code: code}
	req.Options.SetPath(append([]string{"ace-group", c.group}, below...)...)
	return t.Do(ctx, req)
}

// problemID is the ACE Groupcomm Errors identifier of a refusal.
func problemID(r *coap.Response) int {
	if f, ok := r.Options.ContentFormat(); !ok || f != coap.ProblemDetails {
		return node.NoID
	}
	p, err := coap.DecodeProblem(r.Payload)
	if err != nil {
		return node.NoID
	}
	return p.ID
}
