package endpoint

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// fragmented cuts a ClientHello, a record, into fragments of n bytes.
func fragmented(hello []byte, n int) (out [][]byte) {
	head, body := hello[13:25], hello[25:]
	for at, seq := 0, uint64(hello[10])*16; at < len(body); at, seq = at+n, seq+1 {
		piece := body[at:min(at+n, len(body))]
		f := append(bytes.Clone(head[:6]), 0, byte(at>>8), byte(at), 0, byte(len(piece)>>8), byte(len(piece)))
		out = append(out, record.AppendPlain(nil, record.Handshake, seq, append(f, piece...)))
	}
	return out
}

// TestFragmentedHello: clients come in whose ClientHellos are in fragments, in any
// order behind the first, with copies and losses, and nothing is left of those that
// never become whole.
func TestFragmentedHello(t *testing.T) {
	for name, change := range map[string]func(f [][]byte) [][]byte{
		"in order":         func(f [][]byte) [][]byte { return f },
		"backwards":        func(f [][]byte) [][]byte { slices.Reverse(f[1:]); return f },
		"twice":            func(f [][]byte) [][]byte { return append(f, f...) },
		"first twice":      func(f [][]byte) [][]byte { return append([][]byte{f[0]}, f...) },
		"one datagram":     func(f [][]byte) [][]byte { return [][]byte{bytes.Join(f, nil)} },
		"another's length": func(f [][]byte) [][]byte { g := bytes.Clone(f[1]); g[15]++; return append([][]byte{f[0], g}, f[1:]...) },
		"another message":  func(f [][]byte) [][]byte { g := bytes.Clone(f[1]); g[18]++; return append([][]byte{f[0], g}, f[1:]...) },
		"beyond its end": func(f [][]byte) [][]byte {
			g := bytes.Clone(f[1])
			g[20] = 0xff
			return append([][]byte{f[0], g}, f[1:]...)
		},
	} {
		for _, opts := range [][]dtls.ClientOption{nil, {withCID}} {
			t.Run(fmt.Sprint(name, len(opts)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWire(1)
					o := begin(t, w, true, func(c *Config) { c.OwnPSK = true })
					defer o.stop()
					cut := 0
					w.tap = func(from, to netip.AddrPort, b []byte) bool {
						if to != o.at || b[0] != record.Handshake || b[13] != handshakeClientHello || len(b) < 25+80 {
							return false
						}
						cut++
						go func() {
							for _, f := range change(fragmented(b, 70)) {
								w.mu.Lock()
								p := w.ports[to]
								w.mu.Unlock()
								if p != nil {
									p.in <- Datagram{Addr: from, B: f}
								}
							}
						}()
						return true
					}
					began := time.Now()
					p, err := o.dialFrom(w.open(""), "node1", opts...)
					if err != nil {
						t.Fatal(err)
					}
					defer p.close()
					if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
						t.Errorf("%+v", r)
					}
					if took := time.Since(began); took > 500*time.Millisecond {
						t.Errorf("a fragmented ClientHello costs a time-out: %v", took)
					}
					unlock := w.lock()
					if cut == 0 { // the first of a small one is not
						t.Errorf("%d ClientHellos were cut", cut)
					}
					unlock()
					if !o.empty() {
						t.Error("something is left")
					}
				})
			})
		}
	}
}

