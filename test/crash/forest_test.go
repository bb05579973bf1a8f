package crash

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
	"github.com/seed4911071e/groupgate/groupcomm/keytree/keytreetest"
	"github.com/seed4911071e/groupgate/node"
)

// loopback is the interface that is multicast on.
const loopback = "lo"

// forest is all that ever left the gateway of a key tree: what each node was
// given over its own association, and, in the ledger, what passed the broker or
// was multicast.
type forest struct {
	w     *world
	group string

	mu    sync.Mutex
	gm    *cose.Key                      // countersigns
	given map[string][]keytreetest.Given // by the key identifier of the node's token, in hex
	names *keytreetest.Names
}

// plant makes the forest of a group, and listens to what is multicast.
func (w *world) plant(t testing.TB, group, addr string) {
	t.Helper()
	w.forest = &forest{w: w, group: group, given: map[string][]keytreetest.Given{}, names: keytreetest.NewNames()}
	ifi, err := net.InterfaceByName(loopback)
	if err != nil {
		t.Fatal(err)
	}
	at, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenMulticastUDP("udp4", ifi, at)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadBuffer(4 << 20)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			if m, err := coap.DecodeMessage(buf[:n]); err != nil {
				w.ledger.breach(group, "what is multicast is no CoAP: %v", err)
			} else {
				w.ledger.published(bytes.Clone(m.Payload))
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
}

// on listens to what a node is given over an association.
func (f *forest) on(t node.Transport, l *life) node.Transport {
	if f == nil {
		return t
	}
	return &overheard{t, f, hex.EncodeToString(l.access.KID)}
}

// overheard is a transport that a forest listens to.
type overheard struct {
	node.Transport
	f  *forest
	of string
}

func (o *overheard) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	resp, err := o.Transport.Do(ctx, req)
	if err == nil {
		o.f.hear(o.of, resp)
	}
	return resp, err
}

func (o *overheard) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	return o.Transport.Observe(ctx, req, func(r *coap.Response) {
		o.f.hear(o.of, r)
		fn(r)
	})
}

func (o *overheard) Done() <-chan struct{} { return o.Transport.(node.Doner).Done() }

func (o *overheard) Take(fn func(*coap.Request) *coap.Response) { o.Transport.(node.Taker).Take(fn) }

func (o *overheard) ExportEmptyContext(label string, n int) ([]byte, error) {
	return o.Transport.(interface {
		ExportEmptyContext(string, int) ([]byte, error)
	}).ExportEmptyContext(label, n)
}

// hear keeps what a response gives of the tree.
func (f *forest) hear(of string, r *coap.Response) {
	if !r.Code.IsSuccess() || len(r.Payload) == 0 {
		return
	}
	d, err := groupcomm.DecodeKeyDistribution(r.Payload)
	if err != nil || d.RekeyingScheme == nil || *d.RekeyingScheme != groupcomm.SchemeKeyTree {
		return
	}
	g, err := keytreetest.Parse(d.MgtKeyMaterial)
	if err != nil {
		f.w.ledger.breach(f.group, "unusable mgt_key_material: %v", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.given[of] = append(f.given[of], g)
	if f.gm == nil {
		f.gm, _ = cose.DecodeCCS(d.KDCCred) // in Join Responses
	}
	for _, n := range g.Way.Path {
		if err := f.names.Add(keytree.KID(g.Way.Tree, n), n.Key); err != nil {
			f.w.ledger.breach(f.group, "%v", err)
		}
	}
}

// term is the time of a membership, in versions.
type term struct{ joined, left uint64 }

// terms are the memberships that the audit log tells of, which takes them from the
// transactions of their beginnings and ends, by the key identifiers of tokens.
// They are all over.
func (f *forest) terms(t testing.TB) map[string][]term {
	t.Helper()
	var out map[string][]term
	err := until(t.Context(), func() (bool, error) {
		out = map[string][]term{}
		open := map[string]uint64{} // by node name
		q := admin.AuditQuery{Group: f.group, Full: true, Kinds: []string{groupcomm.EventJoined, groupcomm.EventLeft, groupcomm.EventEvicted}}
		for {
			page, err := f.w.admin().Audit(t.Context(), q)
			if err != nil {
				return false, err
			}
			for _, r := range page {
				q.After = r.ID
				who := strings.TrimPrefix(r.Subject, "pop:")
				who = who[:min(len(who), 16)]
				if _, ok := open[r.Node]; r.Kind == groupcomm.EventJoined && !ok { // else again
					open[r.Node] = *r.Version
				} else if r.Kind != groupcomm.EventJoined {
					out[who] = append(out[who], term{open[r.Node], *r.Version})
					delete(open, r.Node)
				}
			}
			if len(page) == 0 {
				return len(open) == 0, nil
			}
		}
	})
	if err != nil {
		t.Fatalf("the audit log does not tell of all memberships: %v", err)
	}
	return out
}

// secret: with everything that was ever given to it, and all that ever passed, a
// node reads the versions of its own memberships and no other.
func (f *forest) secret(t testing.TB) {
	t.Helper()
	terms := f.terms(t)
	f.mu.Lock()
	defer f.mu.Unlock()
	all := keytreetest.NewLibrary(f.gm, f.names)
	for _, body := range f.w.ledger.everything() {
		if err := all.Add(body); err != nil {
			f.w.ledger.breach(f.group, "a message is not the Group Manager's: %v", err)
		}
	}
	n := 0
	for of, given := range f.given {
		versions, err := all.Opens(given)
		if err != nil {
			f.w.ledger.breach(f.group, "%v", err)
		}
		for _, v := range versions {
			n++
			if !slices.ContainsFunc(terms[of], func(m term) bool { return m.joined < v && v <= m.left }) {
				f.w.ledger.breach(f.group, "node %s was a member in %v, and reads version %d", of, terms[of], v)
			}
		}
	}
	if n == 0 {
		f.w.ledger.breach(f.group, "nobody can read anything")
	}
	t.Logf("%d nodes with all they were ever given read %d versions of their own; %d keys are known", len(f.given), n, f.names.Len())
}
