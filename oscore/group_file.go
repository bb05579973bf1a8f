package oscore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/durable"
)

// The file of a [GroupFile]: a line that says what it is, then records, each the length
// of its body (4 bytes), the CRC-32C of that, the body, and the CRC-32C of that. They
// are appended, each before what it says is relied on, so that only the last can be cut
// off by a crash. At the start, and when it has grown, the file is written anew.
const (
	groupFileHead = "groupgate oscore group state 1\n"

	recordReserve = 1 // name, number below which everything may have been used
	recordWindow  = 2 // name, kid, next, seen
	recordNote    = 3 // the rest of the body
	recordClosed  = 4 // name: its windows were forgotten

	maxGroupFile = 64 << 20 // bytes that are read
	maxNote      = 16 << 20
	growBy       = 256 << 10 // bytes appended before the file is written anew, at least

	// maxMaterials is for how many keying materials windows are kept: the newest, and
	// that before it for the messages on their way.
	maxMaterials = 4
	// maxWindows bounds the members of one of them.
	maxWindows = 1 << 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// GroupFile is a [GroupStore] in one file, for who has no database, and keeps a note of
// the caller beside: the membership that the contexts are of. One process at a time can
// have it open. It holds no key but what is in the note, which is not encrypted: it is
// readable by its owner alone, and one that others can read is refused.
//
// Each reservation and each accepted request is one write that is synchronised. A file
// from a backup is as dangerous as a context from one: remove it and join anew.
type GroupFile struct {
	path   string
	unlock func() error

	mu       sync.Mutex
	f        *os.File // nil: closed
	failed   error    // what went wrong for good
	size     int64
	limit    int64 // size at which it is written anew
	reserved map[string]uint64
	senders  []string // keys of reserved, the oldest first
	windows  map[string]map[string]WindowState
	material []string // keys of windows, the oldest first
	closed   []string // names whose windows were forgotten, the oldest first
	note     []byte
	record   []byte // memory for the next one
	framed   []byte // likewise
}

// ErrDamaged says that a file is not what was written there.
var ErrDamaged = errors.New("oscore: the state file is damaged: remove it, and join anew")

// OpenGroupFile reads the file, which need not exist yet; its folder does.
func OpenGroupFile(path string) (_ *GroupFile, err error) {
	unlock, err := durable.Lock(path)
	if err != nil {
		return nil, fmt.Errorf("oscore: state file: %w", err)
	}
	g := &GroupFile{path: path, unlock: unlock, reserved: map[string]uint64{}, windows: map[string]map[string]WindowState{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock())
		}
	}()
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("oscore: state file: %w", err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("oscore: %s has mode %v: it may hold keys, so make it readable by its owner alone (chmod 600)", path, info.Mode())
	case info.Size() > maxGroupFile:
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, path, info.Size())
	default:
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("oscore: state file: %w", err)
		}
		if err := g.load(b); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
		}
	}
	if err := g.rewriteLocked(); err != nil {
		return nil, err
	}
	return g, nil
}

// Format prints a file without its note.
func (g *GroupFile) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "group state in %s", g.path) }

// Close gives the file back. What was kept stays.
func (g *GroupFile) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.f == nil {
		return nil
	}
	err := errors.Join(g.f.Close(), g.unlock())
	g.f = nil
	return err
}

// Note is what was kept last by SetNote; nil: nothing.
func (g *GroupFile) Note() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.note)
}

