package bridge

import (
	"context"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// roll is who is a member at the time of a rekey, read in one go: to look each of a
// hundred thousand observers up by itself costs more than to tell it.
//
// It is read when the version to be sent is there already, so whoever is on it may
// have that version: who left before is not. Who leaves or is evicted later is
// taken off it by the event of that. Who is not on it is looked up by itself, and
// all are some time later; the access token is asked about each time anyway.
type roll struct {
	mu    sync.Mutex
	read  bool
	until time.Time
	nodes map[coap.Subject]string
}

// Shape of rolls.
const (
	// rollFrom is how many must observe a group for a roll to be worth reading; where
	// each look-up is a way to a database server rollFromShared, if they are not less
	// than one of rollShare members.
	rollFrom       = 512
	rollFromShared = 16
	rollShare      = 64
	// rollFor is how long one is good for.
	rollFor = time.Minute
)

// rolls holds the newest roll of each group; the zero value is ready.
type rolls struct {
	mu     sync.Mutex
	groups map[string]*roll
}

// rollWorth says whether a roll is quicker to read than to look up so many who observe.
func (b *Bridge) rollWorth(ctx context.Context, group string, observing int) bool {
	c, ok := b.source.(counter)
	if observing >= rollFrom || observing < rollFromShared || b.tokens == nil || !ok {
		return observing >= rollFrom
	}
	members, _, err := c.Count(ctx, group)
	return err == nil && members <= rollShare*observing
}

// begin is a new roll of a group, unread; nil is one on which nobody is.
func (r *rolls) begin(group string, worth bool) *roll {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.groups, group)
	if !worth {
		return nil
	}
	if r.groups == nil {
		r.groups = map[string]*roll{}
	}
	l := &roll{}
	r.groups[group] = l
	return l
}

// strike takes a subject off the roll of a group.
func (r *rolls) strike(group string, s coap.Subject) {
	r.mu.Lock()
	l := r.groups[group]
	r.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.nodes, s)
}

// on finds the member that a subject is; false when it has to be looked up.
func (b *Bridge) on(ctx context.Context, l *roll, group string, s coap.Subject) (node string, ok bool) {
	if l == nil {
		return "", false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !l.read {
		l.read = true // also when it fails: then each is looked up
		nodes, err := b.readRoll(ctx, group)
		if err != nil {
			b.log.WarnContext(ctx, "cannot read who is a member at a rekey: each is looked up", "group", group, "err", err)
			return "", false
		}
		l.nodes = nodes
		l.until = now.Add(rollFor)
	}
	if now.After(l.until) {
		l.nodes = nil
		return "", false
	}
	node, ok = l.nodes[s]
	return node, ok
}

// roller is the optional part of a [Source] that reads a roll: the members that did
// not lapse.
type roller interface {
	Roll(ctx context.Context, group string) (map[coap.Subject]string, error)
}

func (b *Bridge) readRoll(ctx context.Context, group string) (map[coap.Subject]string, error) {
	if r, ok := b.source.(roller); ok {
		return r.Roll(ctx, group)
	}
	members, err := b.source.Members(ctx, group)
	if err != nil {
		return nil, err
	}
	nodes := make(map[coap.Subject]string, len(members))
	for _, m := range members {
		if !m.Lapsed {
			nodes[m.Subject] = m.Node
		}
	}
	return nodes, nil
}

// doubts are observers of whom it could not be found out whether they may be told,
// until it is. The zero value is ready.
type doubts struct {
	mu sync.Mutex
	of map[observation]bool
}

func (d *doubts) set(o observation, doubted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !doubted:
		delete(d.of, o)
		return
	case d.of == nil:
		d.of = map[observation]bool{}
	}
	d.of[o] = true
}

func (d *doubts) has(o observation) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[o]
}

// doubted says whether a peer is held back because Allow did not find out about it.
// It is tried again some time later, or at its next sign of life.
func (b *Bridge) doubted(topic string, p coap.Peer) bool {
	if !b.doubts.has(observation{topic, p.Link}) {
		return false
	}
	if m, ok := b.behind(topic, p); ok {
		b.tryLater(m)
	}
	return true
}
