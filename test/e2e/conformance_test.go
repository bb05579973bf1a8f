package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/config"
)

// Options of the requests below, as bytes: /.well-known/core, and what stands behind.
const (
	wellKnown = "\xbb.well-known\x04core"
	nowhere   = "\xb7nowhere"
)

// exchanges are messages, byte by byte, and what RFC 7252, 7959 and 7967 say that
// comes back: the type, code, and whether message identifier and token are those that
// were sent; "" is nothing. More than one may be right.
var exchanges = []struct {
	name, send string
	want       []string
	stock      string // what go-coap's servers do instead
}{
	{"7252 5.2.1: the response in the acknowledgement", "\x42\x01\x10\x01ab" + wellKnown, []string{"ACK 2.05 id token"}, ""},
	{"7252 5.2.3: not confirmable", "\x52\x01\x10\x02ab" + wellKnown, []string{"NON 2.05 token"}, "CON 2.05 token"},
	{"7252 5.3.1: no token", "\x40\x01\x10\x03" + wellKnown, []string{"ACK 2.05 id token"}, ""},
	{"7252 5.3.1: the longest token", "\x48\x01\x10\x04abcdefgh" + wellKnown, []string{"ACK 2.05 id token"}, ""},
	{"7252 4.3: ping", "\x40\x00\x10\x05", []string{"RST 0.00 id"}, ""},
	{"7252 5.4.1: critical option, confirmable", "\x42\x01\x10\x06ab" + wellKnown + "\xd1\xdd\x00", []string{"ACK 4.02 id token"}, ""},
	{"7252 5.4.1: critical option, not confirmable", "\x52\x01\x10\x07ab" + wellKnown + "\xd1\xdd\x00", []string{"", "RST 0.00 id"}, ""},
	{"7252 5.4.1: elective option", "\x42\x01\x10\x08ab" + wellKnown + "\xd1\xdc\x00", []string{"ACK 2.05 id token"}, ""},
	{"7252 5.8: unknown method", "\x42\x1f\x10\x09ab" + wellKnown, []string{"ACK 4.05 id token"}, ""},
	{"7252 5.8.1: nothing there", "\x42\x01\x10\x0aab" + nowhere, []string{"ACK 4.04 id token", "ACK 4.01 id token"}, ""},
	{"7252 5.10.4: Accept that there is none of", "\x42\x01\x10\x0bab" + wellKnown + "\x62\xfd\xe8", []string{"ACK 4.06 id token"}, ""},
	{"7252 3: unknown version", "\x82\x01\x10\x0cab" + wellKnown, []string{""}, ""},
	{"7252 3: too long a token, confirmable", "\x49\x01\x10\x0dabcdefghi" + wellKnown, []string{"RST 0.00 id", ""}, ""},
	{"7252 3: marker without payload", "\x40\x01\x10\x0e" + wellKnown + "\xff", []string{"RST 0.00 id", ""}, ""},
	{"7252 3.1: reserved delta", "\x40\x01\x10\x0f\xf1\x00", []string{"RST 0.00 id", ""}, ""},
	{"7252 3.1: option beyond the end", "\x40\x01\x10\x10\xdd\xff\xff\xff", []string{"RST 0.00 id", ""}, ""},
	{"7252 4.1: empty message with content", "\x40\x00\x10\x11x", []string{"RST 0.00 id", ""}, ""},
	{"7252 4.2: response that nobody waits for", "\x42\x45\x10\x12ab", []string{"RST 0.00 id"}, "ACK 0.00 id"},
	{"7252 4.3: the same, not confirmable", "\x52\x45\x10\x13ab", []string{"", "RST 0.00 id"}, ""},
	{"7252 4.2: acknowledgement of nothing", "\x60\x00\x10\x14", []string{""}, ""},
	{"7252 4.2: reset of nothing", "\x70\x00\x10\x15", []string{""}, ""},
	{"7252 4.2: a reset with content", "\x72\x00\x10\x16ab", []string{""}, ""},
	{"7959 2.2: reserved size", "\x42\x01\x10\x17ab" + wellKnown + "\xc1\x07", []string{"ACK 4.00 id token"}, ""},
	{"7959 2.9.2: a block before the first", "\x42\x02\x10\x18ab\xbaauthz-info\xd1\x03\x18\xff0123456789abcdef", []string{"ACK 4.08 id token", "ACK 4.15 id token"}, ""},
	{"7967 2.1: no interest in success", "\x52\x01\x10\x19ab" + wellKnown + "\xd1\xea\x02", []string{""}, ""},
	{"7967 2.1: the same, confirmable", "\x42\x01\x10\x1aab" + wellKnown + "\xd1\xea\x02", []string{"ACK 0.00 id"}, ""},
	{"7967 2.1: interest in errors", "\x52\x01\x10\x1bab" + wellKnown + "\x62\xfd\xe8\xd1\xe4\x02", []string{"NON 4.06 token"}, "CON 4.06 token"},
}

// TestConformance: the message layer of both kinds of servers, the gateway's own and
// go-coap's, in clear and inside of DTLS, by one suite. Where go-coap's differ is told.
func TestConformance(t *testing.T) { onEach(t, conforms) }

