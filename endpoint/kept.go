package endpoint

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/journal/rec"
	"github.com/seed4911071e/groupgate/record"
)

// What is written of a session, so that it outlives the process. Each record
// begins with its kind and the link; numbers are in network byte order, strings
// begin with their length in two bytes.
//
//	session  all of it: at its beginning, and in each snapshot
//	mark     what moves on: receive edge, message identifiers, address
//	reply    the answer to a request that had side effects
//	end      it is over
const (
	keptSession = 'T'
	keptMark    = 'M'
	keptPinned  = 0x20 // beside either of these: with the address of this machine that the peer uses
	keptReply   = 'R'
	keptEnd     = 'E'
	keptBefore  = 'S' // a session whose records have numbers that Scandium drops: it is over

	linkSize = 8 // bytes of a LinkID, before it is hexadecimal
)

var errKept = errors.New("endpoint: malformed record of a session")

// mark is what moves on.
type mark struct {
	edge   uint64 // one above the highest record number received
	nextID uint16
	heard  int64 // seconds of the Unix clock
	moves  uint32
	addr   netip.AddrPort
	local  netip.Addr // of this machine, written where it matters only; see local.go
}

// image is a session as it is written.
type image struct {
	id          [linkSize]byte
	via         coap.Security
	suite       record.Suite
	read, write record.Keys
	born        uint32 // the start whose records have the numbers from 0
	cid         uint64
	peerCID     string
	subject     coap.Subject
	began       int64 // seconds of the Unix clock
	mark
}

// replyImage is an answer that is kept for copies of its request.
type replyImage struct {
	id    [linkSize]byte
	mid   uint16
	at    int64 // seconds of the Unix clock
	token string
	reply string
}

// pinned is part of the kind of a record.
func (m *mark) pinned() byte {
	if m.local.IsValid() {
		return keptPinned
	}
	return 0
}

func (m *mark) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, m.edge)
	b = binary.BigEndian.AppendUint16(b, m.nextID)
	b = binary.BigEndian.AppendUint64(b, uint64(m.heard))
	b = binary.BigEndian.AppendUint32(b, m.moves)
	b = rec.AppendString(b, string(m.addr.Addr().AsSlice()))
	b = rec.AppendString(b, m.addr.Addr().Zone())
	b = binary.BigEndian.AppendUint16(b, m.addr.Port())
	if m.local.IsValid() {
		b = rec.AppendString(b, string(m.local.AsSlice()))
	}
	return b
}

