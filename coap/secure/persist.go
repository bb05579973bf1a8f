package secure

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/journal/rec"
	"github.com/seed4911071e/groupgate/oscore"
)

// Observations under OSCORE outlive the process: what is kept here is which request
// the notifications of an observation answer, and the link that they go out on. The
// observation itself is kept by the server core, the Security Context where contexts
// are. Why that is safe:
//
//   - Sender Sequence Numbers go on behind those that are reserved on disk, and each
//     notification has a Partial IV of its own, so no nonce is used twice (RFC 8613,
//     Appendix B.1.1).
//   - Which requests were accepted is not kept: the next one has to show by Echo that
//     it is fresh, as after every restart (Appendix B.1.2).
//   - A context that somebody else took meanwhile has another epoch, and is left alone.

// Keeper keeps records over restarts. Its Append waits for nothing and is called with
// locks held.
type Keeper interface{ Append(rec []byte) }

// Carrier is the link that a context is reached over, as it is found again after a
// restart: by its name, or over plain UDP by the address of the peer.
type Carrier struct {
	Link coap.LinkID    // "" over plain UDP
	Addr netip.AddrPort // zero but for plain UDP
	Home netip.Addr     // of this machine, that the peer at Addr uses; zero: the system chooses
}

// carrierOf names a link; false: it does not outlive the process.
func carrierOf(outer coap.Link) (Carrier, bool) {
	if outer == nil {
		return Carrier{}, false
	}
	switch p := outer.Peer(); p.Via {
	case coap.Plain:
		c := Carrier{Addr: p.Addr}
		if h, ok := outer.(coap.Homed); ok {
			c.Home = h.Home().WithZone("")
		}
		return c, p.Addr.IsValid()
	case coap.DTLSPSK, coap.DTLSCert, coap.DTLSRPK:
		return Carrier{Link: p.Link}, len(p.Link) <= maxKeptLink
	}
	return Carrier{}, false
}

// What is written. Each record begins with its kind and the link of the context.
//
//	bound    a request that notifications answer: kid and epoch of the context, carrier,
//	         token, exchange
//	carried  the context is reached over another link
//	both…At  likewise, where the peer uses one of several addresses of this machine
//	released no notification follows with a token
//	gone     nor with any other: the context is out of use
const (
	keptBound     = 'B'
	keptBoundAt   = 'b'
	keptCarried   = 'C'
	keptCarriedAt = 'c'
	keptReleased  = 'X'
	keptGone      = 'G'

	maxKeptLink     = 64
	maxKeptExchange = 512
)

var errKept = errors.New("secure: malformed record of an observation")

type boundRecord struct {
	link, kid, token string
	epoch            int64
	over             Carrier
	exchange         []byte
}

type carriedRecord struct {
	link string
	over Carrier
}

type releasedRecord struct{ link, token string }

type goneRecord string

// kind is that of a record with the carrier: one of two.
func (c Carrier) kind(plain, at byte) byte {
	if c.Home.IsValid() {
		return at
	}
	return plain
}

func (c Carrier) append(b []byte) []byte {
	b = rec.AppendString(b, string(c.Link))
	addr, _ := c.Addr.MarshalBinary() // cannot fail
	b = rec.AppendString(b, string(addr))
	if c.Home.IsValid() {
		b = rec.AppendString(b, string(c.Home.AsSlice()))
	}
	return b
}

func readCarrier(r *rec.Reader, home bool) (c Carrier) {
	c.Link = coap.LinkID(r.String(maxKeptLink))
	raw := []byte(r.String(maxKeptLink))
	again := []byte{}
	if err := c.Addr.UnmarshalBinary(raw); err == nil {
		again, _ = c.Addr.MarshalBinary()
	}
	r.Fail(c.Addr.IsValid() == (c.Link != "") || string(again) != string(raw))
	if home {
		var ok bool
		c.Home, ok = netip.AddrFromSlice([]byte(r.String(16)))
		r.Fail(!ok || c.Link != "")
	}
	return c
}

func (m *boundRecord) append(b []byte) []byte {
	b = rec.AppendString(append(b, m.over.kind(keptBound, keptBoundAt)), m.link)
	b = rec.AppendString(b, m.kid)
	b = binary.BigEndian.AppendUint64(b, uint64(m.epoch))
	b = m.over.append(b)
	b = rec.AppendString(b, m.token)
	return rec.AppendString(b, string(m.exchange))
}

func (m *carriedRecord) append(b []byte) []byte {
	return m.over.append(rec.AppendString(append(b, m.over.kind(keptCarried, keptCarriedAt)), m.link))
}

func (m *releasedRecord) append(b []byte) []byte {
	return rec.AppendString(rec.AppendString(append(b, keptReleased), m.link), m.token)
}

func (m goneRecord) append(b []byte) []byte { return rec.AppendString(append(b, keptGone), string(m)) }

