package serve

import (
	"bytes"
	"container/list"
	"crypto/hmac"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// snapshot is a response that the client gets in blocks. It is kept so that all
// blocks are of one state, whatever happens to the resource meanwhile (RFC 7959,
// Section 2.4).
type snapshot struct {
	peer  *peer
	key   cacheKey
	token []byte // of the request that it answered
	r     *coap.Response
	used  time.Time
	elem  *list.Element
}

// snapshotLRU orders the snapshots of all peers; guarded by Server.mu.
type snapshotLRU struct {
	order list.List // least recently used first
	bytes int
}

func (l *snapshotLRU) add(snap *snapshot) {
	snap.elem = l.order.PushBack(snap)
	l.bytes += len(snap.r.Payload)
}

func (l *snapshotLRU) remove(snap *snapshot) {
	if snap.elem != nil {
		l.order.Remove(snap.elem)
		l.bytes -= len(snap.r.Payload)
		snap.elem = nil
	}
}

// continuation answers a request for a later block from the snapshot. Without
// one, safe methods run anew (the entity tag tells the client whether the
// blocks belong together); others cannot be repeated.
func (s *Server) continuation(x *exchange) (*coap.Response, error) {
	key := x.cacheKey()
	s.mu.Lock()
	snap := findSnapshot(x.peer, key, x.token(), len(x.req.Payload) > 0)
	if snap != nil {
		s.touchLocked(snap)
	}
	s.mu.Unlock()
	if snap != nil {
		return s.slice(snap.r, *x.block2)
	}
	if x.req.Code == coap.GET || x.req.Code == coap.FETCH && len(x.req.Payload) > 0 {
		return nil, nil
	}
	return nil, coap.Errorf(coap.RequestEntityIncomplete, "response is no longer kept")
}

// findSnapshot looks for the request with its payload, then for the only one
// without regard to it: RFC 7959, Section 2.7, has requests for later blocks
// that do not repeat the payload. Of several, the newest with the token is meant:
// clients that keep the token for all blocks (go-coap does) can so have FETCHes
// beside each other that differ in the payload only.
func findSnapshot(p *peer, key cacheKey, token []byte, payload bool) *snapshot {
	var only, same *snapshot
	n := 0
	for _, snap := range p.snapshots {
		if snap.key.full == key.full {
			return snap
		}
		if snap.key.base == key.base {
			only = snap
			n++
			if bytes.Equal(snap.token, token) {
				same = snap
			}
		}
	}
	switch {
	case payload:
		return nil
	case n == 1:
		return only
	}
	return same
}

// blockwiseOut cuts a response that is larger than a block and keeps the rest.
func (s *Server) blockwiseOut(x *exchange, r *coap.Response) (*coap.Response, error) {
	most := s.largest(r)
	b := coap.Block{SZX: most}
	if x.block2 != nil {
		b.Num = x.block2.Num
		b.SZX = min(x.block2.SZX, most)
		if b.SZX != x.block2.SZX && b.Num > 0 {
			b.Num <<= x.block2.SZX - b.SZX
		}
	} else if len(r.Payload) <= b.Size() || r.Options.Has(coap.OSCOREOption) && len(r.Payload) <= s.cfg.BlockSize+protection {
		// What is protected was cut inside, and is a little larger now. Cutting it
		// again would double the messages.
		return r, nil
	}
	if len(r.Payload) <= b.Size() && b.Num == 0 {
		s.forgetKey(x.peer, x.cacheKey())
		return withBlock(r, b, len(r.Payload), false), nil
	}
	out, err := s.slice(s.keep(x.peer, x.cacheKey(), x.token(), r), b)
	if v, ok := r.Options.Get(coap.ObserveOption); ok && err == nil && b.Num == 0 {
		out.Options.Set(coap.ObserveOption, v) // RFC 7959, Section 2.6: in the first block
	}
	return out, err
}

// ETag is the entity tag that a body gets when it goes out in blocks and its handler
// gave none. It is keyed, so that it says nothing about a secret in the body.
func (s *Server) ETag(body []byte) []byte {
	mac := hmac.New(sha256.New, s.etagKey[:])
	mac.Write(body)
	return mac.Sum(nil)[:8]
}

// keep stores r for later blocks and gives it an entity tag when the handler
// gave none.
func (s *Server) keep(p *peer, key cacheKey, token []byte, r *coap.Response) *coap.Response {
	kept := &coap.Response{Code: r.Code, Options: slices.Clone(r.Options), Payload: r.Payload, MaxBlock: r.MaxBlock}
	kept.Options.Remove(coap.ObserveOption)
	if r.Code == coap.Content && !kept.Options.Has(coap.ETag) {
		kept.Options.Add(coap.ETag, s.ETag(r.Payload))
	}
	snap := &snapshot{peer: p, key: key, token: bytes.Clone(token), r: kept, used: time.Now()}

	s.mu.Lock()
	defer s.mu.Unlock()
	if p.gone {
		return kept
	}
	for _, old := range p.snapshots {
		if old.key.full == key.full {
			s.forgetSnapshotLocked(old)
			break
		}
	}
	if len(p.snapshots) >= maxPeerTransfers {
		s.forgetSnapshotLocked(p.snapshots[0])
	}
	for s.snapshots.order.Len() > 0 && s.snapshots.bytes+len(kept.Payload) > maxSnapshots {
		s.forgetSnapshotLocked(s.snapshots.order.Front().Value.(*snapshot))
	}
	t := p.transfer()
	t.snapshots = append(t.snapshots, snap)
	s.snapshots.add(snap)
	return kept
}

// forgetKey drops the snapshot of an earlier, larger answer.
func (s *Server) forgetKey(p *peer, key cacheKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snap := range p.snapshots {
		if snap.key.full == key.full {
			s.forgetSnapshotLocked(snap)
			return
		}
	}
}

func (s *Server) touchLocked(snap *snapshot) {
	snap.used = time.Now()
	s.snapshots.order.MoveToBack(snap.elem)
	p := snap.peer
	if i := slices.Index(p.snapshots, snap); i >= 0 {
		p.snapshots = append(slices.Delete(slices.Clone(p.snapshots), i, i+1), snap)
	}
}

func (s *Server) forgetSnapshotLocked(snap *snapshot) {
	s.snapshots.remove(snap)
	p := snap.peer
	if i := slices.Index(p.snapshots, snap); i >= 0 {
		p.snapshots = slices.Delete(slices.Clone(p.snapshots), i, i+1)
	}
}

// largest is the size exponent of the largest block that a response may go out in.
func (s *Server) largest(r *coap.Response) uint8 {
	if r.MaxBlock < minBlock {
		return s.szx
	}
	return min(s.szx, szxOf(r.MaxBlock))
}

// slice is block b of a response (RFC 7959, Section 2.4).
func (s *Server) slice(r *coap.Response, b coap.Block) (*coap.Response, error) {
	if most := s.largest(r); b.SZX > most {
		b.Num <<= b.SZX - most
		b.SZX = most
	}
	off := b.Offset()
	if off >= len(r.Payload) {
		return nil, coap.Errorf(coap.BadRequest, "block %d is beyond the end", b.Num)
	}
	end := min(off+b.Size(), len(r.Payload))
	part := &coap.Response{Code: r.Code, Options: r.Options, Payload: r.Payload[off:end]}
	s.metrics.blockOut.Add(float64(end - off))
	return withBlock(part, b, len(r.Payload), end < len(r.Payload)), nil
}

// withBlock adds the Block2 option, and Size2 to a first block with more to
// come (RFC 7959, Section 4).
func withBlock(r *coap.Response, b coap.Block, size int, more bool) *coap.Response {
	out := *r
	out.Options = slices.Clone(r.Options)
	b.More = more
	out.Options.SetBlock(coap.Block2, b)
	if b.Num == 0 && more {
		out.Options.SetUint(coap.Size2, uint32(size))
	}
	return &out
}
