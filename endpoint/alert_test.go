package endpoint

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
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

// insider is somebody with the keys of the only session: what is sealed comes from the
// node, what is opened from the endpoint.
func (o *world) insider() (sealed, opened *record.Cipher) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	s := o.e.sessions[0]
	return mustCipher(s.suite, &s.read), mustCipher(s.suite, &s.write)
}

// TestAlerts: what alerts and handshake messages do to a session (RFC 5246, Section
// 7.2; RFC 6347, Section 4.1.2.7): only authentic ones count, of these only a goodbye and
// fatal ones end it, and what is answered has the form of the RFC.
func TestAlerts(t *testing.T) {
	const none = "nothing"
	for name, c := range map[string]struct {
		kind    uint8
		content []byte
		clear   bool // in epoch 0
		forged  bool // under another key
		ends    bool
		answer  string
	}{
		"fatal alert in clear":      {kind: record.Alert, content: []byte{alertFatal, alertInternalError}, clear: true, answer: none},
		"goodbye in clear":          {kind: record.Alert, content: []byte{alertWarning, alertCloseNotify}, clear: true, answer: none},
		"forged fatal alert":        {kind: record.Alert, content: []byte{alertFatal, alertInternalError}, forged: true, answer: none},
		"forged message":            {kind: record.ApplicationData, content: []byte{0x40, 1, 0, 9}, forged: true, answer: none},
		"warning":                   {kind: record.Alert, content: []byte{alertWarning, alertNoRenegotiation}, answer: none},
		"alert cut short":           {kind: record.Alert, content: []byte{alertFatal}, answer: none},
		"alert too long":            {kind: record.Alert, content: []byte{alertFatal, alertInternalError, 0}, answer: none},
		"ChangeCipherSpec":          {kind: record.ChangeCipherSpec, content: []byte{1}, answer: none},
		"ClientHello":               {kind: record.Handshake, content: clientHello(1)[13:], answer: string([]byte{alertWarning, alertNoRenegotiation})},
		"other handshake message":   {kind: record.Handshake, content: []byte{20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, answer: none},
		"goodbye":                   {kind: record.Alert, content: []byte{alertWarning, alertCloseNotify}, ends: true, answer: string([]byte{alertWarning, alertCloseNotify})},
		"goodbye, called fatal":     {kind: record.Alert, content: []byte{alertFatal, alertCloseNotify}, ends: true, answer: string([]byte{alertWarning, alertCloseNotify})},
		"fatal alert":               {kind: record.Alert, content: []byte{alertFatal, alertInternalError}, ends: true, answer: none},
		"fatal alert of a new kind": {kind: record.Alert, content: []byte{alertFatal, 250}, ends: true, answer: none},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(1)
				o := begin(t, w, true, func(c *Config) { c.OwnPSK = true })
				defer o.stop()
				p := o.dial("node1")
				defer p.close()
				p.ask(p.request(coap.PUT, "t", ""))
				seal, open := o.insider()
				if c.forged {
					seal = mustCipher(record.PSKCCM8, &record.Keys{})
				}
				answer := none
				unlock := w.lock()
				w.tap = func(from, _ netip.AddrPort, b []byte) bool {
					if from == o.at {
						r, _, err := record.Next(b, 0)
						if err != nil {
							t.Errorf("%x: %v", b, err)
						} else if _, content, err := open.Open(nil, &r); err != nil {
							t.Errorf("%x: %v", b, err)
						} else {
							answer = string(content)
						}
					}
					return from == o.at
				}
				unlock()
				b := record.AppendPlain(nil, c.kind, 20, c.content)
				if !c.clear {
					b = seal.Seal(nil, c.kind, epoch, 20, nil, c.content)
				}
				w.carry(p.c.port().addr, o.at, b)
				time.Sleep(time.Second)
				synctest.Wait()
				unlock = w.lock()
				w.tap = nil
				if answer != c.answer {
					t.Errorf("answered %x, not %x", answer, c.answer)
				}
				unlock()
				if ended := o.ended() == 1; ended != c.ends || o.sessions() == 1 == c.ends {
					t.Errorf("ended: %v, %d sessions", ended, o.sessions())
				}
				if !c.ends {
					p.ask(p.request(coap.PUT, "u", ""))
				}
			})
		})
	}
}
