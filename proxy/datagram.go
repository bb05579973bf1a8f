package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// waiter is a request of ours, and the observation that it may begin.
type waiter struct {
	id     uint16
	events chan event
	ping   bool                // over TCP: a Pong answers it, and nothing else
	answer bool                // the first response was delivered; guarded by the link's mu
	fn     func(*coap.Message) // takes responses after the first; nil: there are none
	misses int                 // messages of ours that ICMP says nobody took; guarded by the link's mu
	acked  bool                // guarded by the link's mu

	piggybacked bool // the acknowledgement had a response, which was delivered; guarded by the link's mu
}

type event struct {
	m   *coap.Message // nil with err, and for an acknowledgement
	err error
}

// tell never waits: who has two events to read gets no third.
func (w *waiter) tell(e event) {
	select {
	case w.events <- e:
	default:
	}
}

// datagrams is the message layer of a client (RFC 7252, Section 4) over a
// connected socket or a DTLS association.
type datagrams struct {
	conn net.Conn
	hook func() bool // undoes the end with the proxy
	gone chan struct{}

	heard atomic.Int64 // nanoseconds from born to the newest message
	born  time.Time

	mu       sync.Mutex
	err      error // why it ended; set before gone is closed
	byToken  map[string]*waiter
	byID     map[uint16]*waiter
	id       uint16
	began    time.Time // of the window in which used counts
	used     int       // message identifiers in this window
	before   int       // and in the one before
	recent   [64]uint16
	nrecent  int
	retiring bool
}

// newDatagrams takes the connection over.
func newDatagrams(p *Proxy, conn net.Conn) *datagrams {
	d := &datagrams{
		conn: conn, gone: make(chan struct{}), byToken: map[string]*waiter{}, byID: map[uint16]*waiter{},
		id: uint16(rand.Uint32()), began: time.Now(), born: time.Now(),
	}
	d.mu.Lock()
	d.hook = context.AfterFunc(p.ctx, d.close)
	d.mu.Unlock()
	if !p.spawn(d.read) {
		d.end(errClosing)
	}
	return d
}

func (d *datagrams) done() <-chan struct{} { return d.gone }

// close ends the association and everything that waits for it.
func (d *datagrams) close() { d.end(errEnded) }

func (d *datagrams) end(err error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = err
	close(d.gone)
	hook := d.hook
	d.mu.Unlock()
	hook()
	_ = d.conn.Close() // what becomes of the socket is no matter any more
}

func (d *datagrams) retire() {
	d.mu.Lock()
	d.retiring = true
	empty := len(d.byToken) == 0
	d.mu.Unlock()
	if empty {
		d.close()
	}
}

// worn: no message identifier is used twice within EXCHANGE_LIFETIME (RFC 7252,
// Section 4.4).
func (d *datagrams) worn() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.began) >= exchangeLifetime {
		d.before = d.used
		if now.Sub(d.began) >= 2*exchangeLifetime {
			d.before = 0
		}
		d.began, d.used = now, 0
	}
	return d.used+d.before >= maxIDs
}

// Do sends a confirmable request and waits for its response.
func (d *datagrams) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	tok := token()
	defer d.forget(string(tok))
	return d.exchange(ctx, m, string(tok), nil)
}

func (d *datagrams) observe(ctx context.Context, m *coap.Message, tok string, fn func(*coap.Message)) (*coap.Message, error) {
	return d.exchange(ctx, m, tok, fn)
}

// ping is that of RFC 7252, Section 4.3: an empty confirmable message, which is
// rejected by whoever is there.
func (d *datagrams) ping(ctx context.Context, lately time.Duration) error {
	if time.Since(d.born)-time.Duration(d.heard.Load()) < lately {
		return nil
	}
	defer d.forget("")
	_, err := d.exchange(ctx, &coap.Message{}, "", nil)
	if errors.Is(err, errSilent) || errors.Is(err, errRefused) || errors.Is(err, errEnded) || errors.Is(err, errGone) {
		return err
	}
	return nil
}

// exchange sends m with a token and waits for the first response to it; the
// retransmission is that of RFC 7252, Section 4.2.
func (d *datagrams) exchange(ctx context.Context, m *coap.Message, tok string, fn func(*coap.Message)) (*coap.Message, error) {
	w := &waiter{events: make(chan event, 2), fn: fn}
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return nil, errGone
	}
	d.id++
	d.used++
	w.id = d.id
	d.byToken[tok] = w // in the place of an earlier request with the token
	d.byID[w.id] = w
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		if d.byID[w.id] == w {
			delete(d.byID, w.id)
		}
		d.mu.Unlock()
	}()
	out := coap.Message{Type: coap.Confirmable, Code: m.Code, ID: w.id, Token: []byte(tok), Options: m.Options, Payload: m.Payload}
	b, err := out.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if _, err := d.conn.Write(b); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, d.lost(err)
	}
	coap.Waiting(ctx)
	wait := ackTimeout + time.Duration(rand.Float64()*(ackRandomFactor-1)*float64(ackTimeout))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	acked := false
	for sent := 1; ; {
		select {
		case e := <-w.events:
			switch {
			case e.err != nil:
				return nil, e.err
			case e.m != nil:
				return e.m, nil
			}
			acked = true
			timer.Stop()
		case <-timer.C:
			if sent > maxRetransmit {
				return nil, errSilent
			}
			sent++
			if _, err := d.conn.Write(b); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return nil, d.lost(err)
			}
			wait *= 2
			timer.Reset(wait)
		case <-d.gone:
			return nil, d.lost(nil)
		case <-ctx.Done():
			if !acked && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, errSilent
			}
			return nil, ctx.Err()
		}
	}
}

