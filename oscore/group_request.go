package oscore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// Mode is one of the two modes of Group OSCORE.
type Mode uint8

// The modes.
const (
	GroupMode    Mode = iota // signed, for any number of recipients
	PairwiseMode             // for one recipient, by static Diffie-Hellman
)

func (m Mode) String() string {
	if m == PairwiseMode {
		return "pairwise"
	}
	return "group"
}

// ProtectRequest protects a request in group mode, for any number of servers. The
// exchange reads their responses. The message is in the memory of buf and valid until
// its next use; nil stands for a new one. It is so with all methods here.
//
// A request that echoes a challenge is for one server: where the group has the
// pairwise mode, it is an error here.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 7.1 and 9.
func (g *Group) ProtectRequest(ctx context.Context, buf *Buffer, req *coap.Message) (*coap.Message, *GroupExchange, error) {
	c, s, err := g.senderContext()
	if err != nil {
		return nil, nil, err
	}
	if !c.suite.group {
		return nil, nil, ErrMode
	}
	if c.suite.pairwise && req.Options.Has(coap.Echo) {
		return nil, nil, errEchoMode
	}
	return g.protectRequest(ctx, buf, req, c, s, nil)
}

// ProtectRequestTo protects a request in pairwise mode, for the member with the
// Sender ID kid.
//
// draft-ietf-core-oscore-groupcomm-28, Section 8.3.
func (g *Group) ProtectRequestTo(ctx context.Context, buf *Buffer, kid []byte, req *coap.Message) (*coap.Message, *GroupExchange, error) {
	c, s, err := g.senderContext()
	if err != nil {
		return nil, nil, err
	}
	if !c.suite.pairwise {
		return nil, nil, ErrMode
	}
	if bytes.Equal(kid, s.id) {
		return nil, nil, errOwnPeer
	}
	g.mu.Lock()
	var r *groupRecipient
	if e := c.recipients[string(kid)]; e != nil {
		c.recency.MoveToFront(e)
		r = e.Value.(*groupRecipient)
	}
	g.mu.Unlock()
	if r == nil {
		if r, err = g.candidates(c, kid, nil, func(*groupRecipient) error { return nil }); err != nil {
			return nil, nil, err
		}
		g.mu.Lock()
		g.keepLocked(c, r)
		g.mu.Unlock()
	}
	return g.protectRequest(ctx, buf, req, c, s, r)
}

// protectRequest protects for r, or in group mode when that is nil.
func (g *Group) protectRequest(ctx context.Context, buf *Buffer, req *coap.Message, c *groupContext, s *groupSender, r *groupRecipient) (*coap.Message, *GroupExchange, error) {
	if !req.Code.IsRequest() {
		return nil, nil, errNoRequest
	}
	req, err := toEnd.outgoing(req)
	if err != nil {
		return nil, nil, err
	}
	by, sign := s.cipher, s.sign
	if r != nil {
		pair, err := g.pairOf(c, s, r)
		if err != nil {
			return nil, nil, err
		}
		by, sign = pair.send, nil
	}
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	if w.plain, err = toEnd.appendPlaintext(w.plain[:0], req); err != nil {
		return nil, nil, err
	}
	piv, err := s.nextPIV(ctx, w.piv[:0])
	if err != nil {
		return nil, nil, err
	}
	// The option's value and behind it the payload.
	opt := Option{Group: r == nil, PIV: piv, KID: s.id, KIDContext: c.gid}
	out := outputBuffer(buf)
	value, err := opt.Append(out.roomFor(2 + len(piv) + len(s.id) + len(c.gid) + len(w.plain) + by.tag + c.suite.sigLen))
	if err != nil {
		return nil, nil, err
	}
	w.message = groupMessage{
		aad: groupAAD{
			requestKID: s.id, requestPIV: piv, requestGid: c.gid,
			option: value, senderCred: s.cred, gmCred: c.gmCred,
		},
		gid: c.gid, pivID: s.id, piv: piv, request: true,
	}
	sealed, err := c.seal(w, value, by, sign, &w.message, w.plain)
	if err != nil {
		return nil, nil, err
	}
	x := groupExchanges.Get().(*GroupExchange)
	x.g, x.life, x.request, x.kid, x.pivRoom, x.long = g, c.life, c, s.id, w.piv, r == nil
	x.piv = x.pivRoom[:len(piv)]
	if r != nil {
		x.target, x.targetCred = r.id, r.cred
	}
	if v, ok := req.Options.Uint(coap.ObserveOption); ok && v == 0 {
		x.observe, x.long = true, true
	}
	return out.protected(toEnd, req, value[:len(value):len(value)], sealed[len(value):]), x, nil
}

