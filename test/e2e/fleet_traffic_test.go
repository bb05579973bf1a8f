package e2e

import (
	"errors"
	"maps"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// oneCred is the credential of the only sender.
type oneCred []byte

func (c oneCred) Credential(_, _ []byte) ([]byte, bool) { return c, true }

// opens says whether a request of a member can be read with keying material that
// somebody has, put under whatever Gid the request names.
func opens(t testing.TB, s node.State, gid groupcomm.Gid, cred []byte, req *coap.Message) bool {
	t.Helper()
	g, err := oscore.NewGroup(oscore.GroupConfig{Creds: oneCred(cred)})
	if err != nil {
		t.Fatal(err)
	}
	s.Gid = gid
	if err := g.Install(node.Material(s), nil, nil, true); err != nil {
		t.Fatal(err)
	}
	m, _, err := g.UnprotectRequest(nil, req.Clone())
	return err == nil && m != nil || errors.Is(err, oscore.ErrNotFresh)
}

// held is everything that a node ever held.
func (n *fleetNode) held() map[groupcomm.Version]node.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.states)
}

// proveTraffic: what a member sends to the group under the last version opens with
// what others hold that stay, and not with anything that one who was evicted ever held.
func (f *fleet) proveTraffic(last groupcomm.Version, out map[*fleetNode]bool) {
	f.t.Helper()
	var senders []*fleetNode
	for _, n := range f.nodes {
		if _, ok := n.held()[last]; ok && !out[n] && len(senders) < 2 {
			senders = append(senders, n)
		}
	}
	if len(senders) < 2 {
		f.t.Fatal("nobody holds the last version")
	}
	from, to := senders[0], senders[1]
	s, cred := from.held()[last], from.m.Cred()
	g, err := oscore.NewGroup(oscore.GroupConfig{Creds: oneCred(cred)})
	if err == nil {
		err = g.Install(node.Material(s), &oscore.GroupSender{ID: s.SenderID, Key: from.m.Key(), Cred: cred}, nil, true)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	req := &coap.Message{Type: coap.NonConfirmable, Code: coap.POST, ID: 1, Token: []byte{1}, Payload: []byte("a reading")}
	req.Options.SetPath("t")
	protected, _, err := g.ProtectRequest(f.t.Context(), nil, req)
	if err != nil {
		f.t.Fatal(err)
	}
	protected.Token = req.Token
	if !opens(f.t, to.held()[last], s.Gid, cred, protected) {
		f.t.Error("a member that stays cannot read the group")
	}
	tried := 0
	for n := range out {
		for version, held := range n.held() {
			if tried++; opens(f.t, held, s.Gid, cred, protected) {
				f.t.Errorf("one who was evicted reads the group with what it had of version %d", version)
			}
		}
	}
	if tried < len(out) {
		f.t.Errorf("only %d attempts to read the group", tried)
	}
}
