package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Shape of the simulation.
const (
	simLeaves  = 200 // single leaves, spread over the tree
	simFollows = 50  // members that read every message of some of the rekeys
)

// simBatches are how many members leave in one batch window.
var simBatches = []int{1, 10, 100, 1000}

// RekeySim computes how the cost of a rekey grows, without sockets and without a
// store: the key tree, the cryptography and the encoding are those of the gateway.
// For each batch of leaves it reports messages, bytes and the processor time to
// draw keys and render all messages, against members that are told one by one; for
// a single leave also how many nodes change, which are the rows that a store
// writes, and what a member has to do. Members on the way read the messages, and
// must arrive at the same keys.
//
// n is the number of members, degree that of the tree. progress may be nil.
func RekeySim(ctx context.Context, n int, degree uint32, progress func(string)) (out []Result, err error) {
	if n < 2 || degree < keytree.MinDegree || degree > keytree.MaxDegree {
		return nil, fmt.Errorf("bench: no key tree of degree %d with %d members", degree, n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		return nil, err
	}
	s := &rekeySim{n: n, tree: keytree.NewMemory(degree), key: key, sign: key.Signer(), left: map[uint32]bool{}}
	progress(fmt.Sprintf("%d members take their places", n))
	begin := time.Now()
	if err := s.fill(ctx); err != nil {
		return nil, err
	}
	row := func(metric, unit string, value float64) Result {
		return Result{Bench: "rekey-sim", Metric: metric, Unit: unit, N: n, Ours: value}
	}
	out = append(out, row("join_us", "us", float64(time.Since(begin).Microseconds())/float64(n)), row("height", "1", float64(s.tree.Height)))
	if _, err := s.rekey(); err != nil { // whatever growing left to be told
		return nil, err
	}
	alone, aloneBytes, err := s.alone()
	if err != nil {
		return nil, err
	}
	for _, k := range simBatches {
		if k > n/8 {
			break
		}
		progress(fmt.Sprintf("batches of %d leaves", k))
		var sum simCost
		rounds := min(max(1, simLeaves/k), n/8/k) // most members stay to the end
		for range rounds {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			c, err := s.leave(k)
			if err != nil {
				return nil, err
			}
			sum.messages, sum.bytes, sum.nodes, sum.took = sum.messages+c.messages, sum.bytes+c.bytes, sum.nodes+c.nodes, sum.took+c.took
			sum.most = max(sum.most, c.messages)
		}
		per := func(v int) float64 { return float64(v) / float64(rounds) }
		name := fmt.Sprintf("leave_%d_", k)
		out = append(out,
			row(name+"messages", "1", per(sum.messages)).below("point-to-point", float64(n)),
			row(name+"bytes", "B", per(sum.bytes)).below("point-to-point", float64(n*aloneBytes)),
			row(name+"render_ms", "ms", milliseconds(sum.took)/float64(rounds)).below("point-to-point", milliseconds(alone)*float64(n)),
			row(name+"nodes_written", "1", per(sum.nodes)))
		if k == 1 {
			out = append(out, row("leave_1_messages_most", "1", float64(sum.most)))
		}
	}
	progress("members follow")
	ops, err := s.follow()
	if err != nil {
		return nil, err
	}
	return append(out, row("member_messages", "1", ops)), nil
}

type rekeySim struct {
	n    int
	tree *keytree.Memory
	key  *cose.Key
	sign func([]byte) ([]byte, error)
	left map[uint32]bool
	num  uint64
	sent [][]byte // of the newest rekey
}

type simCost struct {
	messages, bytes, nodes, most int
	took                         time.Duration
}

var (
	simTree = []byte("simulate")
	simIV   = make([]byte, 13)
)

func (s *rekeySim) fill(ctx context.Context) error {
	key := make([]byte, keytree.KeyLen)
	for leaf := range uint32(s.n) {
		if leaf%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		binary.BigEndian.PutUint32(key, leaf)
		if _, err := s.tree.Change(func(t *keytree.Tree) error { return t.Add(leaf, key) }); err != nil {
			return err
		}
	}
	return nil
}

// message is the rekey message of the next version.
func (s *rekeySim) message() []byte {
	return (&groupcomm.RekeyMessage{
		MasterSecret: make([]byte, 16), Salt: make([]byte, 8), ContextID: groupcomm.Gid{1, 2, 3, 4, 5}, Num: s.num,
		Exp: 1 << 31, Exi: 3600, Stale: []groupcomm.SenderID{{1, 2}},
	}).Encode()
}

func (s *rekeySim) seal(under keytree.Node, plain []byte) error {
	b, err := cose.SealRekey(cose.RekeySeal{
		Alg: cose.AlgAESCCM16_64_128, Key: under.Key, BaseIV: simIV, KID: keytree.KID(simTree, under), Num: s.num,
		SignAlg: cose.AlgEdDSA, Sign: s.sign,
	}, plain)
	s.sent = append(s.sent, b)
	return err
}

// rekey renders all messages of a rekey.
func (s *rekeySim) rekey() (c simCost, err error) {
	s.num++
	s.sent = nil
	busy := cpuTime()
	c.nodes, err = s.tree.Change(func(t *keytree.Tree) error {
		wraps, root, ok, err := t.Rekey()
		if err != nil || !ok {
			return cmp.Or(err, errors.New("bench: no members"))
		}
		for _, w := range wraps {
			if err := s.seal(w.Under, keytree.EncodeKey(w.Carries)); err != nil {
				return err
			}
		}
		return s.seal(root, s.message())
	})
	c.took, c.messages = cpuTime()-busy, len(s.sent)
	for _, b := range s.sent {
		c.bytes += len(b)
	}
	return c, err
}

// leave takes k members out, and rekeys.
func (s *rekeySim) leave(k int) (simCost, error) {
	for range k {
		leaf := rand.Uint32N(uint32(s.n))
		for s.left[leaf] {
			leaf = rand.Uint32N(uint32(s.n))
		}
		s.left[leaf] = true
		if _, err := s.tree.Change(func(t *keytree.Tree) error { return t.Remove(leaf) }); err != nil {
			return simCost{}, err
		}
	}
	return s.rekey()
}

// alone is the processor time of a message for one member, and its size.
func (s *rekeySim) alone() (time.Duration, int, error) {
	const rounds = 200
	s.sent = nil
	n := keytree.Node{Key: make([]byte, keytree.KeyLen)}
	busy := cpuTime()
	for range rounds {
		if err := s.seal(n, s.message()); err != nil {
			return 0, 0, err
		}
	}
	return (cpuTime() - busy) / rounds, len(s.sent[0]), nil
}

// follow has members read the messages of one more leave, and returns how many one
// has to read on average.
func (s *rekeySim) follow() (float64, error) {
	members := map[uint32]*keytree.Follower{}
	for len(members) < min(simFollows, s.n-len(s.left)-1) {
		leaf := rand.Uint32N(uint32(s.n))
		if s.left[leaf] || members[leaf] != nil {
			continue
		}
		way, err := keytree.Open(s.tree.Shape, s.tree).Path(leaf)
		if err != nil {
			return 0, err
		}
		members[leaf] = keytree.NewFollower(cose.AlgAESCCM16_64_128, simIV, &keytree.Material{Tree: simTree, Degree: s.tree.Degree, Path: way})
	}
	if _, err := s.leave(1); err != nil {
		return 0, err
	}
	total := 0
	for leaf, f := range members {
		if s.left[leaf] {
			continue
		}
		reached := false
		for _, b := range s.sent {
			e, err := cose.ReadRekey(s.key.Public(), b)
			if err != nil {
				return 0, err
			}
			opened, err := f.Take(e)
			if errors.Is(err, keytree.ErrForeign) {
				continue
			}
			if err != nil {
				return 0, err
			}
			total++
			reached = reached || len(opened) == 1 && opened[0].Num == s.num
		}
		if !reached {
			return 0, errors.New("bench: a member does not arrive at the newest keys")
		}
	}
	return float64(total) / float64(len(members)), nil
}
