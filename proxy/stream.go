package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Codes of signalling messages (RFC 8323, Section 5).
const (
	codeCSM     coap.Code = 7<<5 | 1
	codePing    coap.Code = 7<<5 | 2
	codePong    coap.Code = 7<<5 | 3
	codeRelease coap.Code = 7<<5 | 4
	codeAbort   coap.Code = 7<<5 | 5
)

// maxFrame bounds the messages taken, in bytes: a body without blocks.
const maxFrame = maxBody + 4096

// baseMessage is the largest message that a server takes which did not say so (RFC 8323,
// Section 5.3.1). In optMaxMessage, of a CSM, it does.
const (
	baseMessage   = 1152
	optMaxMessage = 2
)

// framing is the most that is before the options of a message: length and its extension,
// code, token. blockOptions is what a block adds: Block1 or 2, Size1, Request-Tag, and the
// marker of a payload.
const (
	framing      = 5 + 1 + 8
	blockOptions = 5 + 6 + 10 + 1
)

// stream is the message layer over TCP or TLS (RFC 8323, Section 3). The size of blocks
// goes by the messages that the server takes; nothing else is negotiated.
type stream struct {
	conn net.Conn
	hook func() bool // undoes the end with the proxy
	gone chan struct{}

	write sync.Mutex // one message at a time

	mu       sync.Mutex
	err      error
	byToken  map[string]*waiter
	retiring bool
	most     int           // bytes of a message that the server takes; 0: it did not say
	csm      chan struct{} // closed when the server said so; nil from then on
}

// takes is how large a message the server takes. Where that is less than n as far as is
// known, it has a moment to say so.
func (s *stream) takes(ctx context.Context, n int) int {
	s.mu.Lock()
	most, csm := cmp.Or(s.most, baseMessage), s.csm
	s.mu.Unlock()
	if n <= most || csm == nil {
		return most
	}
	late := time.NewTimer(ackTimeout / 2)
	defer late.Stop()
	select {
	case <-csm:
	case <-s.gone:
	case <-late.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.most, baseMessage)
}

// block is the largest size of blocks, no larger than size, in which a request goes in
// messages that the server takes.
func (s *stream) block(ctx context.Context, size int, req *coap.Request) int {
	head, err := (&coap.Message{Code: req.Code, Options: req.Options}).MarshalBinary()
	if err != nil {
		return size // told when it is sent
	}
	head = head[4:]
	all := framing + len(head) + blockOptions
	room := s.takes(ctx, all+min(size, len(req.Payload))) - all
	for size > room && size > 16 {
		size /= 2
	}
	return size
}

// dialStream opens a connection and tells what we take.
func (p *Proxy) dialStream(ctx context.Context, r *Rule, t Target, at netip.AddrPort) (link, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	if t.Scheme == CoAPSTCP {
		if r.Credential == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%w: no credential", errShake)
		}
		pool, certs, err := r.Credential.certificates()
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		// RFC 8323, Section 8.2: the protocol is named "coap".
		c := tls.Client(conn, &tls.Config{RootCAs: pool, Certificates: certs, ServerName: t.Host, NextProtos: []string{"coap"}, MinVersion: tls.VersionTLS12})
		if err := c.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, shake(err, alertOf(err), false, shakeHeard)
		}
		conn = c
	}
	s := &stream{conn: conn, gone: make(chan struct{}), byToken: map[string]*waiter{}, csm: make(chan struct{})}
	s.mu.Lock()
	s.hook = context.AfterFunc(p.ctx, s.close)
	s.mu.Unlock()
	if !p.spawn(s.read) {
		s.close()
		return nil, errClosing
	}
	// RFC 8323, Section 5.3: the first message.
	csm := &coap.Message{Code: codeCSM}
	csm.Options.SetUint(optMaxMessage, maxFrame)
	if err := s.send(ctx, csm); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stream) done() <-chan struct{} { return s.gone }
func (s *stream) worn() bool            { return false }
func (s *stream) close()                { s.end(errEnded) }

func (s *stream) end(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	close(s.gone)
	hook := s.hook
	s.mu.Unlock()
	hook()
	_ = s.conn.Close() // as with datagrams
}

func (s *stream) retire() {
	s.mu.Lock()
	s.retiring = true
	empty := len(s.byToken) == 0
	s.mu.Unlock()
	if empty {
		s.close()
	}
}

func (s *stream) forget(tok string) {
	s.mu.Lock()
	delete(s.byToken, tok)
	empty := s.retiring && len(s.byToken) == 0
	s.mu.Unlock()
	if empty {
		s.close()
	}
}

// Do sends a request and waits for its response.
func (s *stream) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	tok := string(token())
	defer s.forget(tok)
	return s.observe(ctx, m, tok, nil)
}

func (s *stream) observe(ctx context.Context, m *coap.Message, tok string, fn func(*coap.Message)) (*coap.Message, error) {
	w := &waiter{events: make(chan event, 2), fn: fn, ping: m.Code == codePing}
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		if errors.Is(s.err, errShake) {
			return nil, s.err // another association would end the same
		}
		return nil, errGone
	}
	s.byToken[tok] = w
	s.mu.Unlock()
	coap.Waiting(ctx) // to be sent as well
	if err := s.send(ctx, &coap.Message{Code: m.Code, Token: []byte(tok), Options: m.Options, Payload: m.Payload}); err != nil {
		return nil, err
	}
	select {
	case e := <-w.events:
		return e.m, e.err
	case <-s.gone:
		return nil, s.why()
	case <-ctx.Done():
		if ctx.Err() == context.DeadlineExceeded {
			return nil, errSilent
		}
		return nil, ctx.Err()
	}
}

