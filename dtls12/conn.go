package dtls12

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/record"
)

// Conn is an association of a client, as a [net.Conn] of datagrams: Read gives
// one record, Write makes one. One goroutine at a time may read.
type Conn struct {
	net.Conn // the socket: addresses and deadlines
	result   *Result
	reader   *record.Cipher
	window   record.Window
	in       [1 << 14]byte

	mu     sync.Mutex
	writer *record.Cipher // guarded by mu, as what follows
	number uint64
	closed bool
}

// Dial does the handshake of a client over a connected socket, which it takes
// over: it is closed with the association, and on errors.
func Dial(ctx context.Context, raw net.Conn, cfg *Config) (*Conn, error) {
	c, err := dial(ctx, raw, cfg)
	if err != nil {
		_ = raw.Close() // nothing was said on it that matters
		return nil, err
	}
	return c, nil
}

func dial(ctx context.Context, raw net.Conn, cfg *Config) (*Conn, error) {
	hurry := context.AfterFunc(ctx, func() { _ = raw.SetReadDeadline(time.Unix(1, 0)) })
	defer hurry()
	h := Connect(cfg, time.Now())
	c := &Conn{Conn: raw}
	for {
		for _, d := range h.Output() {
			if _, err := raw.Write(d); err != nil && !refusedByICMP(err) {
				return nil, fmt.Errorf("dtls12: %w", err)
			}
		}
		switch {
		case h.Err() != nil:
			return nil, h.Err()
		case h.Done():
			// The last record was the server's, so ours has arrived.
			if !hurry() {
				return nil, fmt.Errorf("dtls12: handshake: %w", context.Cause(ctx))
			}
			return c, c.open(h)
		}
		if err := raw.SetReadDeadline(h.Deadline()); err != nil {
			return nil, fmt.Errorf("dtls12: %w", err)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("dtls12: handshake: %w", context.Cause(ctx))
		}
		n, err := raw.Read(c.in[:])
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("dtls12: handshake: %w", context.Cause(ctx))
		case err == nil:
			h.Receive(c.in[:n], time.Now())
		case errors.Is(err, os.ErrDeadlineExceeded):
			h.Expire(time.Now())
		default:
			return nil, fmt.Errorf("dtls12: %w", err)
		}
	}
}

// refusedByICMP: what an earlier datagram met is told to the next; Read tells it
// as well.
func refusedByICMP(err error) bool {
	_, ok := errors.AsType[*os.SyscallError](err)
	return ok
}

// open goes on with what a handshake left.
func (c *Conn) open(h *Handshake) (err error) {
	c.result, c.number = h.Result(), h.Number()
	if c.reader, err = record.NewCipher(c.result.Suite, &c.result.Read); err != nil {
		return err
	}
	c.writer, err = record.NewCipher(c.result.Suite, &c.result.Write)
	return errors.Join(err, c.Conn.SetReadDeadline(time.Time{}))
}

// Result is what the handshake came to.
func (c *Conn) Result() *Result { return c.result }

// Read waits for application data: io.EOF after the goodbye of the server. What
// does not fit into b is lost.
func (c *Conn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(c.in[:])
		if err != nil {
			return 0, err
		}
		for d := c.in[:n]; len(d) > 0; {
			r, rest, err := record.Next(d, len(c.result.CID))
			if err != nil {
				break
			}
			d = rest
			if r.Epoch != 1 || (r.Type == record.ConnectionID) != (len(c.result.CID) > 0) || !c.window.Fresh(r.Seq) {
				continue
			}
			kind, content, err := c.reader.Open(nil, &r)
			if err != nil {
				continue
			}
			c.window.Accept(r.Seq)
			switch {
			case kind == record.ApplicationData:
				// A datagram of ours has one record of these; of others the first
				// counts.
				return copy(b, content), nil
			case kind == record.Alert && len(content) == 2 && Alert(content[1]) == CloseNotify:
				return 0, io.EOF
			case kind == record.Alert && len(content) == 2 && content[0] == levelFatal:
				return 0, &AlertError{Alert: Alert(content[1]), Remote: true}
			}
		}
	}
}

// Write sends one record of application data.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.write(record.ApplicationData, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *Conn) write(kind uint8, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case len(b) > 1<<14 || c.number > record.MaxSeq:
		return errors.New("dtls12: the record cannot be sent")
	}
	seq := c.number
	c.number++
	_, err := c.Conn.Write(c.writer.Seal(nil, kind, 1, seq, c.result.PeerCID, b))
	return err
}

// Close says goodbye and closes the socket.
func (c *Conn) Close() error {
	_ = c.write(record.Alert, []byte{levelWarning, byte(CloseNotify)}) // nobody waits for it
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.Conn.Close()
}
