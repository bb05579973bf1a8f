package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/test/peers"
)

// TestStandIn: of a member that the client has a rule for, Reply-From says how it is
// reached by the gateway, and so it is, within that rule; of another it has its own
// address, and a Uri-Host with that is nothing for the proxy
// (draft-ietf-core-groupcomm-proxy-07, Section 6.1).
func TestStandIn(t *testing.T) {
	t.Parallel()
	g := peers.Group(t, "239.255.77.8", 2, func(n int, m *coap.Message) []*coap.Message {
		if m.Options.Has(coap.UriHost) || m.Options.Has(coap.ProxyScheme) {
			t.Errorf("%v", m.Options)
		}
		r := &coap.Message{Type: coap.NonConfirmable, ID: m.ID, Code: coap.Content, Token: m.Token, Payload: fmt.Appendf(nil, "%d has /%s", n, strings.Join(m.Options.Path(), "/"))}
		return []*coap.Message{r}
	})
	here := []netip.Prefix{netip.PrefixFrom(g.At.Addr(), 32), netip.MustParsePrefix("127.0.0.0/8")}
	lamps := Rule{Prefix: []string{"lamps"}, Path: []string{"lamp"}, Upstream: Target{CoAP, g.At.Addr().String(), g.At.Port()}, Interface: "lo", Addresses: here}
	member := forwardTo(memberTarget(g.Addr(0)))
	member.Path, member.Peers = []string{"lamp"}, []string{"psk:a"}
	for _, in := range []Target{{CoAPS, "192.0.2.1", 5684}, {}} {
		s := house(t, Config{StandIn: in, Rules: []Rule{lamps, member}}, nil)
		for _, name := range []string{"a", "b"} {
			came := make(chan *coap.Message, 8)
			l := s.client(name, coaptest.Options{Patient: true, Trace: func(toServer bool, m *coap.Message) {
				if !toServer && m.Code != coap.Empty {
					came <- m.Clone()
				}
			}})
			all := &coap.Request{Code: coap.GET}
			all.Options.SetPath("lamps")
			all.Options.SetUint(MulticastTimeout, 30)
			do(t, l, all)
			for range 2 {
				var m *coap.Message
				select {
				case m = <-came:
				case <-time.After(patience):
					t.Fatal("no response")
				}
				n := int(m.Payload[0] - '0')
				at := g.Addr(n)
				authority := fmt.Sprintf("8244%x19%04x", at.Addr().AsSlice(), at.Port())
				want := "8220" + authority
				if in.Host != "" && name == "a" && n == 0 {
					want = "8221" + "8244c0000201191634" + "82f6" + authority
				}
				if v, _ := m.Options.Get(replyFrom); fmt.Sprintf("%x", v) != want {
					t.Errorf("%v, %s: member %d is at %x, want %s", in, name, n, v, want)
				}
			}
			for n, paths := range map[int][]string{0: {"lamp/x", "lamp", "other"}, 1: {"lamp"}} {
				for _, path := range paths {
					one := &coap.Request{Code: coap.GET}
					one.Options.AddString(coap.UriHost, g.Addr(n).Addr().String())
					one.Options.SetUint(coap.UriPort, uint32(g.Addr(n).Port()))
					one.Options.SetPath(coap.PathOf("/" + path)...)
					r := do(t, l, one)
					var code coap.Code
					var want string
					switch {
					case in.Host == "" || n == 1:
						code, want = coap.Content, "local"
					case name == "a" && path != "other":
						code, want = coap.Content, "0 has /"+path
					default:
						code, want = coap.ProxyingNotSupported, textClosed
					}
					if r.Code != code || string(r.Payload) != want {
						t.Errorf("%v, %s: /%s of member %d: %v %q", in, name, path, n, r.Code, r.Payload)
					}
				}
			}
			l.Close()
		}
		s.stop()
	}
}