func conforms(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind, func(c *config.Config) { c.Limits.PerPeerRPS = 1e5 })
	a := g.token()
	g.post(a)
	inside := g.inside(a)
	for name, conn := range map[string]net.Conn{"in clear": udp(t, g.coap), "inside of DTLS": inside} {
		p := &octets{t: t, c: conn, ping: 0x7000}
		for _, x := range exchanges {
			want := x.want
			if g.cfg.Endpoint.Kind == config.EndpointStock && x.stock != "" {
				want = []string{x.stock}
			}
			if got := p.exchange([]byte(x.send), !slices.Contains(want, "")); !slices.Contains(want, got.told([]byte(x.send))) {
				t.Errorf("%s: %s: came %q, want %q", name, x.name, got.told([]byte(x.send)), want)
			}
		}
		p.duplicates(name)
		p.blocks(name)
	}
	if strings.Contains(g.log.String(), "panic") {
		t.Error("a panic is in the log")
	}
}

// octets is one association, of which every datagram is seen.
type octets struct {
	t    *testing.T
	c    net.Conn
	ping uint16
}

// exchange sends a message, and returns what comes; nothing is known by two pings, one
// when the other is answered, whose Resets come after it. go-coap's servers answer in
// no order, so what has to come is waited for.
func (w *octets) exchange(b []byte, answered bool) (back answers) {
	w.t.Helper()
	w.write(b)
	for answered && len(back) == 0 {
		back = append(back, w.read())
	}
	for range 2 {
		w.ping++
		w.write(binary.BigEndian.AppendUint16([]byte{0x40, 0}, w.ping))
		for {
			m := w.read()
			if bytes.Equal(m, binary.BigEndian.AppendUint16([]byte{0x70, 0}, w.ping)) {
				break
			}
			back = append(back, m)
		}
	}
	return back
}

func (w *octets) write(b []byte) {
	w.t.Helper()
	if _, err := w.c.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *octets) read() []byte {
	w.t.Helper()
	if err := w.c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := w.c.Read(b)
	if err != nil || n < 4 {
		w.t.Fatalf("%d bytes, %v", n, err)
	}
	if b[0]>>4&3 == 0 { // confirmable
		w.write([]byte{0x60, 0, b[2], b[3]})
	}
	return b[:n]
}

// answers are the datagrams that came.
type answers [][]byte

// told is what they are, as exchanges has it.
func (a answers) told(sent []byte) string {
	var all []string
	token := func(m []byte) []byte { return m[4:min(len(m), 4+int(m[0]&15))] }
	for _, b := range a {
		s := fmt.Sprintf("%s %d.%02d", []string{"CON", "NON", "ACK", "RST"}[b[0]>>4&3], b[1]>>5, b[1]&31)
		if bytes.Equal(b[2:4], sent[2:4]) {
			s += " id"
		}
		if bytes.Equal(token(b), token(sent)) && b[1] != 0 {
			s += " token"
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// duplicates: a confirmable request that comes again is answered by the same bytes
// (RFC 7252, Section 4.2).
func (w *octets) duplicates(name string) {
	get := []byte("\x42\x01\x20\x01dd" + wellKnown)
	first := w.exchange(get, true)
	again := w.exchange(get, true)
	if len(first) != 1 || len(again) != 1 || !bytes.Equal(first[0], again[0]) {
		w.t.Errorf("%s: a duplicate: %x, then %x", name, first, again)
	}
}

// blocks reads a resource in blocks of 16 and of 64 bytes (RFC 7959, Section 2.4).
func (w *octets) blocks(name string) {
	small, large := w.body(name, 0), w.body(name, 2)
	if !bytes.Equal(small, large) || len(small) <= 64 {
		w.t.Errorf("%s: in small blocks %q, in large ones %q", name, small, large)
	}
}

// body is the resource in blocks of 2^(szx+4) bytes.
func (w *octets) body(name string, szx byte) (body []byte) {
	size := 16 << szx
	for num := range 64 {
		b := w.exchange(slices.Concat([]byte{0x42, 1, 0x22 + szx, byte(num)}, []byte("bb"+wellKnown+"\xc2"), []byte{byte(num >> 4), byte(num<<4) | szx}), true)
		if len(b) != 1 || b[0][1] != 0x45 {
			w.t.Fatalf("%s: block %d: %x", name, num, b)
		}
		at, part := block2(w.t, b[0])
		if at>>4 != uint32(num) || byte(at)&7 != szx || len(part) > size || at&8 != 0 && len(part) != size {
			w.t.Fatalf("%s: block %d: option %#x, %d bytes", name, num, at, len(part))
		}
		if body = append(body, part...); at&8 == 0 {
			return body
		}
	}
	w.t.Fatalf("%s: blocks without end", name)
	return nil
}

// block2 is the value of the option Block2, 0 without one, and the payload.
func block2(t *testing.T, b []byte) (at uint32, payload []byte) {
	t.Helper()
	number, rest := 0, b[4+int(b[0]&15):]
	for len(rest) > 0 && rest[0] != 0xff {
		delta, n := int(rest[0]>>4), int(rest[0]&15)
		rest = rest[1:]
		for _, x := range []*int{&delta, &n} {
			switch *x {
			case 13:
				*x, rest = 13+int(rest[0]), rest[1:]
			case 14:
				*x, rest = 269+int(binary.BigEndian.Uint16(rest)), rest[2:]
			}
		}
		number += delta
		if number == 23 {
			for _, v := range rest[:n] {
				at = at<<8 | uint32(v)
			}
		}
		rest = rest[n:]
	}
	if len(rest) > 0 {
		payload = rest[1:]
	}
	return at, payload
}
