package oscore

// GroupStore makes durable what a member's Security Contexts must not lose, so that a
// Sender Context goes on after a restart: Sender Sequence Numbers, and which requests
// of others were accepted. [GroupFile] is one.
//
// Its methods may be called from several goroutines. name is a digest, safe to show.
//
// draft-ietf-core-oscore-groupcomm-28, Section 2.6.1.
type GroupStore interface {
	GroupSequences
	// Window gives what was kept for the requests of the member kid under the keying
	// material name, from memory; false when nothing was, so that none was ever
	// accepted. What was forgotten is a window that is not valid.
	Window(name string, kid []byte) (WindowState, bool)
	// Keep returns when it is durable that the requests in w were accepted, beside
	// those that were kept before ([WindowState.Merge]). It is called before a request
	// is returned. kid is not to be kept.
	Keep(name string, kid []byte, w WindowState) error
}

// Merge is the window that has received what either of two has. It is valid when both
// are.
func (s WindowState) Merge(o WindowState) WindowState {
	if s.Next < o.Next {
		s, o = o, s
	}
	// A shift by 64 and more leaves zero.
	return WindowState{Valid: s.Valid && o.Valid, Next: s.Next, Seen: s.Seen | o.Seen<<(s.Next-o.Next)}
}

// windowOf makes the Replay Window of a new Recipient Context: what is stored, or for
// a member of whom nothing is stored a valid one at 0. Without a store it is not valid
// once a Recipient Context was deleted under the same keying material.
//
// draft-ietf-core-oscore-groupcomm-28, Sections 2.6.1 and 2.6.1.2.
func (g *Group) windowOf(c *groupContext, kid []byte) *Window {
	w := new(Window)
	if g.cfg.Store == nil {
		if !c.purged {
			w.Reset()
		}
		return w
	}
	if state, ok := g.cfg.Store.Window(c.stored, kid); ok {
		w.Restore(state)
	} else {
		w.Reset()
	}
	return w
}
