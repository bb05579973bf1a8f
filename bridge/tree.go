package bridge

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/store"
)

// In a group with a key tree (rekeying_scheme -65538) members that understand it
// have a place in it (package keytree), and a rekey is one message for many. Rows
// are the truth: a change reads and writes the few nodes that it is about. Unlike
// elsewhere keys are sealed and opened inside the transaction: which, only the
// transaction knows, and a few microseconds of AES cost less than to be overtaken
// by every other join.

// tree is the row of a group's tree.
type tree struct {
	keytree.Shape
	tid    string
	group  string
	seq    uint32 // as it was read
	next   uint32 // the first place that nobody had
	spare  int64  // places that were given back
	num    uint64
	baseIV []byte
	// For operators: leaves taken out since the newest rekey, and the messages of
	// that.
	out, messages int64
}

const treeColumns = `tid, grp, degree, height, seq, next, spare, num, base_iv, out, messages`

func (t *tree) dst() []any {
	return []any{&t.tid, &t.group, &t.Degree, &t.Height, &t.Seq, &t.next, &t.spare, &t.num, &t.baseIV, &t.out, &t.messages}
}

// treeOf reads the tree of a group; nil: it has none.
func treeOf(tx *store.Tx, group string) (*tree, error) {
	t := &tree{}
	err := tx.QueryRow(`SELECT `+treeColumns+` FROM bridge_tree WHERE grp = ?`, group).Scan(t.dst()...)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	t.seq = t.Seq
	return t, err
}

// plantTree makes the tree of a group.
func plantTree(tx *store.Tx, group string, degree uint32) (*tree, error) {
	t := &tree{
		Shape: keytree.Shape{Degree: degree}, tid: base64.RawURLEncoding.EncodeToString(random(ridLen)),
		group: group, baseIV: random(baseIVLen),
	}
	_, err := tx.Exec(`INSERT INTO bridge_tree (`+treeColumns+`) VALUES (?, ?, ?, 0, 0, 0, 0, 0, ?, 0, 0)`, t.tid, group, degree, t.baseIV)
	return t, err
}

// id is the identifier of the tree in those of its keys.
func (t *tree) id() []byte {
	b, _ := base64.RawURLEncoding.DecodeString(t.tid) // made by plantTree
	return b[:keytree.TreeIDLen]
}

func nodeContext(tid string, id keytree.ID) string {
	return fmt.Sprintf("bridge/tree/%s/%d/%d", tid, id.Level, id.Index)
}

func position(id keytree.ID) int64 { return int64(id.Level)<<32 | int64(id.Index) }

func placeAt(pos int64) keytree.ID { return keytree.ID{Level: uint8(pos >> 32), Index: uint32(pos)} }

// treeRows are the nodes of a tree in a transaction.
type treeRows struct {
	b     *Bridge
	tx    *store.Tx
	tid   string
	blind bool // keys are not looked at
	were  map[keytree.ID]wasNode
}

// wasNode is a key as it was read, which needs no new seal while it stays.
type wasNode struct {
	version uint32
	step    uint8
	sealed  []byte
}

func (b *Bridge) treeRows(tx *store.Tx, tid string) *treeRows {
	return &treeRows{b: b, tx: tx, tid: tid, were: map[keytree.ID]wasNode{}}
}

// rowsAtOnce is how many rows one statement of a tree names.
const rowsAtOnce = 128

// marks are n placeholders for values.
func marks(n int, one string) string { return strings.Repeat(", "+one, n)[2:] }

// Get implements [keytree.Store].
func (r *treeRows) Get(ids []keytree.ID) (out []keytree.Node, err error) {
	for len(ids) > 0 && err == nil {
		n := min(len(ids), rowsAtOnce)
		out, err = r.get(ids[:n], out)
		ids = ids[n:]
	}
	return out, err
}

