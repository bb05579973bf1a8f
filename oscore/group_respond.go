package oscore

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Values of the challenges to clients whose requests may be old.
const (
	// groupEchoLen is the length of an Echo value in bytes: random, so that it is
	// never the same twice (RFC 9175, Section 5).
	groupEchoLen = 8
	// groupEchoLife is how long a challenge may be answered: the client has only to
	// send once more.
	groupEchoLife = time.Minute
)

// takeEcho says whether an Echo value is the one of the newest challenge, which is
// then used up. The group's lock is held.
func (s *recipientState) takeEcho(echo []byte) bool {
	if s.echo == nil || time.Since(s.echoAt) > groupEchoLife || subtle.ConstantTimeCompare(s.echo, echo) != 1 {
		return false
	}
	s.echo = nil
	return true
}

// Protect protects a response in the mode of the request.
//
// All responses are protected with the newest keying material. The first may go
// without a Partial IV of its own when that is what the request had; every other
// has one.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 7.3 and 8.5.
func (x *GroupRequest) Protect(ctx context.Context, buf *Buffer, resp *coap.Message) (*coap.Message, error) {
	return x.ProtectIn(ctx, buf, x.mode, resp)
}

// ProtectIn is Protect in the given mode.
func (x *GroupRequest) ProtectIn(ctx context.Context, buf *Buffer, mode Mode, resp *coap.Message) (*coap.Message, error) {
	return x.protect(ctx, buf, mode, resp, false)
}

// Challenge makes the answer to a request that was refused with [ErrNotFresh]: a
// protected 4.01 with an Echo option alone. typ, id and token of the message are
// for the caller to set.
//
// draft-ietf-core-oscore-groupcomm-28, Section 9.
func (x *GroupRequest) Challenge(ctx context.Context, buf *Buffer) (*coap.Message, error) {
	echo := make([]byte, groupEchoLen)
	_, _ = rand.Read(echo) // never fails
	resp := &coap.Message{Code: coap.Unauthorized}
	resp.Options.Set(coap.Echo, echo)
	m, err := x.protect(ctx, buf, x.mode, resp, true)
	if err != nil {
		return nil, err
	}
	x.g.mu.Lock()
	x.state.echo, x.state.echoAt = echo, time.Now()
	x.g.mu.Unlock()
	return m, nil
}

// protect protects a response; own asks for a Partial IV of its own.
func (x *GroupRequest) protect(ctx context.Context, buf *Buffer, mode Mode, resp *coap.Message, own bool) (*coap.Message, error) {
	if !resp.Code.IsResponse() {
		return nil, errNoResponse
	}
	resp, err := toEnd.outgoing(resp)
	if err != nil {
		return nil, err
	}
	c, s, err := x.g.responseContext(x.context)
	if err != nil {
		return nil, err
	}
	if mode == GroupMode && !c.suite.group || mode == PairwiseMode && !c.suite.pairwise {
		return nil, ErrMode
	}
	by, sign := s.cipher, s.sign
	if mode == PairwiseMode {
		pair, err := x.pair(c, s)
		if err != nil {
			return nil, err
		}
		by, sign = pair.send, nil
	}
	w := groupScratches.Get().(*groupScratch)
	defer w.release()
	if w.plain, err = toEnd.appendPlaintext(w.plain[:0], resp); err != nil {
		return nil, err
	}

	// Section 7.3: not the first response, or another Security Context than the
	// request's, which another own Sender ID is as well.
	x.mu.Lock()
	own = own || x.answered || c != x.context || s != x.sender
	x.answered = true
	x.mu.Unlock()
	opt := Option{Group: mode == GroupMode}
	m := &w.message
	*m = groupMessage{
		aad: groupAAD{requestKID: x.kid, requestPIV: x.piv, requestGid: x.context.gid, senderCred: s.cred, gmCred: c.gmCred},
		gid: c.gid, pivID: x.kid, piv: x.piv,
	}
	if own {
		if opt.PIV, err = s.nextPIV(ctx, w.piv[:0]); err != nil {
			return nil, err
		}
		m.pivID, m.piv = s.id, opt.PIV
	}
	if !bytes.Equal(c.gid, x.context.gid) {
		opt.KIDContext = c.gid
	}
	if x.mode == GroupMode || x.tell(s) {
		opt.KID = s.id
	}
	// The option's value and behind it the payload.
	out := outputBuffer(buf)
	value, err := opt.Append(out.roomFor(2 + maxPIV + len(s.id) + len(c.gid) + len(w.plain) + by.tag + c.suite.sigLen))
	if err != nil {
		return nil, err
	}
	m.aad.option = value
	sealed, err := c.seal(w, value, by, sign, m, w.plain)
	if err != nil {
		return nil, err
	}
	return out.protected(toEnd, resp, value[:len(value):len(value)], sealed[len(value):]), nil
}

// tell says whether the client has to be told the own Sender ID, because it
// changed since the last response to it.
func (x *GroupRequest) tell(s *groupSender) bool {
	x.g.mu.Lock()
	defer x.g.mu.Unlock()
	if x.state.told >= s.change {
		return false
	}
	x.state.told = s.change
	return true
}

// pair gives the pairwise keys shared with the client under the newest material,
// whatever its Sender ID there: only its credential counts.
func (x *GroupRequest) pair(c *groupContext, s *groupSender) (*pairCiphers, error) {
	x.g.mu.Lock()
	r := c.recipientLocked(x.kid)
	x.g.mu.Unlock()
	if r == nil || !bytes.Equal(r.cred, x.recipient.cred) {
		var err error
		if r, err = c.newRecipient(x.kid, x.recipient.cred); err != nil {
			return nil, err
		}
	}
	return x.g.pairOf(c, s, r)
}
