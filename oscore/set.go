package oscore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/coap"
)

// Set is the Security Contexts of a server, found by the kid and kid context of
// requests. The zero value is empty and ready; all methods may be called
// concurrently.
type Set struct {
	mu    sync.RWMutex
	byKID map[string][]*Context
}

// Add takes a context in. There must be none yet with the same Recipient ID and
// ID Context (RFC 8613, Section 3.3).
func (s *Set) Add(c *Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kid := string(c.recipientID)
	for _, old := range s.byKID[kid] {
		if bytes.Equal(old.idContext, c.idContext) && (old.idContext == nil) == (c.idContext == nil) {
			return fmt.Errorf("oscore: there is a context already for kid %x", kid)
		}
	}
	if s.byKID == nil {
		s.byKID = map[string][]*Context{}
	}
	// A new slice: readers hold the old one.
	s.byKID[kid] = append(slices.Clip(s.byKID[kid]), c)
	return nil
}

// Remove takes a context out, and reports whether it was in.
func (s *Set) Remove(c *Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	kid := string(c.recipientID)
	at := slices.Index(s.byKID[kid], c)
	if at < 0 {
		return false
	}
	if len(s.byKID[kid]) == 1 {
		delete(s.byKID, kid)
		return true
	}
	s.byKID[kid] = slices.Delete(slices.Clone(s.byKID[kid]), at, at+1)
	return true
}

// Has says whether a kid is that of a context: identifiers that a server hands
// out must be new.
func (s *Set) Has(kid []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byKID[string(kid)]) > 0
}

// Len is the number of contexts.
func (s *Set) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, cs := range s.byKID {
		n += len(cs)
	}
	return n
}

// UnprotectRequest is [Context.UnprotectRequest] of the context that the request
// is for, which it returns. Without a kid context there may be several; they are
// tried in the order of their coming (RFC 8613, Section 5.1). The context is nil
// when the response to an error does not depend on one.
func (s *Set) UnprotectRequest(buf *Buffer, m *coap.Message) (*Context, *coap.Message, Exchange, error) {
	option, err := received(m)
	if err != nil {
		return nil, nil, Exchange{}, err
	}
	s.mu.RLock()
	found := s.byKID[string(option.KID)]
	s.mu.RUnlock()
	if buf == nil {
		buf = new(Buffer)
	}
	err = ErrContext
	if option.PIV == nil || option.KID == nil || option.Group {
		err = ErrOption
	}
	for _, c := range found {
		p, ex, e := c.unprotectRequest(buf, m, &option)
		if e == nil || errors.Is(e, ErrNotFresh) {
			return c, p, ex, e
		}
		if !errors.Is(e, ErrContext) {
			err = e
		}
	}
	return nil, nil, Exchange{}, err
}
