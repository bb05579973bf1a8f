package swarm

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/datagram"
	"github.com/seed4911071e/groupgate/record"
)

// Credential opens an association.
type Credential struct {
	Identity []byte // psk_identity
	Key      []byte // pre-shared key
	// Certificate takes the place of both.
	Certificate *tls.Certificate
	// Keep keeps the secrets of the handshake for [Node.Export].
	Keep bool
}

// Open has a node shake hands, in the place of the association that it has.
func (s *Swarm) Open(ctx context.Context, i int, c Credential) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	s.mu.Lock()
	side := s.side
	s.mu.Unlock()
	at := net.UDPAddrFromAddrPort(s.cfg.Gateway)
	pipe := datagram.NewPipe(at, at, func(b []byte) { s.transmit([]datagram.Datagram{s.outgoing(i, side, b)}) })
	opts := []dtls.ClientOption{
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret), dtls.WithLoggerFactory(datagram.Quiet{}),
	}
	if c.Certificate != nil {
		opts = append(opts, dtls.WithCertificates(*c.Certificate), dtls.WithInsecureSkipVerify(true),
			dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256))
	} else {
		opts = append(opts, dtls.WithPSK(func([]byte) ([]byte, error) { return c.Key, nil }), dtls.WithPSKIdentityHint(c.Identity),
			dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256))
	}
	if !s.cfg.NoCID {
		opts = append(opts, dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
	}
	conn, err := dtls.ClientWithOptions(pipe, pipe.Peer(), opts...)
	if err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	s.mu.Lock()
	n := &s.nodes[i]
	if n.shake != nil {
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("swarm: node %d is in a handshake", i), conn.Close())
	}
	n.shake = pipe
	s.mu.Unlock()

	err = conn.HandshakeContext(ctx)
	pipe.Mute() // from here on its counters are ours
	var x *record.State
	if err == nil {
		x, err = state(conn)
	}
	s.mu.Lock()
	n.shake = nil
	if err == nil {
		err = s.took(n, x, c.Keep)
	}
	if err != nil {
		s.stats.Failed++
	} else {
		s.stats.Handshakes++
	}
	s.mu.Unlock()
	_ = conn.Close() // nobody hears it
	_ = pipe.Close()
	if err != nil {
		return fmt.Errorf("swarm: handshake of node %d: %w", i, err)
	}
	return nil
}

func state(conn *dtls.Conn) (*record.State, error) {
	st, ok := conn.ConnectionState()
	if !ok {
		return nil, record.ErrState
	}
	raw, err := st.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", record.ErrState, err)
	}
	defer clear(raw)
	return record.ParseState(raw)
}

// took gives a node the session of a finished handshake.
func (s *Swarm) took(n *node, x *record.State, keep bool) error {
	suite, read, write, err := x.Keys()
	if err != nil {
		return err
	}
	if !n.live {
		s.open.Add(1)
	}
	if c := n.call; c != nil {
		s.end(c, nil, errClosed)
	}
	*n = node{
		live: true, suite: suite, read: read, write: write,
		waiting: n.waiting, seq: x.SequenceNumber, cid: x.RemoteConnectionID, mid: binary.BigEndian.Uint16(randomBytes(2)),
	}
	if len(n.cid) == 0 {
		n.cid = nil
	}
	if keep {
		n.state = x
	}
	return nil
}

// Progress is told how many are done.
type Progress func(done int)

// Each calls f for the nodes from first up to end, atOnce at a time, and goes on
// after failures, which it counts; err is the last of them.
func Each(ctx context.Context, first, end, atOnce int, progress Progress, f func(ctx context.Context, i int) error) (failed int, err error) {
	var next, done atomic.Int64
	next.Store(int64(first))
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range max(1, min(atOnce, end-first)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= end {
					return
				}
				if e := f(ctx, i); e != nil {
					mu.Lock()
					failed++
					err = e
					mu.Unlock()
				}
				if d := done.Add(1); progress != nil && d%1000 == 0 {
					progress(int(d))
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return failed, ctx.Err()
	}
	return failed, err
}