// TestFragmentsOfNobody: fragments without a cookie leave nothing, and those with
// one are bounded in number and time.
func TestFragmentsOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(1)
		o := begin(t, w, true, func(c *Config) { c.OwnPSK, c.MaxHandshakes = true, 4 })
		defer o.stop()
		body := append([]byte{0xfe, 0xfd}, bytes.Repeat([]byte{7}, 32)...)
		first := func(cookie []byte) []byte {
			b := append(append(append(bytes.Clone(body), 0, byte(len(cookie))), cookie...), 0, 2, 0xc0, 0xa8, 1, 0)
			return record.AppendPlain(nil, record.Handshake, 0, append([]byte{1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(b))}, b...))
		}
		for i := range 1000 {
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), uint16(i))
			o.e.arrive(Datagram{Addr: from, B: first(nil)})
			o.e.arrive(Datagram{Addr: from, B: first(bytes.Repeat([]byte{1}, 8))})
		}
		if !o.empty() {
			t.Error("something is kept of clients without a cookie")
		}
		for range 8 {
			p := w.open("")
			w.carry(p.addr, o.at, first(nil))
			d, err := p.receive()
			if err != nil {
				t.Fatal(err)
			}
			w.carry(p.addr, o.at, first(d.B[28:]))
		}
		time.Sleep(time.Second)
		o.e.mu.Lock()
		if n := len(o.e.own.hellos); n != 4 {
			t.Errorf("%d are gathered, not 4", n)
		}
		o.e.mu.Unlock()
		p, err := o.dialFrom(w.open(""), "node1") // takes the place of one
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		time.Sleep(2 * handshakeTimeout)
		o.e.mu.Lock()
		defer o.e.mu.Unlock()
		if len(o.e.own.hellos) != 0 {
			t.Error("some are left")
		}
	})
}

// TestSmallMTU: pion's client, whose datagrams are small, says what it has to say in
// fragments: ClientHello, psk_identity, and a certificate nearly as long as is taken.
// They are understood when all come before the first of them is looked at, too.
func TestSmallMTU(t *testing.T) {
	const mtu = 110
	for name, dial := range map[string]func(o *world, root *issuer) (*peer, error){
		"pre-shared key": func(o *world, _ *issuer) (*peer, error) {
			return o.dialFrom(o.w.open(""), strings.Repeat("node", 1000), dtls.WithMTU(mtu))
		},
		"certificate": func(o *world, root *issuer) (*peer, error) {
			own := root.issue(o.t, "node", "P-256", func(c *x509.Certificate) {
				for i := range 90 {
					c.DNSNames = append(c.DNSNames, fmt.Sprintf("a-long-name-of-some-host-%d.example", i))
				}
			})
			return o.dialWith(o.w.open(""), certOptions(own, root, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, dtls.WithMTU(mtu))...)
		},
	} {
		for _, burst := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", at once: ", burst), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWire(1)
					root := newRoot(t)
					o := begin(t, w, true, withCertificates(t, root, root.issue(t, "gateway", "P-256")), func(c *Config) { c.OwnPSK = true })
					defer o.stop()
					pieces, flight := 0, [][]byte(nil)
					w.tap = func(from, to netip.AddrPort, b []byte) bool {
						if to != o.at || b[0] != record.Handshake && b[0] != record.ChangeCipherSpec {
							return false
						}
						if b[0] == record.Handshake && !bytes.Equal(b[14:17], b[22:25]) {
							pieces++
						}
						if !burst || b[0] == record.Handshake && b[13] == handshakeClientHello {
							return false
						}
						for rest := b; len(rest) > 0; {
							r, after, err := record.Next(rest, 0)
							if err != nil {
								return false
							}
							flight, rest = append(flight, rest[:len(rest)-len(after)]), after
							if r.Epoch == 1 { // Finished ends it
								go o.burst(from, flight)
								flight = nil
							}
						}
						return true
					}
					p, err := dial(o, root)
					if err != nil {
						t.Fatal(err)
					}
					defer p.close()
					if r := p.ask(p.request(coap.PUT, "x", "x")); string(r.Payload) != "x" {
						t.Errorf("%+v", r)
					}
					unlock := w.lock()
					defer unlock()
					if pieces < 30 {
						t.Errorf("only %d fragments", pieces)
					}
				})
			})
		}
	}
}

// burst hands a handshake its records before it can look at one.
func (o *world) burst(from netip.AddrPort, records [][]byte) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	if h := o.e.own.byAddr[from]; h != nil {
		for _, r := range records {
			h.receive(r)
		}
	}
}
