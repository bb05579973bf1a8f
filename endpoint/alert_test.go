package endpoint

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/seed4911071e/groupgate/dtls12"
	"github.com/seed4911071e/groupgate/record"
)

// TestRefusals: a ClientHello with its cookie that cannot be served is refused with
// the alert of RFC 5246, Section 7.2.2, in clear, and leaves nothing.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		version, suite []byte
		alert          dtls12.Alert
	}{
		"no suite in common": {[]byte{0xfe, 0xfd}, []byte{0xc0, 0x2f}, dtls12.HandshakeFailure},
		"DTLS 1.0":           {[]byte{0xfe, 0xff}, []byte{0xc0, 0xa8}, dtls12.ProtocolVersion},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(1)
				o := begin(t, w, true, func(c *Config) { c.OwnPSK = true })
				defer o.stop()
				p := w.open("")
				ask := func(seq byte, cookie []byte) []byte {
					b := append(bytes.Clone(c.version), bytes.Repeat([]byte{7}, 32)...)
					b = append(append(append(b, 0, byte(len(cookie))), cookie...), 0, 2, c.suite[0], c.suite[1], 1, 0)
					n := byte(len(b))
					w.carry(p.addr, o.at, record.AppendPlain(nil, record.Handshake, uint64(seq), append([]byte{1, 0, 0, n, 0, seq, 0, 0, 0, 0, 0, n}, b...)))
					d, err := p.receive()
					if err != nil {
						t.Fatal(err)
					}
					return d.B
				}
				answer := ask(1, ask(0, nil)[28:])
				r, _, err := record.Next(answer, 0)
				if err != nil || r.Type != record.Alert || r.Epoch != 0 || !bytes.Equal(r.Fragment, []byte{alertFatal, byte(c.alert)}) {
					t.Errorf("%x, not %v", answer, c.alert)
				}
				synctest.Wait()
				if !o.empty() {
					t.Error("something is left")
				}
			})
		})
	}
}
