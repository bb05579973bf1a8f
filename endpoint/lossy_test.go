package endpoint

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
)

// TestEachDatagram: whichever datagram of a handshake, or two of them, are lost, and
// whichever comes twice or late, it comes through after the time-outs that RFC 6347,
// Section 4.2.4, has for that, and its session serves.
func TestEachDatagram(t *testing.T) {
	k := keys{rawKey(t), rawKey(t)}
	root := newRoot(t)
	own, mine := root.issue(t, "node", "P-256"), root.issue(t, "gateway", "P-256")
	certificate := certOptions(own, root, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8)
	for _, c := range []struct {
		name string
		own  bool
		dial func(o *world, p *port) (*peer, error)
	}{
		{"psk/own", true, func(o *world, p *port) (*peer, error) { return o.dialFrom(p, "node1") }},
		{"psk/own/cid", true, func(o *world, p *port) (*peer, error) { return o.dialFrom(p, "node1", withCID) }},
		{"psk/pion", false, func(o *world, p *port) (*peer, error) { return o.dialFrom(p, "node1") }},
		{"psk/pion/cid", false, func(o *world, p *port) (*peer, error) { return o.dialFrom(p, "node1", []dtls.ClientOption{withCID}...) }},
		{"raw", true, func(o *world, p *port) (*peer, error) { return k.dialAs(o, p, k.client, nil) }},
		{"raw/cid", true, func(o *world, p *port) (*peer, error) { return k.dial(o, p, k.client) }},
		{"certificate", true, func(o *world, p *port) (*peer, error) { return o.dialWith(p, certificate...) }},
		{"certificate/cid", true, func(o *world, p *port) (*peer, error) {
			return o.dialWith(p, slices.Concat(certificate, []dtls.ClientOption{withCID})...)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			try := func(bound time.Duration, what func(n int) string) (datagrams int) {
				synctest.Test(t, func(t *testing.T) {
					w := newWire(1)
					o := begin(t, w, true, k.withRaw, withCertificates(t, root, mine), func(cfg *Config) { cfg.OwnPSK = c.own })
					defer o.stop()
					n := 0
					w.tap = func(from, to netip.AddrPort, b []byte) bool {
						fate := what(n)
						n++
						p := w.ports[to]
						if fate == "" || p == nil {
							return false
						}
						delay := map[string]time.Duration{"doubled": 5 * time.Millisecond, "late": 300 * time.Millisecond}[fate]
						if delay > 0 {
							time.AfterFunc(delay, func() { p.in <- Datagram{Addr: from, B: b} })
						}
						return fate != "doubled"
					}
					began := time.Now()
					p, err := c.dial(o, w.open(""))
					if err != nil {
						t.Error(err)
						return
					}
					defer p.close()
					took := time.Since(began)
					unlock := w.lock()
					datagrams = n
					w.tap = nil
					unlock()
					if took > bound {
						t.Errorf("took %v, not %v", took, bound)
					}
					if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
						t.Errorf("%+v", r)
					}
				})
				return datagrams
			}
			all := try(time.Second/2, func(int) string { return "" })
			if all < 6 { // RFC 6347, Section 4.2: flights 1 to 6
				t.Fatalf("%d datagrams", all)
			}
			for i := range all {
				for fate, bound := range map[string]time.Duration{"lost": 1500 * time.Millisecond, "doubled": time.Second / 2, "late": 1500 * time.Millisecond} {
					if try(bound, func(n int) string {
						if n == i {
							return fate
						}
						return ""
					}); t.Failed() {
						t.Fatalf("with datagram %d %s", i, fate)
					}
				}
				for j := range i {
					// 1 s and 2 s: RFC 6347, Section 4.2.4.1.
					if try(3500*time.Millisecond, func(n int) string {
						if n == i || n == j {
							return "lost"
						}
						return ""
					}); t.Failed() {
						t.Fatalf("without datagrams %d and %d", j, i)
					}
				}
			}
		})
	}
}
