package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/ports"
)

// bare is a legacy node without any security: CoAP on one UDP socket.
type bare struct {
	t    *testing.T
	conn *net.UDPConn
	mid  uint16
	got  chan *coap.Message // responses

	mu    sync.Mutex
	asked int
	first func(answer []byte, to netip.AddrPort) // what is done before a request is answered; guarded by mu
}

// newBare is at a port of an address of its own; 0: any port.
func newBare(t *testing.T, host byte, port int) *bare {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, host), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	b := &bare{t: t, conn: conn, got: make(chan *coap.Message, 64)}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m, err := coap.DecodeMessage(slices.Clone(buf[:n]))
			if err != nil {
				continue
			}
			if !m.Code.IsRequest() {
				b.got <- m
				continue
			}
			b.mu.Lock()
			b.asked++
			first := b.first
			b.mu.Unlock()
			r := &coap.Message{Type: coap.Acknowledgement, Code: coap.Content, ID: m.ID, Token: m.Token, Payload: fmt.Append(nil, "bare ", host)}
			if out, err := r.MarshalBinary(); err == nil {
				if first != nil {
					first(out, from)
				}
				_, _ = conn.WriteToUDPAddrPort(out, from)
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
	return b
}

// ask sends a request and waits for its response.
func (b *bare) ask(to, path string) *coap.Message {
	b.t.Helper()
	b.mid++
	m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, ID: b.mid, Token: []byte{byte(b.mid)}}
	m.Options.SetPath(coap.PathOf(path)...)
	out, err := m.MarshalBinary()
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.conn.WriteToUDPAddrPort(out, netip.MustParseAddrPort(to)); err != nil {
		b.t.Fatal(err)
	}
	late := time.After(patience)
	for {
		select {
		case r := <-b.got:
			if r.Code != coap.Empty && string(r.Token) == string(m.Token) {
				return r
			}
		case <-late:
			b.t.Fatalf("no answer to GET %s", path)
		}
	}
}

// again sends a message once more, as another one, and waits for the answer.
func (b *bare) again(m *coap.Message, to string) *coap.Message {
	b.t.Helper()
	b.mid++
	out := *m
	out.ID, out.Type, out.Token = b.mid, coap.Confirmable, []byte{0xaa, byte(b.mid >> 8), byte(b.mid)}
	raw, err := out.MarshalBinary()
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.conn.WriteToUDPAddrPort(raw, netip.MustParseAddrPort(to)); err != nil {
		b.t.Fatal(err)
	}
	select {
	case r := <-b.got:
		return r
	case <-time.After(patience):
		b.t.Fatal("no answer to a message that was sent again")
	}
	return nil
}

