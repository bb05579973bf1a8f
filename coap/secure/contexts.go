// Package secure puts OSCORE (RFC 8613) between links and the server core: a
// protected request of any link is unprotected and served as one of a link of its
// own, whose peer is the other end of the Security Context.
package secure

import (
	"context"
	"errors"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
)

// Contexts is where Security Contexts are kept, and what they survive a restart in.
type Contexts interface {
	// Context finds the context of the requests with a kid, as it is stored.
	// [ErrNone]: there is none that may be used now.
	Context(ctx context.Context, kid []byte) (*Stored, error)
	// Many is Context for many, by kid; those that are [ErrNone] are left out.
	Many(ctx context.Context, kids [][]byte) (map[string]*Stored, error)
	// Take is called for every request that was found authentic, before it is
	// served, and has the caller own what the requests of the context leave behind
	// in memory: the Replay Window. With held it says that nobody else took it
	// since, and that the context may still be used. Without held it is taken as
	// it was read, or not at all: [ErrTaken]. The first to take a context that is
	// New proves possession of its key. [ErrNone]: the context may not be used any
	// more.
	Take(ctx context.Context, c *Stored, held bool) error
	// Reserve has the sequence numbers below upTo be used by the caller and by
	// nobody after it; [ErrTaken] when somebody else took the context.
	Reserve(ctx context.Context, c *Stored, upTo uint64) error
}

// Errors of [Contexts].
var (
	ErrNone  = errors.New("secure: no such security context")
	ErrTaken = errors.New("secure: the security context was taken by somebody else")
)

// Stored is a Security Context as it is kept. It holds keys and prints as
// [redacted].
type Stored struct {
	oscore.Setup
	Link     coap.LinkID  // of the context: the same after a restart
	Subject  coap.Subject // who has the other half
	Reserved uint64       // sequence numbers below may have been used
	Epoch    int64        // how often it was taken
}

// New says that nobody took the context yet, so that no request of it was ever
// served.
func (s *Stored) New() bool { return s.Epoch == 0 }