// decodeKept reads one record.
func decodeKept(b []byte) (any, error) {
	r := rec.NewReader(b)
	kind, link := r.U8(), r.String(maxKeptLink)
	var out any
	switch kind {
	case keptBound, keptBoundAt:
		m := &boundRecord{link: link, kid: r.String(maxKeptLink), epoch: int64(r.U64()), over: readCarrier(r, kind == keptBoundAt), token: r.String(8)}
		m.exchange = []byte(r.String(maxKeptExchange))
		r.Fail(m.epoch < 0 || new(oscore.Exchange).UnmarshalBinary(m.exchange) != nil)
		out = m
	case keptCarried, keptCarriedAt:
		out = &carriedRecord{link, readCarrier(r, kind == keptCarriedAt)}
	case keptReleased:
		out = &releasedRecord{link, r.String(8)}
	case keptGone:
		out = goneRecord(link)
	default:
		return nil, errKept
	}
	if !r.Done() {
		return nil, errKept
	}
	return out, nil
}

// Recovery collects what was kept. The zero value is ready.
type Recovery struct {
	of map[string]*kept // by the link of the context
}

// kept is one context.
type kept struct {
	kid   string
	epoch int64
	over  Carrier
	bound []*boundRecord // oldest first
}

// Apply reads one record.
func (r *Recovery) Apply(b []byte) error {
	v, err := decodeKept(b)
	if err != nil {
		return err
	}
	if r.of == nil {
		r.of = map[string]*kept{}
	}
	switch v := v.(type) {
	case *boundRecord:
		k := r.of[v.link]
		if k == nil || k.epoch != v.epoch {
			k = &kept{}
			r.of[v.link] = k
		}
		k.kid, k.epoch, k.over = v.kid, v.epoch, v.over
		k.bound = append(k.without(v.token), v)
		k.bound = k.bound[max(0, len(k.bound)-maxExchanges):]
	case *carriedRecord:
		if k := r.of[v.link]; k != nil {
			k.over = v.over
		}
	case *releasedRecord:
		if k := r.of[v.link]; k != nil {
			if k.bound = k.without(v.token); len(k.bound) == 0 {
				delete(r.of, v.link)
			}
		}
	case goneRecord:
		delete(r.of, string(v))
	}
	return nil
}

func (k *kept) without(token string) []*boundRecord {
	return slices.DeleteFunc(k.bound, func(b *boundRecord) bool { return b.token == token })
}

// Restore brings the contexts back that something was observed over, reached over the
// links that carrier finds; nil: over none, until the peer is heard. It is called once,
// before requests are served and before Keep. A context that cannot be used any more is
// left out, and so are its observations.
func (l *Layer) Restore(ctx context.Context, r *Recovery, carrier func(Carrier) coap.Link) (links []coap.Link, err error) {
	kids := make([][]byte, 0, len(r.of))
	for _, k := range r.of {
		kids = append(kids, []byte(k.kid))
	}
	contexts, err := l.cfg.Contexts.Many(ctx, kids)
	if err != nil {
		return nil, err
	}
	for link, k := range r.of {
		stored := contexts[k.kid]
		if stored == nil || string(stored.Link) != link || stored.Epoch != k.epoch || stored.New() {
			continue // another context, or somebody else's by now
		}
		c, err := l.newLink(stored)
		if err != nil {
			return links, err
		}
		for _, b := range k.bound {
			var ex oscore.Exchange
			if err := ex.UnmarshalBinary(b.exchange); err != nil {
				return links, err
			}
			c.bound = append(c.bound, bound{token: b.token, ex: ex})
		}
		l.admit(c)
		if outer := carrier(k.over); outer != nil {
			c.over(outer)
			l.uses(c, outer)
		}
		links = append(links, c)
	}
	r.of = nil
	return links, nil
}

// Keep has what begins and ends from now on written; nil: it stays as it is.
func (l *Layer) Keep(k Keeper) { l.keeper.Store(&k) }

// Freeze leaves what is written as it is: what ends from now on goes on after the next
// start.
func (l *Layer) Freeze() { l.Keep(nil) }

// Dump gives a record of each request that notifications answer to emit; others may
// come meanwhile.
func (l *Layer) Dump(emit func(rec []byte)) {
	l.mu.Lock()
	all := make([]*link, 0, len(l.live))
	for _, c := range l.live {
		all = append(all, c)
	}
	l.mu.Unlock()
	var b []byte
	for _, c := range all {
		c.mu.Lock()
		for i := range c.bound {
			if m := c.imageLocked(&c.bound[i]); m != nil {
				b = m.append(b[:0])
				emit(b)
			}
		}
		c.mu.Unlock()
	}
}

// imageLocked is a bound request as it is written; nil: it is not.
func (c *link) imageLocked(b *bound) *boundRecord {
	over, ok := carrierOf(c.outer)
	if !ok || len(c.stored.Link) > maxKeptLink || len(b.token) > 8 {
		return nil
	}
	c.home = over.Home
	ex, _ := b.ex.MarshalBinary() // cannot fail
	return &boundRecord{link: string(c.stored.Link), kid: string(c.stored.ID2), token: b.token, epoch: c.stored.Epoch, over: over, exchange: ex}
}

// write appends a record, if records are kept.
func (l *Layer) write(m interface{ append([]byte) []byte }) {
	if k := l.keeper.Load(); k != nil && *k != nil {
		(*k).Append(m.append(nil))
	}
}