// GroupRequest is a request that was read, and protects the responses to it. Its
// methods may be called from several goroutines.
type GroupRequest struct {
	g         *Group
	mode      Mode
	context   *groupContext // that it was protected with
	sender    *groupSender  // own Sender Context when it came; nil: silent
	kid, piv  []byte
	recipient *groupRecipient
	state     *recipientState
	pivRoom   [maxPIV]byte

	mu       sync.Mutex
	answered bool // guarded by mu: a response was protected
}

var groupRequests = sync.Pool{New: func() any { return new(GroupRequest) }}

// Recycle gives the memory of a request to a later one: it must not be used any more,
// by anybody. It is for who serves so many that their memory counts; others leave that
// to the garbage collector.
func (x *GroupRequest) Recycle() {
	*x = GroupRequest{}
	groupRequests.Put(x)
}

// Mode is how the request was protected.
func (x *GroupRequest) Mode() Mode { return x.mode }

// Sender is the Sender ID of the client. It is no identity: the credential is.
func (x *GroupRequest) Sender() []byte { return bytes.Clone(x.kid) }

// Credential is that of the client, as the request was verified with it.
func (x *GroupRequest) Credential() []byte { return bytes.Clone(x.recipient.cred) }

// Gid is the Group Identifier that the request was protected under.
func (x *GroupRequest) Gid() []byte { return bytes.Clone(x.context.gid) }

// UnprotectRequest verifies and decrypts a request of another member.
//
// On an error nothing has changed, but that a request that a [GroupStore] could not
// keep is not accepted again, and [Group.ErrorResponse] says what may be
// answered. With [ErrNotFresh] the request is genuine but may be an old one: then
// the [GroupRequest] is returned as well, for [GroupRequest.Challenge].
//
// draft-ietf-core-oscore-groupcomm-28, Sections 6, 7.2, 8.4 and 9.
func (g *Group) UnprotectRequest(buf *Buffer, req *coap.Message) (*coap.Message, *GroupRequest, error) {
	return g.readRequest(buf, req, false)
}

// Reopen verifies a request that was received before, perhaps before a restart, so that
// it can be answered; what it asks for is not told, as it is not to be done again. One
// that was never received is an error.
//
// The response has a Partial IV of its own: one with that of the request may be out.
func (g *Group) Reopen(req *coap.Message) (*GroupRequest, error) {
	_, x, err := g.readRequest(nil, req, true)
	return x, err
}

func (g *Group) readRequest(buf *Buffer, req *coap.Message, again bool) (*coap.Message, *GroupRequest, error) {
	if !req.Code.IsRequest() {
		return nil, nil, errNoRequest
	}
	opt, err := received(req)
	if err != nil {
		return nil, nil, err
	}
	// Section 3.2: a request has them all.
	if opt.KID == nil || opt.KIDContext == nil || opt.PIV == nil {
		return nil, nil, ErrOption
	}
	value, _ := req.Options.Get(coap.OSCOREOption)
	g.mu.Lock()
	contexts := g.contextsLocked(opt.KIDContext)
	g.mu.Unlock()
	last, in := ErrContext, inputBuffer(buf)
	for _, c := range contexts {
		if c == nil {
			continue
		}
		plain, x, err := g.unprotectRequest(in, req, c, opt, value, again)
		if err == nil || x != nil {
			return plain, x, err
		}
		last = err
	}
	return nil, nil, last
}

