package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	coapdtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/dtls/server"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/net/monitor/inactivity"
	"github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/dtls12"
)

// DialRawKey opens CoAP over DTLS 1.2 with raw public keys (RFC 7250): key is
// that of the node, of ES256 or EdDSA, with its private part, and server what the
// Group Manager has to show, [Access.ServerKey].
//
// RFC 9202, Section 3.2.1: the token that confirms the key is posted before, and
// TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 is offered first. As with [DialDTLS] a
// Connection ID for the own records is asked for, and the extended master secret
// required.
func DialRawKey(ctx context.Context, addr string, key, server *cose.Key) (Transport, error) {
	if key == nil || server == nil {
		return nil, errors.New("node: dial: a key of our own and that of the server are needed")
	}
	signer, err := key.PrivateKey()
	if err != nil {
		return nil, fmt.Errorf("node: dial: %w", err)
	}
	own, err := dtls12.NewKey(signer)
	if err != nil {
		return nil, fmt.Errorf("node: dial: %w", err)
	}
	want, err := server.SPKI()
	if err != nil {
		return nil, fmt.Errorf("node: dial: key of the server: %w", err)
	}
	ctx, cancel := withDeadline(ctx, handshakeTimeout)
	defer cancel()
	raw, err := dialSocket(ctx, addr)
	if err != nil {
		return nil, err
	}
	d, err := dtls12.Dial(ctx, raw, &dtls12.Config{Key: own, CID: []byte{}, Peer: func(spki []byte) error {
		if !bytes.Equal(spki, want) {
			return fmt.Errorf("%w: the server shows another key than its Authorization Server named", dtls12.ErrUnknown)
		}
		return nil
	}})
	if err != nil {
		if a, ok := errors.AsType[*dtls12.AlertError](err); ok && a.Remote && a.Alert == dtls12.CertificateUnknown {
			return nil, fmt.Errorf("node: dial %s: no valid token there confirms our public key: %w", addr, err)
		}
		return nil, fmt.Errorf("node: dial %s: %w", addr, err)
	}
	c := newConn(nil)
	c.raw = d
	c.separates.wire = d
	c.cc = c.over(d)
	return c, nil
}

// over has go-coap speak over an association of whatever kind.
func (c *conn) over(nc net.Conn) *client.Conn {
	cfg := coapdtls.DefaultConfig
	for _, o := range c.options() {
		o.UDPClientApply(&cfg)
	}
	if cfg.MessagePool == nil {
		cfg.MessagePool = pool.New(0, 0)
	}
	session := server.NewSession(cfg.Ctx, coapnet.NewConn(nc), cfg.MaxMessageSize, cfg.MTU, cfg.CloseSocket)
	cc := client.NewConnWithOpts(session, &cfg,
		client.WithBlockWise(func(cc *client.Conn) *blockwise.BlockWise[*client.Conn] {
			return blockwise.New(cc, cfg.BlockwiseTransferTimeout, cfg.Errors, func(token message.Token) (*pool.Message, bool) {
				return cc.GetObservationRequest(token)
			})
		}),
		client.WithInactivityMonitor(inactivity.NewNilMonitor[*client.Conn]()),
	)
	c.runPeriodic(func(now time.Time) bool {
		cc.CheckExpirations(now)
		return cc.Context().Err() == nil
	})
	c.wg.Go(func() { _ = cc.Run() }) // what ends it is told by Done
	return cc
}
