package plugin

import (
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// maxAssociations is how many associations one key of proof may have: a node
// has one, and leaves one behind each time that it restarts without a goodbye.
// Without a bound one node with a fault, or one stolen key, would use up the
// associations of all.
const maxAssociations = 8

// association is a link of either kind as the crowd counts it.
type association interface {
	Peer() coap.Peer
	owner() coap.Subject
	survived() bool // a restart of the gateway
	end()           // closes it
}

// company are the associations of one key.
type company struct {
	links      []association // oldest first
	handshakes int           // while there was one
}

// crowd knows the associations of each key of proof. The zero value is ready.
type crowd struct {
	mu sync.Mutex
	of map[coap.Subject]company // guarded by mu
}

// counted says whether the associations of a subject are counted. Those of
// configured keys are not: an operator may give one to many clients.
func counted(s coap.Subject) bool {
	return s.Kind == coap.SubjectPoP || s.Kind == coap.SubjectKeyHash
}

// enter adds l and returns the association that is to be closed for it, if
// there are too many.
func (c *crowd) enter(l association) (oldest association) {
	subject := l.owner()
	if !counted(subject) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[coap.Subject]company{}
	}
	all := append(c.of[subject].links, l)
	if len(all) > maxAssociations {
		oldest = all[0]
		all = slices.Delete(all, 0, 1)
	}
	n := c.of[subject].handshakes
	if !l.survived() {
		n++
	}
	c.of[subject] = company{all, n}
	return oldest
}

// associations lists those of a subject that are open, and counts the handshakes
// that it made while it had one.
func (c *crowd) associations(s coap.Subject) (open []association, handshakes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.of[s].links), c.of[s].handshakes
}

// leave removes l; it may have been removed before.
func (c *crowd) leave(l association) {
	subject := l.owner()
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.of[subject].links
	i := slices.Index(all, l)
	switch {
	case i < 0:
	case len(all) == 1:
		delete(c.of, subject)
	default:
		c.of[subject] = company{slices.Delete(all, i, i+1), c.of[subject].handshakes}
	}
}