func (r *treeRows) get(ids []keytree.ID, out []keytree.Node) ([]keytree.Node, error) {
	args := []any{r.tid}
	for _, id := range ids {
		args = append(args, position(id))
	}
	rows, err := r.tx.Query(`SELECT pos, version, step, used, dirty, sealed_key FROM bridge_tree_node
		WHERE tid = ? AND pos IN (`+marks(len(ids), "?")+`)`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n keytree.Node
		var pos int64
		var sealed []byte
		if err := rows.Scan(&pos, &n.Version, &n.Step, &n.Used, &n.Dirty, &sealed); err != nil {
			return nil, err
		}
		n.ID = placeAt(pos)
		r.were[n.ID] = wasNode{n.Version, n.Step, sealed}
		if !r.blind {
			if n.Key, err = r.b.store.Unseal(nodeContext(r.tid, n.ID), sealed); err != nil {
				return nil, fmt.Errorf("bridge: key of a tree: %w", err)
			}
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

// Dirty implements [keytree.Store].
func (r *treeRows) Dirty() ([]keytree.ID, error) {
	return r.places(`SELECT pos FROM bridge_tree_node WHERE tid = ? AND dirty = 1`, r.tid)
}

// inner are the places of all nodes above leaves.
func (r *treeRows) inner() ([]keytree.ID, error) {
	return r.places(`SELECT pos FROM bridge_tree_node WHERE tid = ? AND pos >= ?`, r.tid, position(keytree.ID{Level: 1}))
}

func (r *treeRows) places(query string, args ...any) (ids []keytree.ID, err error) {
	rows, err := r.tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var pos int64
		if err := rows.Scan(&pos); err != nil {
			return nil, err
		}
		ids = append(ids, placeAt(pos))
	}
	return ids, rows.Err()
}

// treeWrite is what a change of a tree writes.
type treeWrite struct {
	shape keytree.Shape
	nodes []any // six values each
	gone  []keytree.ID
	purge bool // no broker retains anything: a tree that nobody is in goes at once
}

// changes are those of k, sealed.
func (r *treeRows) changes(k *keytree.Tree) *treeWrite {
	put, gone := k.Changes()
	w := &treeWrite{shape: k.Shape, gone: gone, purge: r.b.publisher == nil}
	for _, n := range put {
		sealed := r.were[n.ID].sealed
		if was := r.were[n.ID]; was.sealed == nil || was.version != n.Version || was.step != n.Step {
			sealed = r.b.store.Seal(nodeContext(r.tid, n.ID), n.Key)
		}
		w.nodes = append(w.nodes, position(n.ID), n.Version, n.Step, n.Used, n.Dirty, sealed)
	}
	return w
}

// write brings a change into the rows; what was protected under keys of nodes
// that are gone is to be deleted from the broker.
func (w *treeWrite) write(tx *store.Tx, t *tree) error {
	const width = 6
	for v := w.nodes; len(v) > 0; {
		n := min(len(v)/width, rowsAtOnce)
		var args []any
		for i := range n {
			args = append(append(args, t.tid), v[i*width:(i+1)*width]...)
		}
		v = v[n*width:]
		if _, err := tx.Exec(`INSERT INTO bridge_tree_node (tid, pos, version, step, used, dirty, sealed_key) VALUES `+
			marks(n, "(?, ?, ?, ?, ?, ?, ?)")+` ON CONFLICT (tid, pos) DO UPDATE SET version = excluded.version, step = excluded.step,
			used = excluded.used, dirty = excluded.dirty, sealed_key = excluded.sealed_key`, args...); err != nil {
			return err
		}
	}
	for gone := w.gone; len(gone) > 0; {
		n := min(len(gone), rowsAtOnce)
		args := []any{t.tid}
		for _, id := range gone[:n] {
			args = append(args, position(id))
		}
		gone = gone[n:]
		in := ` WHERE tid = ? AND pos IN (` + marks(n, "?") + `)`
		if _, err := tx.Exec(`DELETE FROM bridge_tree_node`+in, args...); err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE bridge_tree_message SET body = ?, at = ?`+in,
			append([]any{[]byte{}, w.shape.Seq}, args...)...); err != nil {
			return err
		}
	}
	t.Shape = w.shape
	if slices.Contains(w.gone, keytree.ID{Level: t.Height}) {
		// Nobody is left. Who comes gets a new tree, and the publisher removes this
		// one when the broker retains nothing of it.
		t.group = ""
		if w.purge {
			return removeTree(tx, t.tid)
		}
		if _, err := tx.Exec(`DELETE FROM bridge_tree_free WHERE tid = ?`, t.tid); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`UPDATE bridge_tree SET grp = ?, height = ?, seq = ?, next = ?, spare = ?, out = ?, messages = ? WHERE tid = ?`,
		t.group, t.Height, t.Seq, t.next, t.spare, t.out, t.messages, t.tid)
	return err
}

// removeTree deletes the rows of a tree.
func removeTree(tx *store.Tx, tid string) error {
	for _, table := range []string{"bridge_tree_free", "bridge_tree_message", "bridge_tree_node", "bridge_tree"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE tid = ?`, tid); err != nil {
			return err
		}
	}
	return nil
}

// fell takes the tree of a group down with all that is in it.
func (b *Bridge) fell(tx *store.Tx, group string) error {
	t, err := treeOf(tx, group)
	if err != nil || t == nil {
		return err
	}
	if b.publisher == nil {
		return removeTree(tx, t.tid)
	}
	t.Seq++
	if _, err := tx.Exec(`UPDATE bridge_tree_message SET body = ?, at = ? WHERE tid = ?`, []byte{}, t.Seq, t.tid); err != nil {
		return err
	}
	for _, table := range []string{"bridge_tree_free", "bridge_tree_node"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE tid = ?`, t.tid); err != nil {
			return err
		}
	}
	_, err = tx.Exec(`UPDATE bridge_tree SET grp = '', seq = ?, spare = 0 WHERE tid = ?`, t.Seq, t.tid)
	return err
}

// changeTree runs fn on a tree and writes what it did.
func (b *Bridge) changeTree(tx *store.Tx, t *tree, blind bool, fn func(*keytree.Tree) error) error {
	rows := b.treeRows(tx, t.tid)
	rows.blind = blind
	k := keytree.Open(t.Shape, rows)
	if err := fn(k); err != nil {
		return err
	}
	if blind {
		k.Seq++ // so that messages that are deleted are newer than those that were
	}
	return rows.changes(k).write(tx, t)
}

// place takes a place for a newcomer.
func (t *tree) place(tx *store.Tx) (leaf uint32, err error) {
	if t.spare == 0 {
		t.next++
		return t.next - 1, nil
	}
	if err := tx.QueryRow(`SELECT MIN(idx) FROM bridge_tree_free WHERE tid = ?`, t.tid).Scan(&leaf); err != nil {
		return 0, err
	}
	t.spare--
	_, err = tx.Exec(`DELETE FROM bridge_tree_free WHERE tid = ? AND idx = ?`, t.tid, leaf)
	return leaf, err
}

// settled is a place in a tree, and the way from there to the root.
type settled struct {
	t    *tree
	path []keytree.Node
}

// settle finds a member its place in the tree of its group, with a key of its own:
// that which it had, or a new one. The way is what it is to be told; what changes
// in it later comes with rekeys.
func (b *Bridge) settle(tx *store.Tx, group string, degree uint32, key []byte, old int64) (s settled, err error) {
	t, err := treeOf(tx, group)
	if err != nil {
		return s, err
	}
	if t == nil {
		if t, err = plantTree(tx, group, degree); err != nil {
			return s, err
		}
	}
	leaf := uint32(old)
	if old < 0 {
		if leaf, err = t.place(tx); err != nil {
			return s, err
		}
	}
	err = b.changeTree(tx, t, false, func(k *keytree.Tree) error {
		set := k.Add
		if old >= 0 {
			set = k.Replace
		}
		if err := set(leaf, key); err != nil {
			return err
		}
		s.path, err = k.Path(leaf)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("bridge: key tree of %q: %w", group, err)
	}
	if s.t = t; old < 0 {
		return s, nil
	}
	// What is retained for the old key is of no use to anybody.
	_, err = tx.Exec(`UPDATE bridge_tree_message SET body = ?, at = ? WHERE tid = ? AND pos = ?`,
		[]byte{}, t.Seq, t.tid, position(keytree.ID{Index: leaf}))
	return s, err
}

// vacate takes a leaf out of a tree; the next rekey renews what its member knew.
func (b *Bridge) vacate(tx *store.Tx, tid string, leaf int64) error {
	t := &tree{}
	if err := tx.QueryRow(`SELECT `+treeColumns+` FROM bridge_tree WHERE tid = ?`, tid).Scan(t.dst()...); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO bridge_tree_free (tid, idx) VALUES (?, ?)`, tid, leaf); err != nil {
		return err
	}
	t.spare++
	t.out++
	return b.changeTree(tx, t, true, func(k *keytree.Tree) error { return k.Remove(uint32(leaf)) })
}

// addBranch adds to what a member is given its way in the tree.
func (b *Bridge) addBranch(k *groupcomm.MgtKeyMaterial, t *tree, path []keytree.Node) {
	k.KID, k.BaseIV = keytree.KID(t.id(), path[0]), t.baseIV
	k.Tree = (&keytree.Material{Tree: t.id(), Degree: t.Degree, Path: path}).Encode()
	if k.Broker != "" {
		k.TreeTopic = treeTopic(b.cfg.Prefix, t.tid)
	}
}

// treeTopic is what the topics of a tree begin with: below it is /LEVEL/INDEX.
func treeTopic(prefix, tid string) string { return prefix + "/" + tid + "/tree" }

func nodeTreeTopic(prefix, tid string, id keytree.ID) string {
	return fmt.Sprintf("%s/%d/%d", treeTopic(prefix, tid), id.Level, id.Index)
}

// branch is a member's place in a tree.
type branch struct {
	tid    string
	leaf   uint32
	degree uint32
}

// has says whether a node is on the way from the leaf up, however high the tree
// is.
func (b *branch) has(tid string, id keytree.ID) bool {
	if b == nil || tid != b.tid {
		return false
	}
	index := b.leaf
	for range id.Level {
		index /= b.degree
	}
	return index == id.Index
}

// branch returns the place of a registration; nil: it has none.
func (b *Bridge) branch(ctx context.Context, rid string) (at *branch, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		at = &branch{}
		err := tx.QueryRow(`SELECT r.tid, r.leaf, t.degree FROM bridge_registration r JOIN bridge_tree t ON t.tid = r.tid
			WHERE r.rid = ? AND r.leaf >= 0`, rid).Scan(&at.tid, &at.leaf, &at.degree)
		if errors.Is(err, store.ErrNotFound) {
			at, err = nil, nil
		}
		return err
	})
	return at, err
}

// parseTreeTopic is the inverse of nodeTreeTopic.
func parseTreeTopic(prefix, topic string) (tid string, id keytree.ID, ok bool) {
	rest, ok := strings.CutPrefix(topic, prefix+"/")
	if !ok {
		return "", id, false
	}
	p := strings.Split(rest, "/")
	if len(p) != 4 || p[1] != "tree" {
		return "", id, false
	}
	level, err := strconv.ParseUint(p[2], 10, 8)
	if err != nil || level > keytree.MaxHeight {
		return "", id, false
	}
	index, err := strconv.ParseUint(p[3], 10, 32)
	id = keytree.ID{Level: uint8(level), Index: uint32(index)}
	return p[0], id, err == nil && topic == nodeTreeTopic(prefix, p[0], id)
}
