package serve

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/journal/rec"
)

// Keeper keeps observations over restarts. Its Append waits for nothing and is
// called with locks held.
type Keeper interface {
	// Append has a record written soon.
	Append(rec []byte)
	// Commit returns when everything that was appended is on disk, or cannot be.
	Commit(ctx context.Context) error
	// Keeps says whether observations of a topic outlive the process: whoever
	// publishes to it goes on doing so after a restart, with versions that go on.
	Keeps(topic string) bool
}

// What is written of an observation. Each record begins with its kind; numbers
// are in network byte order, strings begin with their length in two bytes.
//
//	observation  all of it: at its registration, and in each snapshot
//	shown        which version of a topic a link has been shown
//	end          it is over
const (
	keptObservation = 'O'
	keptShown       = 'V'
	keptEnd         = 'X'
)

// The longest strings of a record, in bytes.
const (
	maxKeptLink  = 64
	maxKeptTopic = 1024
)

var errKept = errors.New("serve: malformed record of an observation")

// registration is an observation as it is written.
type registration struct {
	link, token, topic string
	key                cacheKey
	szx, noResponse    uint8
	seq                uint32 // of the newest notification, 24 bits
	shown              uint64
	heard              int64 // seconds of the Unix clock
}

func (r *registration) append(b []byte) []byte {
	b = append(b, keptObservation)
	b = rec.AppendString(b, r.link)
	b = rec.AppendString(b, r.token)
	b = rec.AppendString(b, r.topic)
	b = append(b, r.key.base[:]...)
	b = append(b, r.key.full[:]...)
	b = append(b, r.szx, r.noResponse)
	b = binary.BigEndian.AppendUint32(b, r.seq)
	b = binary.BigEndian.AppendUint64(b, r.shown)
	return binary.BigEndian.AppendUint64(b, uint64(r.heard))
}

// shownRecord says that a link was shown a version of a topic.
type shownRecord struct {
	link, topic string
	version     uint64
	seq         uint32 // the newest of all observations of the topic
	heard       int64
}

func (r *shownRecord) append(b []byte) []byte {
	b = append(b, keptShown)
	b = rec.AppendString(b, r.link)
	b = rec.AppendString(b, r.topic)
	b = binary.BigEndian.AppendUint64(b, r.version)
	b = binary.BigEndian.AppendUint32(b, r.seq)
	return binary.BigEndian.AppendUint64(b, uint64(r.heard))
}

// endRecord ends the observation with a token.
type endRecord struct{ link, token string }

func (r *endRecord) append(b []byte) []byte {
	b = append(b, keptEnd)
	b = rec.AppendString(b, r.link)
	return rec.AppendString(b, r.token)
}

// keptReader takes a record apart.
type keptReader struct{ *rec.Reader }

// seq reads the number of a notification.
func (r keptReader) seq() uint32 {
	v := r.U32()
	r.Fail(v > seqMask)
	return v
}

// decodeKept reads one record.
func decodeKept(b []byte) (any, error) {
	r := keptReader{rec.NewReader(b)}
	var out any
	var heard uint64
	switch r.U8() {
	case keptObservation:
		o := &registration{link: r.String(maxKeptLink), token: r.String(8), topic: r.String(maxKeptTopic)}
		copy(o.key.base[:], r.Bytes(16))
		copy(o.key.full[:], r.Bytes(16))
		o.szx, o.noResponse = r.U8(), r.U8()
		o.seq = r.seq()
		o.shown, heard = r.U64(), r.U64()
		o.heard = int64(heard)
		r.Fail(o.szx > 6)
		out = o
	case keptShown:
		o := &shownRecord{link: r.String(maxKeptLink), topic: r.String(maxKeptTopic), version: r.U64(), seq: r.seq()}
		heard = r.U64()
		o.heard = int64(heard)
		out = o
	case keptEnd:
		out = &endRecord{link: r.String(maxKeptLink), token: r.String(8)}
	default:
		return nil, errKept
	}
	if r.Fail(heard > 1<<40); !r.Done() {
		return nil, errKept
	}
	return out, nil
}

// Recovery collects what was kept of observations. The zero value is ready.
type Recovery struct {
	// Start is the number of this start, greater than those before it: a start that
	// died before anything was written has other numbers of notifications.
	Start uint32

	of map[string][]*registration // by link
}

// Apply reads one record; what speaks of an observation that is over means
// nothing.
func (r *Recovery) Apply(b []byte) error {
	v, err := decodeKept(b)
	if err != nil {
		return err
	}
	if r.of == nil {
		r.of = map[string][]*registration{}
	}
	switch v := v.(type) {
	case *registration:
		r.end(v.link, v.token)
		r.of[v.link] = append(r.of[v.link], v)
	case *shownRecord:
		for _, o := range r.of[v.link] {
			if o.topic == v.topic {
				o.shown, o.heard = max(o.shown, v.version), max(o.heard, v.heard)
				if newer(v.seq, o.seq) {
					o.seq = v.seq
				}
			}
		}
	case *endRecord:
		r.end(v.link, v.token)
	}
	return nil
}

func (r *Recovery) end(link, token string) {
	rest := slices.DeleteFunc(r.of[link], func(o *registration) bool { return o.token == token })
	if len(rest) == 0 {
		delete(r.of, link)
		return
	}
	r.of[link] = rest
}

