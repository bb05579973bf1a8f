package ace

import (
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// An operator knows a node by its identity, its groups by what its key stands for:
// each leads to the other, also after a power cut and when its tokens ended.
func TestClient(t *testing.T) {
	b := newBench(t)
	n, other := nodeNamed("meter 7"), nodeNamed("other")
	b.enroll(dayLong, n, other)
	look := func(identity string) *ClientInfo {
		t.Helper()
		c, err := b.Client(t.Context(), identity)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := look("nobody"); c != nil {
		t.Errorf("nobody: %+v", c)
	}
	if c := look(n.Identity); c.State != "enabled" || !c.MayToken || !c.Until.IsZero() || c.Posted || c.Scope.RolesFor("g1") != 6 {
		t.Errorf("before it came: %+v", c)
	}
	peer := b.mustAssociate(n)
	a := b.ask(askAs(peer, map[int64]any{}))
	if c := look(n.Identity); c.Until.IsZero() || c.Posted || c.Association != peer.Subject {
		t.Errorf("with a token that is on its way: %+v", c)
	}
	b.mustPost(outside(), a.token)
	first := b.handshake(a.kid)
	second, _ := b.member(peer) // another key of the same client
	stranger, _ := b.member(b.mustAssociate(other))
	b = b.reopen()
	c := look(n.Identity)
	if !c.Posted || !c.Is(first) || !c.Is(second) || c.Is(stranger) || c.Is(coap.Subject{}) || len(c.Subjects) != 2 {
		t.Errorf("with two keys: %+v", c)
	}
	for subject, want := range map[coap.Subject]string{first: n.Identity, second: n.Identity, stranger: other.Identity, peer.Subject: "", {}: ""} {
		if got, err := b.ClientOf(t.Context(), subject); err != nil || got != want {
			t.Errorf("client of %v: %q, %v, want %q", subject.Kind, got, err, want)
		}
	}
	if string(HandshakeIdentity(first)) != string(KIDIdentity(a.kid)) || HandshakeIdentity(peer.Subject) != nil {
		t.Error("the psk_identity of a key is another")
	}
	if _, err := b.DisableNodes(t.Context(), []string{n.Identity}); err != nil {
		t.Fatal(err)
	}
	if c := look(n.Identity); c.State != "disabled" || c.MayToken || !c.Until.IsZero() || c.Posted || !c.Is(first) {
		t.Errorf("disabled: %+v", c)
	}
}