// ping is that of RFC 8323, Section 5.4. What was heard lately says nothing here: a
// connection that ended tells so itself, unless the machine is gone.
func (s *stream) ping(ctx context.Context, lately time.Duration) error {
	if lately > 0 {
		return nil
	}
	tok := string(token())
	defer s.forget(tok)
	_, err := s.observe(ctx, &coap.Message{Code: codePing}, tok, nil)
	return err
}

// send writes one message (RFC 8323, Section 3.2).
func (s *stream) send(ctx context.Context, m *coap.Message) error {
	datagram, err := (&coap.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}).MarshalBinary()
	if err != nil {
		return err
	}
	body := datagram[4:] // options and payload are written the same
	b := make([]byte, 0, len(body)+16)
	switch n := len(body); {
	case n < 13:
		b = append(b, byte(n)<<4|byte(len(m.Token)))
	case n < 269:
		b = append(b, 13<<4|byte(len(m.Token)), byte(n-13))
	case n < 65805:
		b = append(b, 14<<4|byte(len(m.Token)))
		b = binary.BigEndian.AppendUint16(b, uint16(n-269))
	default:
		b = append(b, 15<<4|byte(len(m.Token)))
		b = binary.BigEndian.AppendUint32(b, uint32(n-65805))
	}
	b = append(b, byte(m.Code))
	b = append(b, m.Token...)
	b = append(b, body...)
	if most := s.takes(ctx, len(b)); len(b) > most && m.Code.IsRequest() {
		return fmt.Errorf("%w: the server takes messages of %d bytes, and this one has %d", errLarge, most, len(b))
	}
	s.write.Lock()
	defer s.write.Unlock()
	end, _ := ctx.Deadline() // none is for ever: there always is one
	_ = s.conn.SetWriteDeadline(end)
	if _, err := s.conn.Write(b); err != nil {
		look := time.NewTimer(ackTimeout / 2)
		defer look.Stop()
		select {
		case <-s.gone: // what came before it says why
		case <-look.C:
		case <-ctx.Done():
		}
		s.end(errEnded)
		return s.why()
	}
	return nil
}

// tell sends a message of the connection's own.
func (s *stream) tell(m *coap.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
	defer cancel()
	return s.send(ctx, m)
}

// why is why it ended.
func (s *stream) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// read takes messages until the connection ends.
func (s *stream) read() {
	defer s.end(errEnded)
	for {
		m, err := readFrame(s.conn)
		if alert := alertOf(err); alert != alertNone {
			s.end(shake(err, alert, false, shakeHello)) // with TLS 1.3 our certificate is looked at after the handshake
		}
		if err != nil {
			return
		}
		if m.Code.Class() == 7 && slices.ContainsFunc(m.Options, func(o coap.Option) bool { return o.ID.Critical() }) {
			// RFC 8323, Section 5.2: none is known here.
			_ = s.tell(&coap.Message{Code: codeAbort, Payload: []byte("critical option")})
			return
		}
		switch {
		case m.Code == codeCSM:
			s.mu.Lock()
			if v, ok := m.Options.Uint(optMaxMessage); ok {
				s.most = int(min(v, maxFrame))
			}
			if s.csm != nil {
				close(s.csm)
				s.csm = nil
			}
			s.mu.Unlock()
		case m.Code == codePing:
			if s.tell(&coap.Message{Code: codePong, Token: m.Token}) != nil {
				return
			}
		case m.Code == codeAbort:
			s.end(fmt.Errorf("%w: aborted with %.100q", errEnded, m.Payload)) // what it says is for the log
			return
		case m.Code == codeRelease:
			s.retire()
		case m.Code.IsResponse(), m.Code == codePong:
			s.response(m)
		}
	}
}

func (s *stream) response(m *coap.Message) {
	s.mu.Lock()
	w := s.byToken[string(m.Token)]
	if w == nil || w.ping != (m.Code == codePong) {
		s.mu.Unlock()
		return
	}
	later := w.answer
	w.answer = true
	s.mu.Unlock()
	switch {
	case !later:
		w.tell(event{m: m})
	case w.fn != nil:
		w.fn(m)
	}
}

// readFrame reads one message (RFC 8323, Section 3.2).
func readFrame(r io.Reader) (*coap.Message, error) {
	var head [1]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	ext, base := 0, 0
	switch head[0] >> 4 {
	case 13:
		ext, base = 1, 13
	case 14:
		ext, base = 2, 269
	case 15:
		ext, base = 4, 65805
	default:
		base = int(head[0] >> 4)
	}
	var raw [4]byte
	if _, err := io.ReadFull(r, raw[4-ext:]); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(raw[:])) + int64(base)
	tkl := int(head[0] & 15)
	if n > maxFrame || tkl > 8 {
		return nil, fmt.Errorf("%w: frame of %d bytes", errGarbage, n)
	}
	b := make([]byte, 1+tkl+int(n))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	m := &coap.Message{Code: coap.Code(b[0]), Token: b[1 : 1+tkl]}
	var err error
	m.Options, m.Payload, err = coap.DecodeOptions(nil, b[1+tkl:])
	return m, err
}