// Restore brings back the observations of a link that outlived a restart, and
// says which topics they are of. Nothing is sent for it: who publishes anew what
// is newest reaches those that were not shown it.
func (s *Server) Restore(r *Recovery, link coap.Link) (topics []string) {
	from := link.Peer()
	kept := r.of[string(from.Link)]
	if len(kept) == 0 {
		return nil
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers.Get(from.Link)
	if p == nil {
		p = s.newPeer(from.Link, now)
		s.peers.Put(p)
	}
	p.link, p.plain, p.durable = link, from.Via == coap.Plain, durable(from.Via)
	for _, o := range kept {
		if _, n := p.observation(o.token); n >= maxPeerObservations || s.observations >= s.cfg.MaxObservations {
			break
		}
		if have, _ := p.observation(o.token); have != nil {
			continue
		}
		t := s.topicLocked(o.topic)
		sub := s.subscribeLocked(p, t)
		heard := time.Unix(o.heard, 0)
		if heard.After(now) {
			heard = now // the clock was set back
		}
		if at := s.seconds(now) - seconds(now.Sub(heard)/time.Second); !sub.hasShown || at > sub.heard {
			sub.heard = at
		}
		sub.shown, sub.hasShown = max(sub.shown, o.shown), true
		back := s.observeLocked(sub, []byte(o.token))
		s.lookLocked(back, view{key: o.key, szx: min(o.szx, s.szx), noResponse: o.noResponse})
		// Some may have been sent of which nothing was written.
		if back.seq = uint32(now.Unix()) & seqMask; newer(o.seq, back.seq) {
			back.seq = o.seq
		}
		back.seq = (back.seq + seqLeap*(1+r.Start%seqLeaps)) & seqMask
		if !slices.Contains(topics, o.topic) {
			topics = append(topics, o.topic)
		}
	}
	return topics
}

// Keep has observations that begin and end from now on written. It is called
// once, before requests are served.
func (s *Server) Keep(k Keeper) {
	s.mu.Lock()
	s.keeper = k
	s.mu.Unlock()
}

// Freeze leaves what is written as it is: what ends from now on goes on after the
// next start.
func (s *Server) Freeze() { s.Keep(nil) }

// durable says that the associations of a kind outlive a restart.
func durable(v coap.Security) bool {
	return v == coap.DTLSPSK || v == coap.DTLSCert || v == coap.DTLSRPK || v == coap.OSCORE
}

// Dump gives a record of each observation to emit; others may be served meanwhile. It
// returns false when nothing is kept any more since: then some are missing.
func (s *Server) Dump(emit func(rec []byte)) (whole bool) {
	s.mu.Lock()
	all := make([]*peer, 0, s.peers.Len())
	for p := range s.peers.All() {
		if p.durable && p.subs != nil {
			all = append(all, p)
		}
	}
	s.mu.Unlock()
	var b []byte
	for part := range slices.Chunk(all, dumpAtOnce) {
		s.mu.Lock()
		for _, p := range part {
			if p.gone {
				continue
			}
			for sub := p.subs; sub != nil; sub = sub.next {
				if s.keeper == nil || !sub.keptLocked(s) {
					continue
				}
				for o := sub.obs; o != nil; o = o.next {
					b = o.image(s).append(b[:0])
					emit(b)
				}
			}
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keeper != nil
}

func (o *observation) image(s *Server) *registration {
	sub, v := o.sub, o.view
	return &registration{
		link: string(sub.peer.id), token: string(o.tokenBytes()), topic: sub.topic.name, key: v.key, szx: v.szx, noResponse: v.noResponse,
		seq: o.seq, shown: sub.shown, heard: s.unix(sub.heard),
	}
}

// keptLocked says that the observations of a mailbox outlive the process.
func (sub *subscription) keptLocked(s *Server) bool {
	name := sub.topic.name
	return sub.peer.durable && len(sub.peer.id) <= maxKeptLink && len(name) <= maxKeptTopic && s.keeper.Keeps(name)
}

// keepLocked writes a registration; true when it is worth waiting for.
func (s *Server) keepLocked(o *observation) bool {
	if s.keeper == nil || o.view.whole || !o.sub.keptLocked(s) {
		return false
	}
	r := o.image(s)
	s.keeper.Append(r.append(nil))
	return true
}

// keepShownLocked writes which version a link was shown.
func (s *Server) keepShownLocked(sub *subscription) {
	if s.keeper == nil || sub.gone || !sub.keptLocked(s) {
		return
	}
	r := shownRecord{link: string(sub.peer.id), topic: sub.topic.name, version: sub.shown, heard: s.unix(sub.heard)}
	for o := sub.obs; o != nil; o = o.next {
		if r.seq == 0 || newer(o.seq, r.seq) {
			r.seq = o.seq
		}
	}
	s.keeper.Append(r.append(nil))
}

// keepEndLocked writes the end of an observation.
func (s *Server) keepEndLocked(o *observation) {
	if s.keeper == nil || !o.sub.keptLocked(s) {
		return
	}
	r := endRecord{link: string(o.sub.peer.id), token: string(o.tokenBytes())}
	s.keeper.Append(r.append(nil))
}