// TestDelegateKinds: a node that sleeps is asked in its awake time, and 5.03 says when
// it is not in time; a node without security is known by its address on one interface,
// another address gets nothing, and neither does a flood; a sensor that speaks MQTT only
// is read.
func TestDelegateKinds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	at, _ := overhear(t)
	sleeper := s.legacyNode("sleeper")
	s.legacyNode("dozer") // it never wakes
	// Two without security on one port of two addresses, and somebody on a third.
	port := ports.Free(t)
	naked, bald, spoof := newBare(t, 7, port), newBare(t, 8, port), newBare(t, 9, port)
	door, other := ports.Addr(t), ports.Addr(t)
	password := make([]byte, 16)
	rand.Read(password)
	s.write("sensor.password", hex.EncodeToString(password)+"\n")
	s.group += fmt.Sprintf("    network: {multicast: %q, leisure: 50ms, collect: 2s}\n", at)
	groups := `    groups: [{name: sensors, roles: [requester, responder], send_path: /g, resources: [{path: /t, methods: [GET]}]}]` + "\n"
	s.more = fmt.Sprintf(`delegates:
  - {name: sleeper, auth: {psk_identity: sleeper, psk_file: %[1]s}, sleepy: true, awake: 1s, hold: 90s, rps: 1000,
%[6]s    }
  - {name: dozer, auth: {psk_identity: dozer, psk_file: %[2]s}, sleepy: true, awake: 1s, hold: 100ms, rps: 1000,
%[6]s    }
  - {name: naked, auth: {insecure_address: %[3]q, interface: lo, listen: %[4]q}, rps: 1,
%[6]s    }
  - {name: bald, auth: {insecure_address: %[8]q, interface: lo, listen: %[9]q}, rps: 1000,
%[6]s    }
  - {name: mqtt, mqtt_topic: plant/t7, mqtt_password_file: %[5]s, rps: 1000,
%[7]s    }
`, filepath.Join(s.dir, "sleeper.key"), filepath.Join(s.dir, "dozer.key"), naked.conn.LocalAddr(), door, filepath.Join(s.dir, "sensor.password"),
		groups, strings.Replace(groups, "send_path: /g, ", "", 1), bald.conn.LocalAddr(), other)
	s.configure()
	s.run()
	list := map[string]string{} // name → Sender ID
	where := map[string]string{}
	for _, d := range s.delegated(5) {
		list[d.Delegate], where[d.Delegate] = *d.SenderID, d.Listen
	}
	sp := s.speaker()
	ask := func(name, path string, code coap.Code) string {
		t.Helper()
		return sp.ask(where[name], nil, code, path, patience)[list[name]]
	}

	if got := ask("dozer", "/t", coap.GET); !strings.HasPrefix(got, "5.03") {
		t.Errorf("a node that sleeps: %q", got)
	}
	if got := sp.ask(at, nil, coap.GET, "/t", 500*time.Millisecond); got[list["dozer"]] != "" || got[list["sleeper"]] != "" {
		t.Errorf("sleeping nodes answer multicast: %v", got)
	}
	answer := make(chan string, 1)
	go func() { answer <- ask("sleeper", "/t", coap.GET) }()
	eventually(t, "the request is held", func() bool {
		return metric(t, s, `groupgate_delegate_messages_total{direction="in",group="sensors",kind="request",mode="group"}`) >= 2
	})
	sleeper.connect(s.at["coaps"])
	if got := <-answer; got != "2.05 sleeper/t" {
		t.Errorf("in its awake time: %q", got)
	}
	if got := sleeper.wasAsked(); !slices.Equal(got, []string{"GET /t"}) {
		t.Errorf("asked %v", got)
	}

	if r := naked.ask(door, "/gw/groups"); r.Code != coap.Content || string(r.Payload) != "sensors joined 0\n" {
		t.Errorf("/gw/groups of an insecure node: %v %q", r.Code, r.Payload)
	}
	if r := bald.ask(other, "/gw/groups"); r.Code != coap.Content {
		t.Errorf("/gw/groups of another insecure node: %v %q", r.Code, r.Payload)
	}
	// The port of a node is not enough: another address reaches nothing, is not asked
	// for a node, and what it answers in a node's place, by chance with the right
	// message identifier and token, is nothing.
	for _, path := range []string{"/gw/groups", "/g/t", "/ace-group/sensors", "/.well-known/core"} {
		if r := spoof.ask(door, path); r.Code != coap.Unauthorized || len(r.Payload) > 0 && !strings.HasPrefix(string(r.Payload), "not a legacy node") {
			t.Errorf("another address, %s: %v %q", path, r.Code, r.Payload)
		}
	}
	naked.mu.Lock()
	naked.first = func(answer []byte, to netip.AddrPort) {
		forged := append(slices.Clone(answer[:len(answer)-6]), "forged"...)
		_, _ = spoof.conn.WriteToUDPAddrPort(forged, to)
	}
	naked.mu.Unlock()
	for name, want := range map[string]string{"naked": "2.05 bare 7", "bald": "2.05 bare 8"} {
		if got := ask(name, "/t", coap.GET); got != want {
			t.Errorf("an insecure node: %q, want %q", got, want)
		}
	}
	if spoof.asked != 0 {
		t.Error("another address was asked in the place of a node")
	}
	refused := 0
	for range 50 { // at a rate of one per second
		if r := naked.ask(door, "/ace-group/sensors"); r.Code == coap.TooManyRequests {
			refused++
		} else if r.Code != coap.NotFound {
			t.Fatalf("beyond its groups: %v", r.Code)
		}
	}
	if refused == 0 {
		t.Error("a flood of a legacy node is served")
	}

	connect := func(user, password string) paho.Client {
		c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + s.at["mqtt"]).SetClientID("x").SetUsername(user).SetPassword(password).SetProtocolVersion(4).SetConnectRetry(false).SetAutoReconnect(false))
		if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
			return nil
		}
		t.Cleanup(func() { c.Disconnect(0) })
		return c
	}
	if connect("mqtt", "wrong") != nil {
		t.Error("a sensor with a wrong password is let in")
	}
	if got := ask("mqtt", "/t", coap.GET); !strings.HasPrefix(got, "5.03") {
		t.Errorf("before the first message: %q", got)
	}
	c := connect("mqtt", hex.EncodeToString(password))
	if c == nil {
		t.Fatal("the sensor is not let in")
	}
	if tok := c.Publish("plant/t7", 1, true, "21.5"); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	if got := ask("mqtt", "/t", coap.GET); got != "2.05 21.5" {
		t.Errorf("a sensor that speaks MQTT: %q", got)
	}
	c.Publish("plant/t8", 1, true, "bad").WaitTimeout(patience) // refused, or the end of the connection
	if got := ask("mqtt", "/t", coap.GET); got != "2.05 21.5" {
		t.Errorf("after a message to another topic: %q", got)
	}
	if got := ask("mqtt", "/t", coap.PUT); got != "4.05 " {
		t.Errorf("PUT to a sensor: %q", got)
	}
}

