package proxy

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/test/peers"
)

const testGroup = "239.255.77.1"

// members are servers in a group on loopback; answer makes the responses of the
// n-th.
func members(t *testing.T, n int, answer func(n int, m *coap.Message) []*coap.Message) (port uint16) {
	t.Helper()
	return peers.Group(t, testGroup, n, answer).At.Port()
}

// TestGroup: one request to a group, and every response of its members within the
// time that the client asked for, each with who it is from
// (draft-ietf-core-groupcomm-proxy-07).
func TestGroup(t *testing.T) {
	var mu sync.Mutex
	var asked []*coap.Message
	blocks := []byte("0123456789abcdef0123456789abcdef!")
	port := members(t, 3, func(n int, m *coap.Message) []*coap.Message {
		mu.Lock()
		asked = append(asked, m)
		mu.Unlock()
		r := &coap.Message{Type: coap.NonConfirmable, ID: uint16(n + 1), Code: coap.Content, Token: m.Token, Payload: fmt.Appendf(nil, "member %d", n)}
		switch b, _ := m.Options.Block(coap.Block2); {
		case n == 1: // a copy of the message, and a second response
			again := r.Clone()
			again.ID, again.Payload = 77, []byte("member 1 again")
			return []*coap.Message{r, r, again}
		case n == 2 && b == nil: // in blocks, of which the others are asked for one by one
			r.Options.SetBlock(coap.Block2, coap.Block{More: true, SZX: 0})
			r.Payload = blocks[:16]
		case n == 2:
			r.Type, r.ID = coap.Acknowledgement, m.ID
			end := min(b.Offset()+16, len(blocks))
			r.Options.SetBlock(coap.Block2, coap.Block{Num: b.Num, More: end < len(blocks), SZX: 0})
			r.Payload = blocks[b.Offset():end]
		}
		return []*coap.Message{r}
	})
	rule := Rule{Host: testGroup + "/32", Scheme: CoAP, Port: port, Interface: "lo", Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	s := house(t, Config{Rules: []Rule{rule}}, nil)
	responses := make(chan *coap.Message, 16)
	l := s.client("a", coaptest.Options{Patient: true, Trace: func(toServer bool, m *coap.Message) {
		if !toServer && m.Code != coap.Empty {
			responses <- m.Clone()
		}
	}})
	uri := fmt.Sprintf("coap://%s:%d/a", testGroup, port)

	r := do(t, l, proxied(coap.GET, uri, nil))
	<-responses
	if v, ok := r.Options.Get(MulticastTimeout); r.Code != coap.BadRequest || !ok || len(v) != 0 || len(r.Payload) == 0 {
		t.Fatalf("without Multicast-Timeout: %v %+v", r.Code, r.Options)
	}
	if r := s.ask(plainRequest("198.51.100.1:7000", uri)); r.Code != coap.Unauthorized {
		t.Errorf("an address that shows no key: %v", r.Code)
	}

	req := proxied(coap.GET, uri, nil)
	req.Options.SetUint(MulticastTimeout, 30)
	do(t, l, req)
	got := map[string]string{}
	for len(got) < 4 {
		select {
		case m := <-responses:
			v, _ := m.Options.Get(replyFrom)
			got[string(m.Payload)] = hex.EncodeToString(v)
		case <-time.After(patience):
			t.Fatalf("%v", got)
		}
	}
	for body, ip := range map[string]string{"member 0": "7f000001", "member 1": "7f000002", "member 1 again": "7f000002", string(blocks): "7f000003"} {
		// [-1, [h'7f00000n', port]]
		if cri := got[body]; len(cri) < 18 || cri[:16] != "82208244"+ip || cri[16:18] != "19" {
			t.Errorf("%q is from %s", body, cri)
		}
	}
	mu.Lock()
	first := asked[0]
	mu.Unlock()
	if first.Type != coap.NonConfirmable || first.Options.Has(MulticastTimeout) || first.Options.Has(coap.ProxyUri) || !slices.Equal(first.Options.Path(), []string{"a"}) {
		t.Errorf("%v %+v", first.Type, first.Options)
	}

	// Nobody waits: nothing is relayed.
	req = proxied(coap.POST, uri, []byte("x"))
	req.Options.SetUint(MulticastTimeout, 0)
	req.Peer = coap.Peer{Link: "b", Via: coap.DTLSPSK}
	if _, err := s.p.ServeCoAP(t.Context(), req); err != coap.ErrSilent {
		t.Errorf("Multicast-Timeout 0: %v", err)
	}
	// Nobody answers: nothing is said.
	rule2 := proxied(coap.GET, fmt.Sprintf("coap://%s:%d/a", testGroup, port), nil)
	rule2.Options.SetUint(MulticastTimeout, 1)
	rule2.Peer = req.Peer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.p.ServeCoAP(ctx, rule2); err == nil {
		t.Error("a request that was given up is answered")
	}
}
