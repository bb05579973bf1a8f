package node

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// cast listens to the rekeys that come by IP multicast: NON POST to the
// control_group_uri (RFC 9594, Section 6.2). Nothing is answered; a message is as
// good as its countersignature, whoever sends it.
type cast struct {
	uri  string
	conn *net.UDPConn
	wg   sync.WaitGroup
}

// follow listens as long as the membership has a control_group_uri, and says why
// it cannot.
func (c *cast) follow(m *Member) error {
	m.mu.Lock()
	uri, member := m.groupURI, m.tree != nil
	m.mu.Unlock()
	if c.conn != nil && uri == c.uri && member {
		return nil
	}
	c.stop()
	if uri == "" || !member || !m.cfg.Multicast {
		return nil
	}
	at, err := groupcomm.ParseControlGroupURI(uri)
	if err != nil {
		return badAnswer("control_group_uri", "%v", err)
	}
	conn, err := listenGroup(at.Addr, m.cfg.MulticastInterface)
	if err != nil {
		return err
	}
	c.uri, c.conn = uri, conn
	c.wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			msg, err := coap.DecodeMessage(buf[:n])
			if err != nil || msg.Type != coap.NonConfirmable || msg.Code != coap.POST || !slices.Equal(msg.Options.Strings(coap.UriPath), at.Path) {
				continue
			}
			if err := m.openBranch(slices.Clone(msg.Payload), ViaMulticast); err != nil {
				m.emit(Event{Kind: Refused, Via: ViaMulticast, Err: err})
			}
		}
	})
	return nil
}

func (c *cast) stop() {
	if c.conn == nil {
		return
	}
	_ = c.conn.Close()
	c.wg.Wait()
	c.conn = nil
}

// Listen hears rekeys by IP multicast until ctx ends, for a node that otherwise
// only wakes now and then: what it hears, it has at its next [Member.Wake].
func (m *Member) Listen(ctx context.Context) error {
	var c cast
	if err := c.follow(m); err != nil {
		return err
	}
	<-ctx.Done()
	c.stop()
	return ctx.Err()
}
