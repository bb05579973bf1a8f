package bridge

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// publisher brings stored messages to the broker: QoS 1, retained, so that a
// sleeper finds the newest when it wakes.
//
// The store is its queue. What is pending is read from there for every pass,
// and a pass over everything follows every connect, because a broker may have
// lost what it retained. So nothing is lost while the broker is away, and
// nothing is ever rendered here.
type publisher struct {
	b    *Bridge
	wake chan struct{} // one slot

	mu       sync.Mutex
	dirty    map[string]bool // groups with a new rekey
	all      bool            // everything has to be looked at
	revoked  bool            // identifiers were revoked
	ended    []string        // identifiers that were, at any gateway: of our own broker
	clientID string
}

func newPublisher(b *Bridge) *publisher {
	return &publisher{b: b, wake: make(chan struct{}, 1), dirty: map[string]bool{}}
}

// setup makes sure that the gateway has a lasting client identifier, under
// which a broker keeps acknowledgements while the gateway is away.
func (p *publisher) setup(ctx context.Context) error {
	p.clientID = p.b.cfg.ClientID
	if p.clientID != "" || p.b.broker != nil {
		return nil
	}
	fresh := "groupgate-" + base64.RawURLEncoding.EncodeToString(random(8))
	err := p.b.store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(`INSERT INTO bridge_meta (name, value) VALUES ('client_id', ?) ON CONFLICT (name) DO NOTHING`, fresh); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT value FROM bridge_meta WHERE name = 'client_id'`).Scan(&p.clientID)
	})
	if err != nil {
		return fmt.Errorf("bridge: client identifier: %w", err)
	}
	return nil
}

func (p *publisher) wakeGroup(group string) {
	p.mu.Lock()
	p.dirty[group] = true
	p.mu.Unlock()
	signal(p.wake)
}

func (p *publisher) wakeRevoked() {
	p.mu.Lock()
	p.revoked = true
	p.mu.Unlock()
	signal(p.wake)
}

// clear has retained messages of an identifier deleted from our own broker,
// also when another gateway is done with it already.
func (p *publisher) clear(rid string) {
	p.mu.Lock()
	p.ended = append(p.ended, rid)
	p.mu.Unlock()
	signal(p.wake)
}

// work is what there is to do.
type work struct {
	ended   []string
	all     bool
	revoked bool
	groups  []string
}

func (p *publisher) take() work {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := work{all: p.all, revoked: p.revoked, ended: p.ended}
	p.ended = nil
	for g := range p.dirty {
		w.groups = append(w.groups, g)
	}
	p.all, p.revoked = false, false
	clear(p.dirty)
	return w
}

// run keeps a session with the broker until ctx ends.
func (p *publisher) run(ctx context.Context) error {
	delay := backoffMin
	for {
		began := time.Now()
		err := p.session(ctx)
		p.b.met.connected.Set(0)
		p.b.activity.brokerLost()
		p.b.treesLost()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > backoffMax {
			delay = backoffMin
		}
		if refusedByBroker(err) {
			p.b.log.WarnContext(ctx, "mqtt broker refuses the gateway", "err", err, "retry_in", delay,
				"hint", "compare mqtt.user and password_file, or cert_file, with the accounts of the broker")
		} else {
			p.b.log.WarnContext(ctx, "mqtt broker is away", "err", err, "retry_in", delay)
		}
		pause(ctx, delay/2+rand.N(delay/2))
		delay = min(2*delay, backoffMax)
	}
}

// session is one connection, from CONNECT to its end.
func (p *publisher) session(ctx context.Context) error {
	c, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	p.b.met.connected.Set(1)
	p.b.log.InfoContext(ctx, "connected to the mqtt broker")

	p.mu.Lock()
	p.all, p.revoked = true, true
	p.mu.Unlock()
	signal(p.wake)
	relayed := map[string]uint64{} // by rid: what this broker took in this session, see stage
	trees := map[string]uint32{}   // by tree: the change up to which it took everything
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-c.lost:
			return fmt.Errorf("bridge: connection to the broker: %w", err)
		case <-p.wake:
		}
		w := p.take()
		if err := p.deleteRetained(ctx, c, w.ended, relayed); err != nil {
			return err
		}
		if w.revoked {
			if err := p.deleteRevoked(ctx, c, relayed); err != nil {
				return err
			}
			if err := p.clearTrees(ctx, c); err != nil {
				return err
			}
		}
		if w.all {
			if w.groups, err = p.b.knownGroups(ctx); err != nil {
				return err
			}
		}
		for _, g := range w.groups {
			if err := p.publishGroup(ctx, c, g, relayed); err != nil {
				return err
			}
			if err := p.publishTree(ctx, c, g, trees); err != nil {
				return err
			}
		}
	}
}

// message is a stored message on its way to the broker.
type message struct {
	rid    string
	member member
	num    uint64
	held   time.Time // until when members may wait for that version
	body   []byte

	dormant []byte // what goes before body in two phases; nil: nothing
}

// publishGroup hands over what members of a group have not confirmed.
func (p *publisher) publishGroup(ctx context.Context, c *client, group string, relayed map[string]uint64) error {
	var w inFlight
	after := ""
	for {
		msgs, err := p.pending(ctx, group, after)
		if err != nil {
			return fmt.Errorf("bridge: read messages: %w", err)
		}
		for _, m := range msgs {
			after = m.member.node
			if !p.b.activity.wants(m.member, channelMQTT) {
				continue
			}
			if m.held.After(time.Now()) && !p.b.holds.known(group, m.num) {
				continue // the event of that rekey is on its way
			}
			if _, held := p.b.held(m.member); held {
				continue
			}
			stage, body := groupcomm.PhasedVersion(m.num, true), m.body
			if m.dormant != nil && p.b.holds.dormant(m.member, m.num, time.Now()) {
				stage, body = groupcomm.PhasedVersion(m.num, false), m.dormant
			}
			if relayed[m.rid] >= stage {
				continue
			}
			p.b.met.sent(channelMQTT, len(body))
			err := w.add(ctx, c, c.publish(rekeyTopic(p.b.cfg.Prefix, m.rid), body), func(err error) {
				if err != nil {
					p.b.met.published.WithLabelValues("failed").Inc()
					p.b.activity.attempted(m.member, channelMQTT, err)
					return
				}
				// A PUBACK is the broker's, not the member's.
				relayed[m.rid] = stage
				p.b.met.published.WithLabelValues("relayed").Inc()
				p.b.activity.relayedAt(m.member, channelMQTT, time.Now())
			})
			if err != nil {
				return err
			}
		}
		if len(msgs) < page {
			return w.drain(ctx, c, 0)
		}
	}
}

// pending reads a page of messages that are not confirmed, in the order of
// node names. A member on a leaf of a key tree has no message of its own.
func (p *publisher) pending(ctx context.Context, group, after string) (out []message, err error) {
	err = p.b.store.View(ctx, func(tx *store.Tx) error {
		out = nil
		rows, err := tx.Query(`SELECT r.rid, r.node, m.num, m.body, COALESCE(k.held_until, 0), d.body
			FROM bridge_registration r
			JOIN bridge_message m ON m.kid = r.kid
			LEFT JOIN bridge_rekey k ON k.grp = r.grp AND k.num = m.num
			LEFT JOIN bridge_dormant d ON d.kid = m.kid AND d.num = m.num
			LEFT JOIN bridge_confirmed c ON c.grp = r.grp AND c.node = r.node
			WHERE r.grp = ? AND r.leaf < 0 AND r.node > ? AND (c.version IS NULL OR c.version < m.num OR d.kid IS NOT NULL)
			ORDER BY r.node LIMIT ?`, group, after, page)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			m := message{member: member{group: group}}
			var num, held int64
			if err := rows.Scan(&m.rid, &m.member.node, &num, &m.body, &held, &m.dormant); err != nil {
				return err
			}
			m.num, m.held = uint64(num), fromMillis(held)
			out = append(out, m)
		}
		return rows.Err()
	})
	return out, err
}

// deleteRevoked clears what the broker retains for registrations that ended:
// an empty retained message deletes the one before (MQTT 3.1.1, Section
// 3.3.1.3). A row goes when the broker confirmed all.
func (p *publisher) deleteRevoked(ctx context.Context, c *client, relayed map[string]uint64) error {
	for {
		rids, err := p.revokedPage(ctx)
		if err != nil {
			return fmt.Errorf("bridge: read revoked: %w", err)
		}
		if len(rids) == 0 {
			return nil
		}
		if err := p.deleteRetained(ctx, c, rids, relayed); err != nil {
			return err
		}
		err = p.b.store.Update(ctx, func(tx *store.Tx) error {
			for _, rid := range rids {
				if _, err := tx.Exec(`DELETE FROM bridge_revoked WHERE rid = ?`, rid); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("bridge: clear revoked: %w", err)
		}
	}
}

// deleteRetained returns when the broker has confirmed all.
func (p *publisher) deleteRetained(ctx context.Context, c *client, rids []string, relayed map[string]uint64) error {
	var w inFlight
	for _, rid := range rids {
		for _, topic := range []string{rekeyTopic(p.b.cfg.Prefix, rid), ackTopic(p.b.cfg.Prefix, rid), presenceTopic(p.b.cfg.Prefix, rid)} {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := w.add(ctx, c, c.publish(topic, nil), func(error) {}); err != nil {
				return err
			}
		}
		delete(relayed, rid)
	}
	return w.drain(ctx, c, 0)
}

func (p *publisher) revokedPage(ctx context.Context) (rids []string, err error) {
	err = p.b.store.View(ctx, func(tx *store.Tx) error {
		rids = nil
		rows, err := tx.Query(`SELECT rid FROM bridge_revoked ORDER BY rid LIMIT ?`, page)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var rid string
			if err := rows.Scan(&rid); err != nil {
				return err
			}
			rids = append(rids, rid)
		}
		return rows.Err()
	})
	return rids, err
}

// inFlight holds publications that wait for their PUBACK, oldest first.
type inFlight struct {
	waiting []flight
}

type flight struct {
	token token
	done  func(error)
}

var errToken = errors.New("bridge: the broker did not answer in time")

// add takes one more and waits for the oldest when the window is full.
func (w *inFlight) add(ctx context.Context, c *client, t token, done func(error)) error {
	w.waiting = append(w.waiting, flight{t, done})
	return w.drain(ctx, c, window-1)
}

// drain waits until at most n are left. An error means that the session is
// over; what is left then is reported failed.
func (w *inFlight) drain(ctx context.Context, c *client, n int) error {
	for len(w.waiting) > n {
		f := w.waiting[0]
		err := c.wait(ctx, f.token)
		f.done(err)
		w.waiting = w.waiting[1:]
		if err != nil {
			for _, f := range w.waiting {
				f.done(err)
			}
			w.waiting = nil
			return err
		}
	}
	return nil
}
