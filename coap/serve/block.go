package serve

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// cacheKey tells requests of one link apart for blockwise transfer: base is
// made of code and options, full of the payload as well. Blocks of two FETCHes
// that differ in nothing but their payloads must not be mixed.
type cacheKey struct{ base, full [16]byte }

// keyOf hashes what makes a request the same request (RFC 7959, Section 2.4;
// RFC 9175, Section 3.3): all options that belong to the cache key but the block
// options and Observe, which may differ between the parts. Request-Tag belongs
// to it.
func keyOf(code coap.Code, opts coap.Options, payload []byte) cacheKey {
	h := sha256.New()
	var n [6]byte
	h.Write([]byte{byte(code)})
	for _, o := range opts {
		if o.ID.NoCacheKey() || o.ID == coap.Block1 || o.ID == coap.Block2 || o.ID == coap.ObserveOption {
			continue
		}
		binary.BigEndian.PutUint16(n[:], uint16(o.ID))
		binary.BigEndian.PutUint32(n[2:], uint32(len(o.Value)))
		h.Write(n[:])
		h.Write(o.Value)
	}
	var k cacheKey
	copy(k.base[:], h.Sum(nil))
	h.Write([]byte{0xff, 0xff}) // no option: 0xffff is not used
	h.Write(payload)
	copy(k.full[:], h.Sum(nil))
	return k
}

// cacheKey is keyOf the request as it came, computed when first needed.
func (x *exchange) cacheKey() cacheKey {
	if !x.keyed {
		x.key = keyOf(x.asked.code, x.asked.options, x.asked.payload)
		x.keyed = true
	}
	return x.key
}

// assembly is a request body that arrives in blocks.
type assembly struct {
	base [16]byte
	body []byte
	used time.Time
}

// blockwiseIn reads the block options. It returns a response when the request
// ends here: a block that is not the last, or a later block of a response that
// is kept. Otherwise x.req is whole.
func (s *Server) blockwiseIn(x *exchange) (*coap.Response, error) {
	var err error
	if x.block2, err = x.req.Options.Block(coap.Block2); err != nil {
		return nil, coap.Errorf(coap.BadRequest, "block option")
	}
	b1, err := x.req.Options.Block(coap.Block1)
	if err != nil {
		return nil, coap.Errorf(coap.BadRequest, "block option")
	}
	if b1 != nil {
		r, err := s.assemble(x, *b1)
		if r != nil || err != nil {
			return r, err
		}
	}
	x.noteAsked()
	if x.block2 != nil && x.block2.Num > 0 {
		return s.continuation(x)
	}
	return nil, nil
}

// assemble takes one block of a request body (RFC 7959, Section 2.5). It
// returns nil, nil when the body is complete.
func (s *Server) assemble(x *exchange, b coap.Block) (*coap.Response, error) {
	payload := x.req.Payload
	// RFC 7959, Section 2.2: all blocks but the last are of the full size.
	if len(payload) > b.Size() || b.More && len(payload) != b.Size() {
		return nil, coap.Errorf(coap.BadRequest, "block of a wrong size")
	}
	if size, ok := x.req.Options.Uint(coap.Size1); ok && int64(size) > int64(s.cfg.MaxBody) {
		return nil, s.tooLarge()
	}
	s.metrics.blockIn.Add(float64(len(payload)))
	echo := b
	if b.Num == 0 {
		// RFC 7959, Section 2.3: the first response negotiates a smaller size.
		echo.SZX = min(b.SZX, s.szx)
	}
	base := keyOf(x.req.Code, x.req.Options, nil).base

	s.mu.Lock()
	defer s.mu.Unlock()
	p := x.peer
	var a *assembly
	for _, have := range p.assemblies {
		if have.base == base {
			a = have
		}
	}
	if b.Num == 0 {
		if a != nil {
			s.forgetAssemblyLocked(p, a) // RFC 7959, Section 2.5: the client began anew
		}
		if !b.More {
			x.block1 = &echo
			return nil, nil
		}
		if p.gone {
			return nil, coap.Respond(busy(coap.ServiceUnavailable), coap.ErrGone)
		}
		if len(p.assemblies) >= maxPeerTransfers {
			s.forgetAssemblyLocked(p, p.assemblies[0])
		}
		a = &assembly{base: base}
		t := p.transfer()
		t.assemblies = append(t.assemblies, a)
	} else if a == nil {
		return nil, coap.Errorf(coap.RequestEntityIncomplete, "first block missing")
	}
	a.used = time.Now()
	i := slices.Index(p.assemblies, a)
	p.assemblies = append(slices.Delete(p.assemblies, i, i+1), a)

	off := b.Offset()
	switch end := off + len(payload); {
	case off > len(a.body):
		return nil, coap.Errorf(coap.RequestEntityIncomplete, "block %d missing", len(a.body)>>(b.SZX+4))
	case off == len(a.body):
		if end > s.cfg.MaxBody {
			s.forgetAssemblyLocked(p, a)
			return nil, s.tooLarge()
		}
		if s.assemblyBytes+len(payload) > maxAssembly || p.plain && s.plainBytes+len(payload) > maxPlainAssembly {
			s.forgetAssemblyLocked(p, a)
			s.refusals.total[overBodies].Inc()
			return nil, coap.Respond(busy(coap.ServiceUnavailable), errAssembly)
		}
		a.body = append(a.body, payload...)
		s.assemblyBytes += len(payload)
		if p.plain {
			s.plainBytes += len(payload)
		}
	case b.More && end <= len(a.body):
		// A block that came before: the client did not get our answer.
	default:
		s.forgetAssemblyLocked(p, a)
		return nil, coap.Errorf(coap.RequestEntityIncomplete, "blocks overlap")
	}
	x.block1 = &echo
	if b.More {
		return &coap.Response{Code: coap.Continue}, nil
	}
	x.req.Payload = a.body
	s.forgetAssemblyLocked(p, a)
	return nil, nil
}

var errAssembly = fmt.Errorf("serve: too many bodies in assembly")

// tooLarge is RFC 7959, Section 2.9.3, with the size that would do.
func (s *Server) tooLarge() error {
	r := &coap.Response{Code: coap.RequestEntityTooLarge}
	r.Options.SetUint(coap.Size1, uint32(s.cfg.MaxBody))
	return coap.Respond(r, fmt.Errorf("serve: body of more than %d bytes", s.cfg.MaxBody))
}

func (s *Server) forgetAssemblyLocked(p *peer, a *assembly) {
	i := slices.Index(p.assemblies, a)
	if i < 0 {
		return
	}
	p.assemblies = slices.Delete(slices.Clone(p.assemblies), i, i+1)
	s.assemblyBytes -= len(a.body)
	if p.plain {
		s.plainBytes -= len(a.body)
	}
}
