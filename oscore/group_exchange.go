package oscore

import (
	"bytes"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// maxResponders bounds the servers that one request collects responses of.
const maxResponders = 1024

// GroupExchange is what a client keeps of a request, to read the responses to it:
// of many servers, several of each, across rekeys and new Sender IDs of its own. Its
// methods may be called from several goroutines.
//
// draft-ietf-core-oscore-groupcomm-28, Section 5.1.
type GroupExchange struct {
	g          *Group
	life       uint64        // membership that began it
	request    *groupContext // that the request was protected with
	kid, piv   []byte        // of the request
	pivRoom    [maxPIV]byte
	target     []byte // Sender ID of the one server; nil: a group request
	targetCred []byte
	long       bool // more than one response may come
	observe    bool

	mu         sync.Mutex
	responders []groupResponder // guarded by mu
	over       bool             // guarded by mu: no response is taken any more
}

// groupResponder is what is known of the responses of one server.
type groupResponder struct {
	kid     []byte
	cred    []byte        // which is its identity
	context *groupContext // of the newest response

	bare     bool       // one without a Partial IV came
	numbered bool       // one with came
	highest  uint64     // Response Number
	window   windowBits // of those up to it
}

// GroupResponder says whose response was read, and where it belongs among the
// responses of the same server. It is in the memory of the Buffer, valid until that is
// used again; KID, Credential and Gid are not to be changed, and may be kept.
type GroupResponder struct {
	KID        []byte // Sender ID of the server
	Credential []byte // of the server, which is its identity
	Gid        []byte // of the keying material of the response
	Mode       Mode
	// Number orders the responses of one server under one Gid. Numbered is false for
	// the one response without, which is the oldest.
	Number   uint64
	Numbered bool
}

// Pairwise says whether the request was for one server.
func (x *GroupExchange) Pairwise() bool { return x.target != nil }

// Close ends the exchange: responses are refused from then on.
func (x *GroupExchange) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = true
}

var groupExchanges = sync.Pool{New: func() any { return new(GroupExchange) }}

// Recycle ends the exchange and gives its memory to a later one: it must not be used
// any more, by anybody. It is for who sends so many requests that their memory counts;
// others leave that to the garbage collector.
func (x *GroupExchange) Recycle() {
	clear(x.responders)
	*x = GroupExchange{responders: x.responders[:0]}
	groupExchanges.Put(x)
}

// Unprotect verifies and decrypts a response. On an error nothing has changed, and
// the response is not to be used.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 5.3.1, 7.4 and 8.6.
func (x *GroupExchange) Unprotect(buf *Buffer, resp *coap.Message) (*coap.Message, *GroupResponder, error) {
	if !resp.Code.IsResponse() {
		return nil, nil, errNoResponse
	}
	opt, err := received(resp)
	if err != nil {
		return nil, nil, err
	}
	value, _ := resp.Options.Get(coap.OSCOREOption)
	if opt.KID == nil {
		// Section 3.2: left out only in answers to a request in pairwise mode.
		if x.target == nil {
			return nil, nil, ErrOption
		}
		opt.KID = x.target
	}
	g := x.g
	g.mu.Lock()
	contexts := g.contextsLocked(opt.KIDContext)
	if x.life != g.life {
		contexts = [3]*groupContext{}
	}
	g.mu.Unlock()
	last, in := ErrContext, inputBuffer(buf)
	for _, c := range contexts {
		// Section 7.3: under other material it has a Partial IV.
		if c == nil || opt.PIV == nil && c != x.request {
			continue
		}
		inner, who, err := x.unprotect(in, resp, c, opt, value)
		if err == nil {
			return inner, who, nil
		}
		last = err
	}
	return nil, nil, last
}

func (x *GroupExchange) unprotect(in *Buffer, resp *coap.Message, c *groupContext, opt Option, value []byte) (*coap.Message, *GroupResponder, error) {
	g := x.g
	if opt.Group && !c.suite.group || !opt.Group && !c.suite.pairwise {
		return nil, nil, ErrMode
	}
	g.mu.Lock()
	s, known := c.sender, c.recipientLocked(opt.KID)
	g.mu.Unlock()
	if s == nil {
		return nil, nil, ErrMode
	}
	if bytes.Equal(s.id, opt.KID) {
		return nil, nil, ErrOwnMessage
	}
	m := groupMessage{
		aad: groupAAD{requestKID: x.kid, requestPIV: x.piv, requestGid: x.request.gid, option: value, gmCred: c.gmCred},
		gid: c.gid, pivID: x.kid, piv: x.piv,
	}
	who := &in.from
	*who = GroupResponder{Gid: c.gid}
	if opt.PIV != nil {
		m.pivID, m.piv = opt.KID, opt.PIV
		who.Number, who.Numbered = pivNumber(opt.PIV), true
	}
	if !opt.Group {
		who.Mode = PairwiseMode
	}
	plain, r, err := g.openFrom(c, s, known, opt, m, in, resp.Payload)
	if err != nil {
		return nil, nil, err
	}
	// Section 7.4: the same server is who has the same public key.
	if x.target != nil && !bytes.Equal(r.cred, x.targetCred) {
		return nil, nil, ErrWrongServer
	}
	inner, err := in.unprotected(toEnd, resp, plain, false)
	if err != nil {
		return nil, nil, err
	}
	who.KID, who.Credential = r.id, r.cred

	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.acceptLocked(c, who); err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if c == g.now || c == g.next || c == g.old {
		g.keepLocked(c, r)
	}
	return inner, who, nil
}

// acceptLocked holds the order of responses and refuses replays. It changes
// something only when it accepts.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 5.3.1 and 7.4.
func (x *GroupExchange) acceptLocked(c *groupContext, who *GroupResponder) error {
	if x.over {
		return ErrReplay
	}
	at := slices.IndexFunc(x.responders, func(r groupResponder) bool { return bytes.Equal(r.cred, who.Credential) })
	var r groupResponder
	switch {
	case at < 0 && len(x.responders) >= maxResponders:
		return ErrTooMany
	case at < 0:
		r = groupResponder{kid: who.KID, cred: who.Credential, context: c}
	default:
		r = x.responders[at]
	}
	switch {
	case !bytes.Equal(r.kid, who.KID):
		// Section 7.4: a server that changed its Sender ID within a long exchange can
		// no longer be ordered.
		return ErrWrongServer
	case c.epoch < r.context.epoch:
		return ErrReplay // older material than what this server used already
	case c != r.context:
		// A new Security Context: the Response Number is not initialized.
		r = groupResponder{kid: r.kid, cred: r.cred, context: c, bare: r.bare}
	}
	switch {
	case !who.Numbered:
		if r.bare || x.observe && r.numbered {
			return ErrReplay
		}
		r.bare = true
	case x.observe && r.numbered && who.Number <= r.highest:
		// RFC 8613, Section 4.1.3.5.2: notifications only go forward.
		return ErrReplay
	default:
		if !r.numbered {
			r.window.reset(0)
		}
		if !r.window.accept(who.Number) {
			return ErrReplay
		}
		r.numbered, r.highest = true, max(r.highest, who.Number)
	}
	if at < 0 {
		x.responders = append(x.responders, r)
	} else {
		x.responders[at] = r
	}
	if !x.long {
		x.over = true
	}
	return nil
}