// SetNote returns when the note is durable.
func (g *GroupFile) SetNote(note []byte) error {
	if len(note) > maxNote {
		return fmt.Errorf("oscore: a note of %d bytes", len(note))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if bytes.Equal(note, g.note) {
		return nil
	}
	if err := g.appendLocked(append([]byte{recordNote}, note...)); err != nil {
		return err
	}
	g.note = bytes.Clone(note)
	g.growLocked()
	return nil
}

// Open implements [GroupSequences].
func (g *GroupFile) Open(name string) (uint64, Reserver, error) {
	if len(name) == 0 || len(name) > math.MaxUint8 {
		return 0, nil, fmt.Errorf("oscore: a name of %d bytes", len(name))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reserved[name], &groupFileReserver{g, name}, nil
}

// groupFileReserver reserves for one Sender Context.
type groupFileReserver struct {
	g    *GroupFile
	name string
}

// Reserve implements [Reserver].
func (r *groupFileReserver) Reserve(_ context.Context, upTo uint64) error {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if upTo <= r.g.reserved[r.name] {
		return nil
	}
	if err := r.g.appendLocked(appendReserve(nil, r.name, upTo)); err != nil {
		return err
	}
	r.g.reserveLocked(r.name, upTo)
	r.g.growLocked()
	return nil
}

// Window implements [GroupStore].
func (g *GroupFile) Window(name string, kid []byte) (WindowState, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.windows[name][string(kid)]
	return w, ok || slices.Contains(g.closed, name)
}

// Keep implements [GroupStore].
func (g *GroupFile) Keep(name string, kid []byte, w WindowState) error {
	if len(name) == 0 || len(name) > math.MaxUint8 || len(kid) > math.MaxUint8 || !w.Valid {
		return errors.New("oscore: no Replay Window of a member")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.windows[name]
	old, known := of[string(kid)]
	if known {
		w = w.Merge(old)
	} else if len(of) >= maxWindows {
		return fmt.Errorf("oscore: the state file keeps the Replay Windows of %d members", maxWindows)
	}
	g.record = appendWindow(g.record[:0], name, kid, w)
	if err := g.appendLocked(g.record); err != nil {
		return err
	}
	g.keepLocked(name, kid, w)
	g.growLocked()
	return nil
}

func appendReserve(b []byte, name string, upTo uint64) []byte {
	b = append(append(b, recordReserve, byte(len(name))), name...)
	return binary.BigEndian.AppendUint64(b, upTo)
}

func appendWindow(b []byte, name string, kid []byte, w WindowState) []byte {
	b = append(append(b, recordWindow, byte(len(name))), name...)
	b = append(append(b, byte(len(kid))), kid...)
	b = binary.BigEndian.AppendUint64(b, w.Next)
	return binary.BigEndian.AppendUint64(b, w.Seen)
}

// reserveLocked notes a reservation in memory.
func (g *GroupFile) reserveLocked(name string, upTo uint64) {
	if _, ok := g.reserved[name]; !ok {
		g.senders = append(g.senders, name)
		if len(g.senders) > maxSpent {
			delete(g.reserved, g.senders[0])
			g.senders = g.senders[1:]
		}
	}
	g.reserved[name] = max(g.reserved[name], upTo)
}

// keepLocked notes a window in memory.
func (g *GroupFile) keepLocked(name string, kid []byte, w WindowState) {
	of := g.windows[name]
	if of == nil {
		of = map[string]WindowState{}
		g.windows[name] = of
		g.material = append(g.material, name)
		if len(g.material) > maxMaterials {
			g.closeLocked(g.material[0])
			g.material = g.material[1:]
		}
	}
	of[string(kid)] = w
}

// closeLocked forgets the windows of keying material that is long over, but not that
// there were some.
func (g *GroupFile) closeLocked(name string) {
	delete(g.windows, name)
	if !slices.Contains(g.closed, name) {
		g.closed = append(g.closed, name)
		g.closed = g.closed[max(0, len(g.closed)-maxSpent):]
	}
}

// frame appends a record to b.
func frame(b, body []byte) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
}

// appendLocked makes a record durable. When that fails the file is as before.
func (g *GroupFile) appendLocked(body []byte) error {
	switch {
	case g.failed != nil:
		return g.failed
	case g.f == nil:
		return fs.ErrClosed
	}
	b := frame(g.framed[:0], body)
	if len(b) < growBy {
		g.framed = b
	}
	_, err := g.f.Write(b)
	if err == nil {
		err = g.f.Sync()
	}
	if err != nil {
		// A record that is there in part would hide those behind it.
		if back := errors.Join(g.f.Truncate(g.size), g.f.Sync()); back != nil {
			g.failed = fmt.Errorf("oscore: state file: %w", errors.Join(err, back))
		}
		return fmt.Errorf("oscore: state file: %w", err)
	}
	g.size += int64(len(b))
	return nil
}

// growLocked writes the file anew when it has grown. It is called when memory has what
// was appended.
func (g *GroupFile) growLocked() {
	if g.size <= g.limit {
		return
	}
	// What has to be durable is. Without room for another file this one grows on.
	if err := g.rewriteLocked(); err != nil {
		g.limit = g.size + growBy
	}
}

// rewriteLocked writes what is in memory in place of the file.
func (g *GroupFile) rewriteLocked() error {
	b := []byte(groupFileHead)
	for _, name := range g.senders {
		b = frame(b, appendReserve(nil, name, g.reserved[name]))
	}
	for _, name := range g.closed {
		b = frame(b, append([]byte{recordClosed, byte(len(name))}, name...))
	}
	for _, name := range g.material {
		for kid, w := range g.windows[name] {
			b = frame(b, appendWindow(nil, name, []byte(kid), w))
		}
	}
	if g.note != nil {
		b = frame(b, append([]byte{recordNote}, g.note...))
	}
	if err := durable.Replace(g.path, b); err != nil {
		err = fmt.Errorf("oscore: state file: %w", err)
		if g.f != nil && !g.inPlaceLocked() {
			g.failed = err
		}
		return err
	}
	f, err := os.OpenFile(g.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		// What is appended to the file before is lost with its name.
		g.failed = fmt.Errorf("oscore: state file: %w", err)
		return g.failed
	}
	if g.f != nil {
		_ = g.f.Close() // nothing is in flight
	}
	g.f, g.size = f, int64(len(b))
	g.limit = g.size + max(growBy, g.size)
	return nil
}

// inPlaceLocked says whether the file that is open is the one that a start would read.
func (g *GroupFile) inPlaceLocked() bool {
	open, err := g.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(g.path)
	return err == nil && os.SameFile(open, named)
}

// load reads a file. A record at the end that is not whole was never relied on.
func (g *GroupFile) load(b []byte) error {
	b, ok := bytes.CutPrefix(b, []byte(groupFileHead))
	if !ok {
		return errors.New("it is no state file, or of another version")
	}
	for len(b) > 0 {
		if len(b) < 8 || len(bytes.Trim(b, "\x00")) == 0 {
			return nil // the latter is room that the file system made, without what was to come there
		}
		if binary.BigEndian.Uint32(b[4:]) != crc32.Checksum(b[:4], castagnoli) {
			return errors.New("the checksum of a length is wrong")
		}
		n := uint64(binary.BigEndian.Uint32(b))
		if b = b[8:]; uint64(len(b)) < n+4 {
			return nil
		}
		body, sum := b[:n], binary.BigEndian.Uint32(b[n:])
		b = b[n+4:]
		if sum != crc32.Checksum(body, castagnoli) {
			if len(b) == 0 {
				return nil
			}
			return errors.New("a checksum is wrong")
		}
		if err := g.take(body); err != nil {
			return err
		}
	}
	return nil
}

// take reads one record.
func (g *GroupFile) take(body []byte) error {
	bad := errors.New("a record is malformed")
	if len(body) == 0 {
		return bad
	}
	kind, rest := body[0], body[1:]
	if kind == recordNote {
		g.note = bytes.Clone(rest)
		return nil
	}
	text, rest, ok := cutShort(rest)
	if !ok || len(text) == 0 {
		return bad
	}
	name := string(text)
	switch kind {
	case recordReserve:
		if len(rest) != 8 || binary.BigEndian.Uint64(rest) > maxSequence {
			return bad
		}
		g.reserveLocked(name, binary.BigEndian.Uint64(rest))
	case recordWindow:
		kid, rest, ok := cutShort(rest)
		if !ok || len(rest) != 16 {
			return bad
		}
		w := WindowState{Valid: true, Next: binary.BigEndian.Uint64(rest), Seen: binary.BigEndian.Uint64(rest[8:])}
		if w.Next > maxSequence || len(g.windows[name]) >= maxWindows {
			return bad
		}
		g.keepLocked(name, kid, w)
	case recordClosed:
		if len(rest) != 0 {
			return bad
		}
		g.closeLocked(name)
		g.material = slices.DeleteFunc(g.material, func(n string) bool { return n == name })
	default:
		return bad
	}
	return nil
}

// cutShort takes a byte string with a length of one byte off b.
func cutShort(b []byte) (v, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return nil, nil, false
	}
	return b[1 : 1+int(b[0])], b[1+int(b[0]):], true
}