func (g *Group) unprotectRequest(in *Buffer, req *coap.Message, c *groupContext, opt Option, value []byte, again bool) (*coap.Message, *GroupRequest, error) {
	if opt.Group && !c.suite.group || !opt.Group && !c.suite.pairwise {
		return nil, nil, ErrMode
	}
	seq := pivNumber(opt.PIV)
	g.mu.Lock()
	s := c.sender
	replayed := false
	known := c.recipientLocked(opt.KID)
	if known != nil {
		replayed = known.state.window.Valid() && !known.state.window.Fresh(seq)
	}
	g.mu.Unlock()
	switch {
	case s != nil && bytes.Equal(s.id, opt.KID):
		return nil, nil, ErrOwnMessage
	case !opt.Group && s == nil:
		return nil, nil, ErrMode // a silent server has no pairwise mode
	case replayed && !again:
		return nil, nil, ErrReplay
	}
	plain, r, err := g.openFrom(c, s, known, opt, groupMessage{
		aad: groupAAD{requestKID: opt.KID, requestPIV: opt.PIV, requestGid: c.gid, option: value, gmCred: c.gmCred},
		gid: c.gid, pivID: opt.KID, piv: opt.PIV, request: true,
	}, in, req.Payload)
	if err != nil {
		return nil, nil, err
	}
	inner, err := in.unprotected(toEnd, req, plain, true)
	if err != nil {
		return nil, nil, err
	}
	x := groupRequests.Get().(*GroupRequest)
	x.g, x.context, x.sender, x.kid, x.recipient = g, c, s, r.id, r
	x.piv = append(x.pivRoom[:0], opt.PIV...)
	if !opt.Group {
		x.mode = PairwiseMode
	}
	if again {
		x.answered = true
		if err := g.received(x, seq); err != nil {
			return nil, nil, err
		}
		return nil, x, nil
	}
	echo, echoed := inner.Options.Get(coap.Echo)
	// Section 9: where the group has the pairwise mode, only that answers a
	// challenge; a request in group mode could have been sent on by somebody else.
	echoed = echoed && (x.mode == PairwiseMode || !c.suite.pairwise)

	kept, err := g.accept(x, seq, echoed, echo)
	switch {
	case errors.Is(err, ErrNotFresh):
		return nil, x, err
	case err != nil:
		return nil, nil, err
	}
	if g.cfg.Store != nil {
		if err := g.cfg.Store.Keep(c.stored, r.id, kept); err != nil {
			return nil, nil, fmt.Errorf("oscore: keep the Replay Window: %w", err)
		}
	}
	return inner, x, nil
}

// received makes sure that a request was received before.
func (g *Group) received(x *GroupRequest, seq uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.context != g.now && x.context != g.next && x.context != g.oldLocked() {
		return ErrContext
	}
	x.state = g.keepLocked(x.context, x.recipient)
	if w := x.state.window; !w.Valid() || w.Fresh(seq) {
		return errors.New("oscore: the request was not received before")
	}
	return nil
}

// accept takes a request as received, and gives what is to be stored of that.
func (g *Group) accept(x *GroupRequest, seq uint64, echoed bool, echo []byte) (WindowState, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x.context != g.now && x.context != g.next && x.context != g.oldLocked() {
		return WindowState{}, ErrContext // left or rekeyed meanwhile
	}
	x.state = g.keepLocked(x.context, x.recipient)
	switch {
	case x.state.window.Valid():
		if !x.state.window.Accept(seq) {
			return WindowState{}, ErrReplay
		}
	case echoed && x.state.takeEcho(echo):
		x.state.window.Recover(seq)
	default:
		return WindowState{}, ErrNotFresh
	}
	return x.state.window.State(), nil
}

// openFrom verifies and decrypts a message of the member opt.KID with what is
// known of it, beginning with the Recipient Context known, and gives that which did.
func (g *Group) openFrom(c *groupContext, s *groupSender, known *groupRecipient, opt Option, m groupMessage, in *Buffer, payload []byte) ([]byte, *groupRecipient, error) {
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	w.message = m
	if known != nil {
		plain, err := g.openBy(w, c, s, known, opt.Group, in, payload)
		if err == nil {
			return plain, known, nil
		}
	}
	var plain []byte
	r, err := g.candidates(c, opt.KID, known, func(r *groupRecipient) (err error) {
		plain, err = g.openBy(w, c, s, r, opt.Group, in, payload)
		return err
	})
	return plain, r, err
}

// openBy verifies and decrypts the message w.message with a Recipient Context.
func (g *Group) openBy(w *groupScratch, c *groupContext, s *groupSender, r *groupRecipient, group bool, in *Buffer, payload []byte) ([]byte, error) {
	by, verify := r.cipher, r.verify
	if !group {
		pair, err := g.pairOf(c, s, r)
		if err != nil {
			return nil, ErrDecrypt
		}
		by, verify = pair.receive, nil
	}
	w.message.aad.senderCred = r.cred
	plain, err := c.open(w, in.roomFor(len(payload)), by, verify, &w.message, payload)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plain, nil
}