// lost says why the association is of no use.
func (d *datagrams) lost(err error) error {
	if err != nil {
		d.end(errEnded)
	}
	return errEnded
}

// forget gives a token back: what comes with it is rejected from now on.
func (d *datagrams) forget(tok string) {
	d.mu.Lock()
	delete(d.byToken, tok)
	empty := d.retiring && len(d.byToken) == 0
	d.mu.Unlock()
	if empty {
		d.close()
	}
}

// read takes messages until the connection ends.
func (d *datagrams) read() {
	size := maxMessage + 1 // one more, to see that a message has more
	if _, plain := d.conn.(*net.UDPConn); !plain {
		size = maxRecord // what is not read whole ends the association
	}
	buf := make([]byte, size)
	for {
		n, err := d.conn.Read(buf)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			d.unreachable()
			continue
		case err != nil:
			d.end(errEnded)
			return
		}
		d.message(buf[:n])
	}
}

// unreachable: ICMP said so of a message of ours. A server that is being started
// anew has until the retransmission.
func (d *datagrams) unreachable() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.byID {
		if w.misses++; w.misses > 1 && !w.acked {
			w.tell(event{err: errRefused})
		}
	}
}

// decode reads a message. In the place of a response that is larger than is read, of
// which the end is lost, it gives 5.02 that says so.
func decode(b []byte) (*coap.Message, error) {
	m, err := coap.DecodeMessage(b)
	if err != nil || len(b) <= maxMessage || !m.Code.IsResponse() {
		return m, err
	}
	out := &coap.Message{Type: m.Type, ID: m.ID, Token: m.Token, Code: coap.BadGateway, Payload: []byte(textTooLarge)}
	out.Options.SetUint(coap.MaxAge, 0)
	return out, nil
}

// message reads one message; b is valid during the call.
func (d *datagrams) message(b []byte) {
	m, err := decode(b)
	if err != nil {
		return // RFC 7252, Section 4.2; a Reset would tell no more than silence
	}
	d.heard.Store(int64(time.Since(d.born)))
	switch {
	case m.Type == coap.Acknowledgement || m.Type == coap.Reset:
		d.settled(m)
	case m.Code.IsResponse():
		d.response(m)
	case m.Type == coap.Confirmable: // a ping, or a request, which nobody here answers
		d.empty(coap.Reset, m.ID)
	}
}

// settled reads an acknowledgement or a Reset.
func (d *datagrams) settled(m *coap.Message) {
	d.mu.Lock()
	w := d.byID[m.ID]
	if w == nil {
		w = d.byToken[string(m.Token)]
		// The next proxy to a group acknowledged with the first response, and a message
		// with another one was here before: both are wanted.
		overtaken := w != nil && w.id == m.ID && w.answer && w.fn != nil && !w.piggybacked &&
			m.Type == coap.Acknowledgement && m.Options.Has(replyFrom)
		if overtaken {
			w.piggybacked = true
		}
		d.mu.Unlock()
		if overtaken {
			w.fn(m.Clone())
		}
		return
	}
	switch {
	case m.Type == coap.Reset && m.Code == coap.Empty:
		delete(d.byID, m.ID)
		w.tell(event{err: errReset})
	case m.Type == coap.Acknowledgement && m.Code == coap.Empty:
		w.acked = true
		w.tell(event{})
	case m.Type == coap.Acknowledgement && m.Code.IsResponse() && d.byToken[string(m.Token)] == w && !w.answer:
		// RFC 7252, Section 5.3.2: message identifier and token have to match.
		delete(d.byID, m.ID)
		w.acked, w.answer, w.piggybacked = true, true, true
		w.tell(event{m: m.Clone()})
	}
	d.mu.Unlock()
}

// response reads one in a message of its own.
func (d *datagrams) response(m *coap.Message) {
	d.mu.Lock()
	w := d.byToken[string(m.Token)]
	if m.Type == coap.Confirmable && slices.Contains(d.recent[:min(d.nrecent, len(d.recent))], m.ID) {
		d.mu.Unlock()
		d.empty(coap.Acknowledgement, m.ID) // a copy: our acknowledgement was lost
		return
	}
	if w == nil || w.answer && w.fn == nil {
		d.mu.Unlock()
		d.empty(coap.Reset, m.ID) // RFC 7641, Section 3.6: it ends an observation as well
		return
	}
	if m.Type == coap.Confirmable {
		d.recent[d.nrecent%len(d.recent)] = m.ID
		d.nrecent++
	}
	later := w.answer
	if !later {
		delete(d.byID, w.id) // RFC 7252, Section 5.2.2: it acknowledges the request as well
		w.acked, w.answer = true, true
		w.tell(event{m: m.Clone()})
	}
	d.mu.Unlock()
	if m.Type == coap.Confirmable {
		d.empty(coap.Acknowledgement, m.ID)
	}
	if later {
		w.fn(m.Clone())
	}
}

func (d *datagrams) empty(t coap.Type, id uint16) {
	_, _ = d.conn.Write([]byte{1<<6 | byte(t)<<4, 0, byte(id >> 8), byte(id)}) // like all datagrams, it may be lost
}
