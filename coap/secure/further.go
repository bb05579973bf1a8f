package secure

import (
	"context"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// served is the context of a request that was protected, while it is answered.
type served struct {
	context.Context
	link    *link
	token   []byte
	ex      oscore.Exchange
	further bool // it has more responses than one
}

type servedKey struct{}

// Value is that of what came over the outer link, and the request itself.
func (s *served) Value(key any) any {
	if key == (servedKey{}) {
		return s
	}
	return s.Context.Value(key)
}

// answers is the link for the responses after the first to one request, which is no
// observation of a topic: what members of a group say through the proxy. The server
// core bounds them for each context.
type answers struct {
	*link
	token string
	ex    oscore.Exchange
}

// Answers implements [coap.Answerer]. Further responses are bound to their request
// although others have its token by then, and do not end with one without Observe: that
// is one member's.
func (c *link) Answers(ctx context.Context) (coap.Link, func()) {
	s, ok := ctx.Value(servedKey{}).(*served)
	if !ok || s.link != c {
		return c, func() {}
	}
	s.further = true
	a := &answers{link: c, token: string(s.token), ex: s.ex}
	c.layer.answer(a, true)
	return a, func() { c.layer.answer(a, false) }
}

// Send protects a further response ([oscore.Context.ProtectFurther]) and hands it to the
// outer link.
func (a *answers) Send(m *coap.Message, done func(error)) {
	a.SendYielding(m, coap.Yielding{}, done)
}

// SendYielding is Send of what gives way to a newer one.
func (a *answers) SendYielding(m *coap.Message, y coap.Yielding, done func(error)) {
	a.send(bound{ex: a.ex}, m, y, false, done)
}

func (l *Layer) answer(a *answers, begins bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if begins {
		l.answering[a] = struct{}{}
	} else {
		delete(l.answering, a)
	}
	l.metrics.answering.Set(float64(len(l.answering)))
}

// Cancel is told that the peer of an outer link rejected a message that was not
// confirmable, by its token. Further responses to a request end
// (draft-ietf-core-groupcomm-proxy-07, Section 5.1.3), and so does an observation (RFC
// 7641, Section 3.6) where the Reset shows who sent it. Over plain UDP anybody may have
// written it, and whose notifications are protected shall not lose them to a guess of 16
// bits: the next notification is confirmable, and what the peer says to that counts.
func (l *Layer) Cancel(outer coap.LinkID, token []byte) {
	var ends []coap.LinkID
	var observing []*link
	l.mu.Lock()
	for a := range l.answering {
		if a.token == string(token) && a.outerID == outer {
			ends = append(ends, a.stored.Link)
		}
	}
	if rest := l.using[outer]; rest > 0 {
		for _, c := range l.live {
			if c.outerID != outer {
				continue
			}
			observing = append(observing, c)
			if rest--; rest == 0 {
				break
			}
		}
	}
	l.mu.Unlock()
	for _, id := range ends {
		l.cfg.Server.Cancel(id, token)
	}
	for _, c := range observing {
		carrier := c.carrier()
		if _, ok := c.registration(token); !ok || carrier == nil {
			continue
		}
		if carrier.Peer().Via == coap.Plain {
			l.cfg.Server.Doubt(c.stored.Link, token)
			continue
		}
		c.release(token)
		l.cfg.Server.Cancel(c.stored.Link, token)
	}
}
