package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/oscore"
)

// Retransmission of a confirmable request (RFC 7252, Section 4.8).
const (
	ackTimeout    = 2 * time.Second
	maxRetransmit = 4
)

// maxChallenges bounds the servers whose challenge one request answers.
const maxChallenges = 64

// Answer is one response to a request in the group, or why one was not read.
type Answer struct {
	From    netip.AddrPort
	Who     *oscore.GroupResponder // nil when it was not read
	Message *coap.Message          // nil when it was not read
	Err     error
}

// GroupClient sends requests that are protected with Group OSCORE. It does one at a
// time.
type GroupClient struct {
	t    *Traffic
	conn *net.UDPConn
	via  string // interface for multicast, as it was named
	mid  uint16
}

// DialGroup opens a socket for requests. listen is its address, host:port, of the kind
// of addresses that are sent to; empty: 127.0.0.1 with any port. Multicast leaves by the
// interface; empty: with IPv4 the loopback interface, with IPv6 any, for what stays on
// the machine.
func DialGroup(ctx context.Context, t *Traffic, listen, ifname string) (*GroupClient, error) {
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	conn, err := listenUnicast(ctx, listen, ifname)
	if err != nil {
		return nil, err
	}
	return &GroupClient{t: t, conn: conn, via: ifname, mid: uint16(rand.Uint32())}, nil
}

// Close closes the socket.
func (c *GroupClient) Close() error { return c.conn.Close() }

// Send sends a request and calls each with every answer: to a multicast address, in a
// message that is not confirmable, those that come within the time wait; to another
// address, in a confirmable one, the first within that time. to is the member for
// pairwise mode; nil is group mode. A server that wants to know whether the request
// is a new one is sent it once more, by unicast and, where the group has it, in
// pairwise mode.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 7 and 9.
func (c *GroupClient) Send(ctx context.Context, dst netip.AddrPort, to *groupcomm.SenderID, req *coap.Message, wait time.Duration, each func(Answer)) error {
	var challenged []Answer
	err := c.send(ctx, dst, to, req, wait, func(a Answer) {
		if isChallenge(a) && len(challenged) < maxChallenges {
			challenged = append(challenged, a)
			return
		}
		each(a)
	})
	if err != nil {
		return err
	}
	for _, a := range challenged {
		again, peer := c.t.challenged(req, a)
		if err := c.send(ctx, a.From, peer, again, wait, each); err != nil {
			return err
		}
	}
	return nil
}

// isChallenge says whether an answer asks whether the request is a new one.
func isChallenge(a Answer) bool {
	return a.Err == nil && a.Message.Code == coap.Unauthorized && a.Message.Options.Has(coap.Echo)
}

// challenged is what a server is sent that wants to know whether the request is a new
// one: to peer alone where the group has pairwise mode (RFC 9175, Section 2.3).
func (t *Traffic) challenged(req *coap.Message, a Answer) (again *coap.Message, peer *groupcomm.SenderID) {
	again = req.Clone()
	echo, _ := a.Message.Options.Get(coap.Echo)
	again.Options.Set(coap.Echo, echo)
	if t.Group().HasPairwise() {
		id := groupcomm.SenderID(a.Who.KID)
		peer = &id
	}
	return again, peer
}

// send sends a request once, with retransmissions, and collects.
func (c *GroupClient) send(ctx context.Context, dst netip.AddrPort, to *groupcomm.SenderID, req *coap.Message, wait time.Duration, each func(Answer)) error {
	multicast := dst.Addr().IsMulticast()
	if needsInterface(dst.Addr().WithZone(""), c.via+dst.Addr().Zone()) {
		return errInterface
	}
	out := *req
	out.Token, out.ID, out.Type = newToken(), c.mid, coap.Confirmable
	c.mid++
	if multicast {
		out.Type = coap.NonConfirmable
	}
	m, x, err := c.t.Request(ctx, to, &out)
	if err != nil {
		return err
	}
	defer x.Close()
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	if _, err := c.conn.WriteToUDPAddrPort(b, dst); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	now := time.Now()
	end := now.Add(wait)
	timeout := ackTimeout + rand.N(ackTimeout/2)
	again, left := now.Add(timeout), maxRetransmit
	if multicast {
		left = 0
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		until := end
		if left > 0 && again.Before(end) {
			until = again
		}
		if err := c.conn.SetReadDeadline(until); err != nil {
			return fmt.Errorf("node: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, from, err := c.conn.ReadFromUDPAddrPort(buf)
		var timedOut net.Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &timedOut) && timedOut.Timeout():
			if !time.Now().Before(end) {
				return nil
			}
			timeout, left = 2*timeout, left-1
			again = time.Now().Add(timeout)
			if _, err := c.conn.WriteToUDPAddrPort(b, dst); err != nil {
				return fmt.Errorf("node: %w", err)
			}
			continue
		case err != nil:
			return fmt.Errorf("node: %w", err)
		}
		from = fromAddr(from)
		r, err := coap.DecodeMessage(buf[:n])
		if err != nil || !multicast && from != dst {
			continue
		}
		if r.Code == coap.Empty && r.ID == out.ID {
			if r.Type == coap.Reset {
				each(Answer{From: from, Err: coap.ErrReset})
				return nil
			}
			left = 0 // acknowledged; the response comes by itself
			continue
		}
		if !r.Code.IsResponse() || !bytes.Equal(r.Token, out.Token) {
			continue
		}
		if r.Type == coap.Confirmable {
			ack, _ := (&coap.Message{Type: coap.Acknowledgement, ID: r.ID}).MarshalBinary()
			_, _ = c.conn.WriteToUDPAddrPort(ack, from)
		}
		a := c.t.answer(ctx, x, r.Clone(), from)
		if errors.Is(a.Err, oscore.ErrReplay) {
			continue
		}
		each(a)
		if !multicast {
			return nil
		}
	}
}

// answer reads one response.
func (t *Traffic) answer(ctx context.Context, x *oscore.GroupExchange, r *coap.Message, from netip.AddrPort) Answer {
	m, who, err := t.ReadResponse(ctx, x, r)
	if errors.Is(err, oscore.ErrUnprotected) {
		// Nobody vouches for it, but it may say what went wrong.
		err = fmt.Errorf("%w: %v %.80q", err, r.Code, r.Payload)
	}
	return Answer{From: from, Who: who, Message: m, Err: err}
}
