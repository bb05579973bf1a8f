package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// rubbish is what no CoAP endpoint should get.
func rubbish(t testing.TB) [][]byte {
	t.Helper()
	get := (&coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: 7, Token: []byte("12345678")})
	get.Options.SetPath("ace-group", "sensors", "num")
	whole, err := get.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	out := [][]byte{
		{}, {0x40}, {0xff, 0xff, 0xff, 0xff}, // empty, short, version 3
		{0x49, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // token length 9
		{0x40, 1, 0, 2, 0xff},                      // marker without payload
		{0x40, 1, 0, 3, 0xf1, 0},                   // reserved delta
		{0x40, 1, 0, 4, 0xdd, 0xff, 0xff, 0xff},    // option beyond the end
		{0x40, 0x00, 0, 5, 'x'},                    // empty message with content
		{0x40, 0x45, 0, 6}, {0x60, 0x45, 0, 7},     // responses that nobody waits for
		{0x60, 0, 0, 8}, {0x70, 0, 0, 9}, // ACK and RST of nothing
		{0x40, 1, 0, 10, 0xb9, 'a', 'b'},              // path cut off
		{0x40, 2, 0, 11, 0xd1, 0xf2, 0x0e, 0xff, 'x'}, // Block1 in the middle of nothing
		make([]byte, 65000),                           // more than a datagram that is read
	}
	for i := range whole {
		out = append(out, whole[:i])
	}
	for range 100 {
		b := make([]byte, 64)
		rand.Read(b)
		out = append(out, b)
		// A header that reads well, then noise.
		out = append(out, append([]byte{0x44, 0x02, 0, 1, 1, 2, 3, 4}, b...))
	}
	return out
}

// handshakes are DTLS records that lead nowhere.
func handshakes() [][]byte {
	record := func(kind byte, epoch byte, body []byte) []byte {
		return append([]byte{kind, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	}
	hello := hello()
	out := [][]byte{
		record(22, 0, nil), record(22, 0, []byte{1}), record(22, 1, make([]byte, 64)), record(23, 1, make([]byte, 64)),
		record(25, 1, make([]byte, 40)), record(21, 0, []byte{2, 40}), record(20, 0, []byte{1}),
		record(22, 0, append([]byte{1, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff}, make([]byte, 100)...)),
	}
	for i := 0; i < len(hello); i += 7 {
		out = append(out, hello[:i])
		flipped := append([]byte(nil), hello...)
		flipped[i] ^= 0xff
		out = append(out, flipped)
	}
	return out
}

// hello is a ClientHello without cookie for TLS_PSK_WITH_AES_128_CCM_8.
func hello() []byte {
	body := []byte{0xfe, 0xfd}
	random := make([]byte, 32)
	rand.Read(random)
	body = append(body, random...)
	body = append(body, 0, 0, 0, 2, 0xc0, 0xa8, 1, 0) // no session, no cookie, one suite, no compression
	n := len(body)
	message := append([]byte{1, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n)}, body...)
	return append([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(message) >> 8), byte(len(message))}, message...)
}

// TestRubbish: whatever comes to either port, the state is untouched and the
// next node is served.
func TestRubbish(t *testing.T) { onEach(t, rubbishComes) }

// onEach runs a test on each kind of servers.
func onEach(t *testing.T, test func(t *testing.T, kind func(*config.Config))) {
	for _, name := range []string{config.EndpointOwn, config.EndpointStock} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(c *config.Config) { c.Endpoint.Kind = name })
		})
	}
	t.Run("handshakes by pion", func(t *testing.T) {
		t.Parallel()
		test(t, func(c *config.Config) { c.Endpoint.Handshake = config.HandshakePion })
	})
}

func rubbishComes(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind)
	owner := g.join()
	if _, err := owner.Num(soon(t)); err != nil {
		t.Fatal(err)
	}
	before := g.picture()

	for _, addr := range []string{g.coap, g.coaps} {
		raw := udp(t, addr)
		for _, b := range append(rubbish(t), handshakes()...) {
			_, _ = raw.Write(b) // a datagram may be refused for its size
		}
	}
	// The same inside an association, where it has the sender's rights.
	a := g.token()
	g.post(a)
	inside := g.inside(a)
	for _, b := range rubbish(t) {
		if len(b) <= 1<<14 {
			_, _ = inside.Write(b) // the gateway may have closed it
		}
	}

	// These come after the rubbish, so it was read before they are answered.
	if num, err := owner.Num(soon(t)); err != nil || num != owner.state().Version {
		t.Errorf("the member: version %d, %v", num, err)
	}
	if r := ask(t, g.plain(), coap.GET, []string{".well-known", "core"}, 0, nil); r.Code != coap.Content {
		t.Errorf("discovery: %v", r.Code)
	}
	if after := g.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	g.join()
	if n := len(g.show().Members); n != 2 {
		t.Errorf("%d members", n)
	}
	if strings.Contains(g.log.String(), "panic") {
		t.Error("a panic is in the log")
	}
}

// TestStrangers: an identity that nobody knows fails at once, a wrong key by
// silence, and neither leaves anything.
func TestStrangers(t *testing.T) { onEach(t, strangersCome) }

func strangersCome(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind)
	before := g.picture()
	dial := func(patience time.Duration, identity, key []byte) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		tr, err := node.DialDTLS(ctx, g.coaps, identity, key)
		if err == nil {
			t.Errorf("%x is let in", identity)
			_ = tr.Close()
		}
		return err
	}
	key := []byte("0123456789abcdef")
	unposted := g.token() // valid, but its key identifier was never posted
	other := g.token()
	for name, identity := range map[string][]byte{
		"a name":             []byte("mallory"),
		"a kid never posted": unposted.Identity(),
		"a broken token":     append(append([]byte(nil), unposted.Token[:len(unposted.Token)-1]...), unposted.Token[len(unposted.Token)-1]^1),
		"a long identity":    make([]byte, 4000),
	} {
		if err := dial(patience, identity, key); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s meets silence", name)
		}
	}
	g.post(other)
	const silence = 1500 * time.Millisecond
	if err := dial(silence, other.Identity(), key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wrong key: %v", err)
	}
	// A token in psk_identity with another's key commits nothing: the kid stays
	// unknown.
	if err := dial(silence, unposted.Token, key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a token with a wrong key: %v", err)
	}
	if err := dial(patience, unposted.Identity(), unposted.Key.Bytes()); errors.Is(err, context.DeadlineExceeded) {
		t.Error("the failed handshake stored its token")
	}
	if after := g.picture(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	g.join()
}

// TestHalfOpen: handshakes that nobody finishes are bounded, and a node that
// tries on gets in.
func TestHalfOpen(t *testing.T) { onEach(t, halfOpen) }

func halfOpen(t *testing.T, kind func(*config.Config)) {
	g := serve(t, kind, func(c *config.Config) { c.Limits.Handshakes = 4 })
	for range 300 {
		if _, err := udp(t, g.coaps).Write(hello()); err != nil {
			t.Fatal(err)
		}
	}
	g.join()
	if n := len(g.show().Members); n != 1 {
		t.Errorf("%d members", n)
	}
}
