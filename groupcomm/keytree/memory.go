package keytree

import "maps"

// Memory is a [Store] that forgets everything with the process: for simulations
// and tests.
type Memory struct {
	Shape
	nodes map[ID]Node
	dirty map[ID]bool
}

// NewMemory makes a tree without members.
func NewMemory(degree uint32) *Memory {
	return &Memory{Shape: Shape{Degree: degree}, nodes: map[ID]Node{}, dirty: map[ID]bool{}}
}

// Get implements [Store].
func (m *Memory) Get(ids []ID) ([]Node, error) {
	var out []Node
	for _, id := range ids {
		if n, ok := m.nodes[id]; ok {
			out = append(out, n)
		}
	}
	return out, nil
}

// Dirty implements [Store].
func (m *Memory) Dirty() (ids []ID, err error) {
	for id := range maps.Keys(m.dirty) {
		ids = append(ids, id)
	}
	return ids, nil
}

// Change runs fn on the tree and keeps what it did, unless it fails. It returns
// how many nodes were written or deleted.
func (m *Memory) Change(fn func(*Tree) error) (changed int, err error) {
	t := Open(m.Shape, m)
	if err := fn(t); err != nil {
		return 0, err
	}
	put, gone := t.Changes()
	for _, n := range put {
		m.nodes[n.ID] = n
		if n.Dirty {
			m.dirty[n.ID] = true
		} else {
			delete(m.dirty, n.ID)
		}
	}
	for _, id := range gone {
		delete(m.nodes, id)
		delete(m.dirty, id)
	}
	m.Shape = t.Shape
	return len(put) + len(gone), nil
}
