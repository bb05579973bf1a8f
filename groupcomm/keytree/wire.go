package keytree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/seed4911071e/groupgate/cose"
)

// TreeIDLen is the length of the identifier of a tree in bytes.
const TreeIDLen = 8

// kidLen: identifier of the tree, level, index, version, step.
const kidLen = TreeIDLen + 1 + 4 + 4 + 1

// KID is the key identifier of a node's key in a tree: it changes with the key.
//
//	tree (8) | level (1) | index (4) | version (4) | step (1)
func KID(tree []byte, n Node) []byte {
	b := make([]byte, 0, kidLen)
	b = append(b, tree...)
	b = append(b, n.Level)
	b = binary.BigEndian.AppendUint32(b, n.Index)
	b = binary.BigEndian.AppendUint32(b, n.Version)
	return append(b, n.Step)
}

// parseKID is the inverse of KID; the node has no key.
func parseKID(b []byte) (tree string, n Node, err error) {
	if len(b) != kidLen {
		return "", Node{}, errors.New("keytree: kid of another form")
	}
	r := b[TreeIDLen:]
	n = Node{
		ID:      ID{r[0], binary.BigEndian.Uint32(r[1:])},
		Version: binary.BigEndian.Uint32(r[5:]),
		Step:    r[9],
	}
	if n.Level > MaxHeight {
		return "", Node{}, errors.New("keytree: level out of range")
	}
	return string(b[:TreeIDLen]), n, nil
}

// EncodeKey is the plaintext of a message that tells the key of a node, as it was
// drawn: [level, index, version, key].
func EncodeKey(n Node) []byte {
	return cose.MustMarshal([]any{n.Level, n.Index, n.Version, n.Key})
}

// isKey says whether a plaintext tells a key; else it is a rekey message, a map.
func isKey(b []byte) bool { return len(b) > 0 && b[0]>>5 == 4 }

func decodeKey(b []byte) (Node, error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return Node{}, fmt.Errorf("keytree: %w", err)
	}
	if len(items) != 4 {
		return Node{}, errors.New("keytree: key of a node: array of four elements expected")
	}
	return decodeNode(items[0], items[1], items[2], nil, items[3])
}

func decodeNode(level, index, version, step, key []byte) (n Node, err error) {
	var errs [5]error
	var l, i, v, s uint64
	l, errs[0] = cose.AsUint(level)
	i, errs[1] = cose.AsUint(index)
	v, errs[2] = cose.AsUint(version)
	if step != nil {
		s, errs[3] = cose.AsUint(step)
	}
	n.Key, errs[4] = cose.AsBytes(key)
	if err := errors.Join(errs[:]...); err != nil {
		return Node{}, fmt.Errorf("keytree: %w", err)
	}
	if l > MaxHeight || i > 1<<32-1 || v > 1<<32-1 || s > maxStep || len(n.Key) != KeyLen {
		return Node{}, errors.New("keytree: node out of range")
	}
	n.ID, n.Version, n.Step = ID{uint8(l), uint32(i)}, uint32(v), uint8(s)
	return n, nil
}

// Material is what a member is given of a tree: the keys from its leaf to the
// root. It prints as [redacted].
type Material struct {
	Tree   []byte // TreeIDLen bytes
	Degree uint32
	Path   []Node // the leaf first
}

// Format prints [redacted] under every verb.
func (Material) Format(f fmt.State, _ rune) { cose.Redact(f) }

// LogValue keeps the keys out of logs.
func (Material) LogValue() slog.Value { return slog.StringValue(cose.Redacted) }

// Encode gives [tree, degree, [+ [level, index, version, step, key]]].
func (m *Material) Encode() []byte {
	path := make([]any, len(m.Path))
	for i, n := range m.Path {
		path[i] = []any{n.Level, n.Index, n.Version, n.Step, n.Key}
	}
	return cose.MustMarshal([]any{m.Tree, m.Degree, path})
}

// DecodeMaterial reads it, and checks that the nodes are one way to a root.
func DecodeMaterial(b []byte) (*Material, error) {
	fail := func(err error) (*Material, error) { return nil, fmt.Errorf("keytree: material: %w", err) }
	items, err := cose.DecodeArray(b)
	if err != nil {
		return fail(err)
	}
	if len(items) != 3 {
		return fail(errors.New("array of three elements expected"))
	}
	m := &Material{}
	if m.Tree, err = cose.AsBytes(items[0]); err != nil {
		return fail(err)
	}
	d, err := cose.AsUint(items[1])
	if err != nil {
		return fail(err)
	}
	if len(m.Tree) != TreeIDLen || d < MinDegree || d > MaxDegree {
		return fail(errors.New("identifier or degree out of range"))
	}
	m.Degree = uint32(d)
	path, err := cose.DecodeArray(items[2])
	if err != nil {
		return fail(err)
	}
	if len(path) < 2 || len(path) > MaxHeight+1 {
		return fail(fmt.Errorf("a way of %d nodes", len(path)))
	}
	for i, raw := range path {
		f, err := cose.DecodeArray(raw)
		if err != nil {
			return fail(err)
		}
		if len(f) != 5 {
			return fail(errors.New("node: array of five elements expected"))
		}
		n, err := decodeNode(f[0], f[1], f[2], f[3], f[4])
		if err != nil {
			return fail(err)
		}
		if i == 0 && n.Level != 0 || i > 0 && n.ID != m.Path[i-1].Up(m.Degree) {
			return fail(errors.New("the nodes are no way from a leaf up"))
		}
		m.Path = append(m.Path, n)
	}
	if m.Path[len(path)-1].Index != 0 {
		return fail(errors.New("the way does not end at a root"))
	}
	return m, nil
}