func (m *image) append(b []byte) []byte {
	b = append(b, keptSession|m.pinned())
	b = append(b, m.id[:]...)
	b = append(b, byte(m.via))
	b = binary.BigEndian.AppendUint16(b, uint16(m.suite))
	for _, k := range []*record.Keys{&m.read, &m.write} {
		b = append(b, k.Key[:]...)
		b = append(b, k.IV[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, m.born)
	b = binary.BigEndian.AppendUint64(b, m.cid)
	b = rec.AppendString(b, m.peerCID)
	b = append(b, byte(m.subject.Kind))
	b = rec.AppendString(b, m.subject.ID)
	b = binary.BigEndian.AppendUint64(b, uint64(m.began))
	return m.mark.append(b)
}

func (r *replyImage) append(b []byte) []byte {
	b = append(b, keptReply)
	b = append(b, r.id[:]...)
	b = binary.BigEndian.AppendUint16(b, r.mid)
	b = binary.BigEndian.AppendUint64(b, uint64(r.at))
	b = rec.AppendString(b, r.token)
	return rec.AppendString(b, r.reply)
}

func appendMark(b []byte, id [linkSize]byte, m *mark) []byte {
	b = append(b, keptMark|m.pinned())
	b = append(b, id[:]...)
	return m.append(b)
}

func appendEnd(b []byte, id [linkSize]byte) []byte { return append(append(b, keptEnd), id[:]...) }

// reader takes a record apart.
type reader struct{ *rec.Reader }

// seconds reads a time that a clock can show: it is never negative.
func (r reader) seconds() int64 {
	v := r.U64()
	r.Fail(v > 1<<40)
	return int64(v)
}

func (r reader) mark(pinned bool) (m mark) {
	m.edge, m.nextID, m.heard, m.moves = r.U64(), r.U16(), r.seconds(), r.U32()
	ip, zone := r.String(16), r.String(64)
	addr, ok := netip.AddrFromSlice([]byte(ip))
	if addr = addr.WithZone(zone); addr.Zone() != zone {
		ok = false
	}
	m.addr = netip.AddrPortFrom(addr, r.U16())
	if pinned {
		var own bool
		m.local, own = netip.AddrFromSlice([]byte(r.String(16)))
		r.Fail(!own)
	}
	r.Fail(!ok || m.edge > record.MaxSeq+1)
	return m
}

func (r reader) id() (id [linkSize]byte) {
	copy(id[:], r.Bytes(linkSize))
	return id
}

func (r reader) keys() (k record.Keys) {
	copy(k.Key[:], r.Bytes(len(k.Key)))
	copy(k.IV[:], r.Bytes(len(k.IV)))
	return k
}

// decodeKept reads one record: an *image, a marked, a *replyImage or an ended.
func decodeKept(b []byte) (any, error) {
	r := reader{rec.NewReader(b)}
	var out any
	switch kind := r.U8(); kind {
	case keptSession, keptSession | keptPinned:
		m := &image{id: r.id(), via: coap.Security(r.U8()), suite: record.Suite(r.U16())}
		m.read, m.write = r.keys(), r.keys()
		m.born, m.cid, m.peerCID = r.U32(), r.U64(), r.String(255)
		m.subject = coap.Subject{Kind: coap.SubjectKind(r.U8()), ID: r.String(maxSubject)}
		m.began, m.mark = r.seconds(), r.mark(kind&keptPinned != 0)
		if m.via != coap.DTLSPSK && m.via != coap.DTLSCert && m.via != coap.DTLSRPK || !m.suite.Supported() || m.subject.Kind > coap.SubjectOSCORE || m.born >= 1<<24 {
			return nil, errKept
		}
		out = m
	case keptMark, keptMark | keptPinned:
		out = marked{r.id(), r.mark(kind&keptPinned != 0)}
	case keptReply:
		out = &replyImage{id: r.id(), mid: r.U16(), at: r.seconds(), token: r.String(8), reply: r.String(maxReply)}
	case keptBefore, keptBefore | keptPinned:
		out = ended(r.id())
		r.Skip()
	case keptEnd:
		out = ended(r.id())
	default:
		return nil, errKept
	}
	if !r.Done() {
		return nil, errKept
	}
	return out, nil
}

type (
	marked struct {
		id   [linkSize]byte
		mark mark
	}
	ended [linkSize]byte
)

// linkID is the name of a session outside of this package.
func linkID(id [linkSize]byte) coap.LinkID { return coap.LinkID(hex.EncodeToString(id[:])) }

// linkBytes is the inverse.
func linkBytes(id coap.LinkID) (b [linkSize]byte) {
	if n, err := hex.Decode(b[:], []byte(id)); err != nil || n != linkSize {
		panic("endpoint: internal error: link " + string(id))
	}
	return b
}

// Recovery collects what a journal kept of sessions. The zero value is ready.
type Recovery struct {
	sessions map[[linkSize]byte]*recovered
}

type recovered struct {
	image
	replies []*replyImage
}

// Drop forgets the sessions of a subject, and says how many there were.
func (r *Recovery) Drop(of coap.Subject) (n int) {
	for id, s := range r.sessions {
		if s.subject == of {
			delete(r.sessions, id)
			n++
		}
	}
	return n
}

// Apply reads one record; what speaks of a session that is over, or never was,
// means nothing.
func (r *Recovery) Apply(b []byte) error {
	v, err := decodeKept(b)
	if err != nil {
		return err
	}
	if r.sessions == nil {
		r.sessions = map[[linkSize]byte]*recovered{}
	}
	switch v := v.(type) {
	case *image:
		old := r.sessions[v.id]
		next := &recovered{image: *v}
		if old != nil {
			next.replies = old.replies
			next.mark.join(old.mark)
		}
		r.sessions[v.id] = next
	case marked:
		if s := r.sessions[v.id]; s != nil {
			v.mark.join(s.mark)
			s.mark = v.mark
		}
	case *replyImage:
		s := r.sessions[v.id]
		if s == nil {
			break
		}
		for i, have := range s.replies {
			if have.mid == v.mid {
				s.replies[i] = v
				return nil
			}
		}
		if s.replies = append(s.replies, v); len(s.replies) > maxReceipts {
			s.replies = s.replies[1:]
		}
	case ended:
		delete(r.sessions, v)
	}
	return nil
}

// join has the edge never go back, whatever the order of what is read.
func (m *mark) join(old mark) { m.edge, m.moves = max(m.edge, old.edge), max(m.moves, old.moves) }

// Len is how many sessions there are.
func (r *Recovery) Len() int { return len(r.sessions) }

// Has says whether there is the session of a link.
func (r *Recovery) Has(id coap.LinkID) bool {
	var b [linkSize]byte
	if n, err := hex.Decode(b[:], []byte(id)); err != nil || n != linkSize {
		return false
	}
	return r.sessions[b] != nil
}

func unix(t time.Time) int64 { return max(0, t.Unix()) }
