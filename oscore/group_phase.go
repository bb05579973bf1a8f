package oscore

import (
	"bytes"
	"errors"
	"time"
)

var errNothingPrepared = errors.New("oscore: there is no keying material to begin with")

// Prepare takes keying material that is to come beside what is in use: messages under
// it are read, and requests under it answered under it, while requests are still
// protected with what is in use. [Group.Activate] begins with it, [Group.Install] of
// other material discards it. What is known about others is asked for anew.
//
// That both ends of a rekey know the material before either begins with it is a
// matter between a member and its Group Manager; draft-ietf-core-oscore-groupcomm-28,
// Section 12.2, has the Group Manager limit what is lost otherwise.
func (g *Group) Prepare(m GroupMaterial, sender *GroupSender) error {
	next, err := g.derive(m, sender)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.now == nil:
		return ErrNoMaterial
	case g.now.sameKeys(next), g.next != nil && g.next.sameKeys(next):
		return errInstalled
	}
	g.epochs++
	next.epoch, next.life = g.epochs, g.life
	g.next = next
	return nil
}

// Activate begins with the material of [Group.Prepare]. What was in use is kept to
// read messages with for the time of [GroupConfig.Grace].
func (g *Group) Activate() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		return errNothingPrepared
	}
	g.old, g.until = g.now, time.Now().Add(g.cfg.Grace)
	g.now, g.next = g.next, nil
	return nil
}

// Prepared is the Group Identifier of the material to come; nil when there is none.
func (g *Group) Prepared() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		return nil
	}
	return bytes.Clone(g.next.gid)
}
