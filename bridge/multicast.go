package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// The rekeys of a key tree go out by IP multicast too where the group has a
// control_group_uri (RFC 9594, Section 6.2): one NON POST for each message, the
// bytes that are stored. Nobody acknowledges them, so they are sent again, in
// growing distances, while a member that listens has not shown that it has the
// version. Gateways that share a store are on networks of their own: each sends.

// configurer is the optional part of a [Source] that knows how groups are
// configured.
type configurer interface {
	GroupConfigs(ctx context.Context, names []string) ([]groupcomm.GroupConfig, error)
}

const (
	castFirst = time.Second // until a multicast is repeated; then ever later
	castTimes = 7           // how often one is sent, at most: for a minute
	castPace  = time.Millisecond
)

// casts are the groups whose rekeys are to be multicast.
type casts struct {
	wake chan struct{} // one slot

	mu  sync.Mutex
	due map[string]castDue
}

type castDue struct {
	at   time.Time
	sent int    // how often already
	num  uint64 // version that was
}

func newCasts() *casts { return &casts{wake: make(chan struct{}, 1), due: map[string]castDue{}} }

func (c *casts) set(group string, d castDue) {
	c.mu.Lock()
	c.due[group] = d
	c.mu.Unlock()
	signal(c.wake)
}

// take returns the groups whose time has come, and how long until the next.
func (c *casts) take(now time.Time) (due map[string]castDue, nap time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	due, nap = map[string]castDue{}, longestNap
	for group, d := range c.due {
		if d.at.After(now) {
			nap = min(nap, d.at.Sub(now))
			continue
		}
		due[group] = d
		delete(c.due, group)
	}
	return due, nap
}

// castRekeys multicasts until ctx ends. It begins with what a process before may
// not have sent.
func (b *Bridge) castRekeys(ctx context.Context) error {
	groups, err := b.knownGroups(ctx)
	if err != nil {
		return fmt.Errorf("bridge: read groups: %w", err)
	}
	for _, g := range groups {
		b.casts.set(g, castDue{})
	}
	for {
		due, nap := b.casts.take(time.Now())
		for group, d := range due {
			next, err := b.cast(ctx, group, d)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.log.WarnContext(ctx, "cannot multicast a rekey", "group", group, "err", err)
			}
			if next.sent > 0 && next.sent < castTimes {
				wait := castFirst << (next.sent - 1)
				next.at = time.Now().Add(wait + rand.N(wait/4))
				b.casts.set(group, next)
			}
		}
		if len(due) > 0 {
			continue
		}
		t := time.NewTimer(nap)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-b.casts.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// cast sends the newest rekey of a group once, if somebody listens who did not
// show that it has it. next is zero when there is nothing more to do.
func (b *Bridge) cast(ctx context.Context, group string, d castDue) (next castDue, err error) {
	c, ok := b.source.(configurer)
	if !ok {
		return next, nil
	}
	list, err := c.GroupConfigs(ctx, []string{group})
	if err != nil || len(list) == 0 || list[0].ControlGroupURI == "" {
		return next, err
	}
	to, err := groupcomm.ParseControlGroupURI(list[0].ControlGroupURI)
	if err != nil {
		return next, fmt.Errorf("control_group_uri: %w", err)
	}
	num, waiting, bodies, err := b.castable(ctx, group)
	if err != nil || waiting == 0 || len(bodies) == 0 {
		return next, err
	}
	if d.num != num {
		d = castDue{num: num}
	}
	d.sent++
	conn, err := dialMulticast(ctx, to.Addr, b.cfg.MulticastInterface, b.cfg.MulticastHops)
	if err != nil {
		return d, err
	}
	defer conn.Close()
	id := uint16(rand.Uint32())
	for _, body := range bodies {
		id++
		msg := &coap.Message{Type: coap.NonConfirmable, Code: coap.POST, ID: id, Payload: body}
		msg.Options.SetPath(to.Path...)
		msg.Options.SetContentFormat(coap.COSEEncrypt0)
		wire, err := msg.MarshalBinary()
		if err != nil {
			return d, err
		}
		if _, err := conn.Write(wire); err != nil {
			return d, err
		}
		b.met.sent(channelMulticast, len(body))
		pause(ctx, castPace) // what receivers' buffers take
	}
	b.treeRelayed(group, num, time.Now())
	b.changeSent(group, num, func(s *treeSent) { s.casts = d.sent })
	return d, nil
}

// castable reads the messages of the newest rekey of a group's tree, the lowest
// first, and how many of those who listen did not confirm it.
func (b *Bridge) castable(ctx context.Context, group string) (num uint64, waiting int, bodies [][]byte, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		num, waiting, bodies = 0, 0, nil
		t, err := treeOf(tx, group)
		if err != nil || t == nil {
			return err
		}
		num = t.num
		err = tx.QueryRow(`SELECT COUNT(*) FROM bridge_registration r LEFT JOIN bridge_confirmed c ON c.grp = r.grp AND c.node = r.node
			WHERE r.grp = ? AND r.leaf >= 0 AND r.route = ? AND (c.version IS NULL OR c.version < ?)`,
			group, channelMulticast, int64(num)).Scan(&waiting)
		if err != nil || waiting == 0 {
			return err
		}
		rows, err := tx.Query(`SELECT body FROM bridge_tree_message WHERE tid = ? AND num = ? ORDER BY pos`, t.tid, int64(num))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var body []byte
			if err := rows.Scan(&body); err != nil {
				return err
			}
			if len(body) > 0 {
				bodies = append(bodies, body)
			}
		}
		return rows.Err()
	})
	return num, waiting, bodies, err
}

// interfaceAddr is an IPv4 address of a network interface, which names it to the
// system.
func interfaceAddr(ifi *net.Interface) (ip [4]byte, err error) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return ip, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return [4]byte(n.IP.To4()), nil
		}
	}
	return ip, fmt.Errorf("interface %s has no IPv4 address", ifi.Name)
}