// metrics are those of the gateway, as text.
func (s *site) metrics() string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.at["http"] + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// metric reads a value of the gateway; 0: it has none.
func metric(t *testing.T, s *site, name string) (v float64) {
	t.Helper()
	for line := range strings.Lines(s.metrics()) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			_, _ = fmt.Sscan(rest, &v)
		}
	}
	return v
}

// TestDelegateNonces kills the gateway with SIGKILL while a delegate sends and answers,
// again and again, and listens on the wire: no two messages of it that differ have the
// same nonce, what was asked before a crash is refused when it comes again, and what is
// asked after it is answered at once.
func TestDelegateNonces(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	at, heard := overhear(t)
	meter := s.legacyNode("meter")
	s.delegates(at, "", meter)
	s.group = strings.Replace(s.group, "collect: 2s", "collect: 200ms", 1)
	s.configure()
	gw := s.run()
	id := *s.delegated(1)[0].SenderID
	sp := s.speaker()
	replayer := newBare(t, 1, 0)
	served := map[string]int{}    // by Partial IV: how often a request was that was sent again
	nonces := map[string]string{} // Gid, kid, Partial IV → ciphertext
	note := func(m *coap.Message, gid string, o oscore.Option) {
		key := fmt.Sprintf("%s %x %x", gid, o.KID, o.PIV)
		if was, ok := nonces[key]; ok && was != string(m.Payload) {
			t.Errorf("two messages under the nonce %s", key)
		}
		nonces[key] = string(m.Payload)
	}
	answered := 0
	for round := range 4 {
		meter.connect(s.at["coaps"])
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20 {
				req := &coap.Request{Code: coap.GET}
				req.Options.SetPath("g", "not a legacy node")
				_, _ = meter.tr.Do(soon(t), req) // the gateway may be gone
			}
		}()
		eventually(t, "the delegate sends", func() bool {
			heard.mu.Lock()
			defer heard.mu.Unlock()
			n := 0
			for _, m := range heard.all {
				if o, ok := groupOption(m); ok && hex.EncodeToString(o.KID) == id {
					n++
				}
			}
			return n >= 1+2*round
		})
		answered += len(sp.ask(at, nil, coap.GET, "/t", 300*time.Millisecond)) // overheard as well
		gw.signal(syscall.SIGKILL)
		_ = meter.tr.Close()
		<-done
		gw = s.run()
		s.delegated(1)
		meter.connect(s.at["coaps"])
		answered += len(sp.ask(at, nil, coap.GET, "/t", 300*time.Millisecond))
		if n := metric(t, s, "groupgate_delegate_challenged_total"); n != 0 {
			t.Errorf("%v requests were challenged after a crash", n)
		}
		_ = meter.tr.Close()
		// All requests of the other member once more.
		heard.mu.Lock()
		old := slices.Clone(heard.all)
		heard.mu.Unlock()
		for _, m := range old {
			o, ok := groupOption(m)
			if !ok || hex.EncodeToString(o.KID) == id {
				continue
			}
			eventually(t, "a request of before the crash is refused", func() bool {
				r := replayer.again(m, s.delegated(1)[0].Listen)
				if value, ok := r.Options.Get(coap.OSCOREOption); ok { // it had never come
					got, err := oscore.DecodeOption(value)
					if err != nil {
						t.Fatal(err)
					}
					if got.KID, _ = hex.DecodeString(id); got.PIV == nil {
						got.KID, got.PIV = o.KID, o.PIV
					}
					note(r, fmt.Sprintf("%x", o.KIDContext), got)
					served[string(o.PIV)]++
				}
				// It may ask first who that is, or not be there yet.
				return r.Code == coap.Unauthorized && string(r.Payload) == "Replay detected"
			})
			if n := served[string(o.PIV)]; n > 1 {
				t.Errorf("a request was served %d times", n)
			}
		}
	}
	heard.mu.Lock()
	defer heard.mu.Unlock()
	sent, asked := 0, map[string]bool{}
	for _, m := range heard.all {
		o, ok := groupOption(m)
		switch {
		case !ok:
		case hex.EncodeToString(o.KID) == id:
			note(m, fmt.Sprintf("%x", o.KIDContext), o)
			sent++
		default:
			asked[string(o.PIV)] = true
		}
	}
	// Those that were answered are none of those that had never come.
	if answered < 4 || answered+len(served) > len(asked) {
		t.Errorf("of %d requests %d were answered, and %d when they came again", len(asked), answered, len(served))
	}
	if sent < 7 || len(nonces) < sent { // the last round waited for seven
		t.Errorf("%d requests of the delegate were heard, %d nonces", sent, len(nonces))
	}
}

// groupOption reads the OSCORE option of a group request.
func groupOption(m *coap.Message) (oscore.Option, bool) {
	value, ok := m.Options.Get(coap.OSCOREOption)
	if !ok {
		return oscore.Option{}, false
	}
	o, err := oscore.DecodeOption(value)
	return o, err == nil && o.KIDContext != nil
}
