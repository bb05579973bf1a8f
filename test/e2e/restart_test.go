package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/test/peers"
)

// tapped stands between nodes and a gateway, and watches the records.
type tapped struct {
	t    *testing.T
	near *net.UDPConn
	to   *net.UDPAddr

	mu     sync.Mutex
	flows  map[netip.AddrPort]*net.UDPConn
	hellos int
	sent   map[string][]byte // what the gateway sent, by flow and number
	twice  []string
	wg     sync.WaitGroup
}

func (s *site) tapped() *tapped {
	s.t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		s.t.Fatal(err)
	}
	to, err := net.ResolveUDPAddr("udp", s.at["coaps"])
	if err != nil {
		s.t.Fatal(err)
	}
	r := &tapped{t: s.t, near: near, to: to, flows: map[netip.AddrPort]*net.UDPConn{}, sent: map[string][]byte{}}
	r.wg.Go(r.out)
	s.t.Cleanup(r.close)
	return r
}

func (r *tapped) close() {
	_ = r.near.Close()
	r.mu.Lock()
	for _, c := range r.flows {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// out carries what nodes send.
func (r *tapped) out() {
	b := make([]byte, 8192)
	for {
		n, from, err := r.near.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		c := r.flows[from]
		if c == nil {
			if c, err = net.DialUDP("udp", nil, r.to); err != nil {
				r.mu.Unlock()
				return
			}
			r.flows[from] = c
			r.wg.Go(func() { r.back(c, from) })
		}
		if n > 13 && b[0] == 22 && b[3] == 0 && b[4] == 0 && b[13] == 1 {
			r.hellos++
		}
		r.mu.Unlock()
		_, _ = c.Write(b[:n]) // refused while the gateway is down
	}
}

// back carries what the gateway sends to one node. A record number that comes
// twice in an epoch with other bytes is a nonce that was used twice.
func (r *tapped) back(c *net.UDPConn, to netip.AddrPort) {
	b := make([]byte, 8192)
	for {
		n, err := c.Read(b)
		if opErr, ok := err.(*net.OpError); ok && opErr.Err.Error() == "read: connection refused" {
			continue
		}
		if err != nil {
			return
		}
		r.mu.Lock()
		for rest := b[:n]; len(rest) >= 13; {
			size := 13 + int(binary.BigEndian.Uint16(rest[11:]))
			if size > len(rest) {
				break
			}
			if number := rest[3:11]; rest[4] > 0 {
				key := fmt.Sprintf("%v %x", to, number)
				if old, ok := r.sent[key]; ok && !bytes.Equal(old, rest[:size]) {
					r.twice = append(r.twice, key)
				}
				r.sent[key] = bytes.Clone(rest[:size])
			}
			rest = rest[size:]
		}
		r.mu.Unlock()
		_, _ = r.near.WriteToUDPAddrPort(b[:n], to)
	}
}

func (r *tapped) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hellos
}

// TestSessionsOutlive: associations and observations go on after a stop and after
// a kill -9 of the gateway: rekeys reach the members with no new handshake, what
// they ask is answered, and no nonce is used twice.
func TestSessionsOutlive(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	r := s.tapped()
	d := s.door()
	d.coaps = r.near.LocalAddr().String()
	watcher, asker := d.join(), d.join()
	watcher.follow()
	watcher.reaches(groupcomm.Version(s.rekey()))
	asks := func() {
		t.Helper()
		if err := asker.Poll(soon(t)); err != nil {
			t.Fatal(err)
		}
		if pending, err := asker.Sleep(soon(t), time.Minute, time.Minute, ""); err != nil || pending { // has side effects
			t.Fatal(pending, err)
		}
	}
	asks()
	handshakes := r.count()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGKILL} {
		gw.signal(sig)
		gw = s.run()
		watcher.reaches(groupcomm.Version(s.rekey()))
		asks()
	}
	c := run(t, 0, "group", "liveness", "sensors", "--json", "--config", s.config)
	live := decode[admin.LivenessInfo](t, c.out.String())
	for _, m := range live.Members {
		a := m.Associations
		if len(a) != 1 || !a[0].Restored || a[0].Stale || a[0].Since == nil || m.LastHeard == nil || m.Handshakes != 0 || m.Lost != 0 {
			t.Errorf("%+v", m)
		}
	}
	if len(live.Members) != 2 {
		t.Errorf("%d members", len(live.Members))
	}
	text := run(t, 0, "group", "liveness", "sensors", watcher.state().Node, "--config", s.config).out.String()
	if !strings.Contains(text, "outlived a restart") || !strings.Contains(text, "2 observations") {
		t.Error(text)
	}
	run(t, 1, "group", "liveness", "sensors", "nobody", "--config", s.config)
	if n := r.count(); n != handshakes {
		t.Errorf("%d more ClientHellos", n-handshakes)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sent) < 20 {
		t.Errorf("only %d records were seen", len(r.sent))
	}
	for _, key := range r.twice {
		t.Error("record number twice:", key)
	}
}

// TestReplacedKeys: the sessions of a pre-shared key end with it: when the configuration
// has another for the identity, or none, they do not outlive the restart, nor come back
// with the identity; those of other keys do, whatever crashes.
func TestReplacedKeys(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	keys := map[string][]byte{}
	names := []string{"stays", "changes", "goes", "legacy"}
	replace := func(name string) {
		keys[name] = make([]byte, 16)
		rand.Read(keys[name])
		s.write(name+".key", hex.EncodeToString(keys[name])+"\n")
	}
	for _, name := range names {
		replace(name)
	}
	file := func(name string) string { return filepath.Join(s.dir, name+".key") }
	configure := func(without string) {
		s.may = ""
		for _, name := range names[:3] {
			if name != without {
				s.may += fmt.Sprintf("]}\n  - {identity: %s, key_file: %s, may: [proxy", name, file(name))
			}
		}
		s.more = fmt.Sprintf("delegates:\n  - {name: legacy, auth: {psk_identity: legacy, psk_file: %s}, groups: [{name: sensors, roles: [requester]}]}\n", file("legacy"))
		s.configure()
	}
	configure("")
	gw := s.run()
	discover := func(p *peers.Peer) {
		t.Helper()
		m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte("x")}
		m.Options.SetPath(".well-known", "core")
		p.Send(m)
		for {
			r := p.Receive("an answer", func(r *coap.Message) bool { return string(r.Token) == "x" })
			echo, ok := r.Options.Get(coap.Echo)
			if !ok || r.Code != coap.Unauthorized {
				return
			}
			m.Options.Set(coap.Echo, echo)
			p.Send(m)
		}
	}
	all := map[string]*peers.Peer{}
	for _, name := range names {
		all[name] = peers.Dial(t, s.at["coaps"], name, keys[name])
		discover(all[name])
	}
	restored := func(what string, want float64) {
		t.Helper()
		if n := metric(t, s, `groupgate_endpoint_restored_total{listener="coaps"}`); n != want {
			t.Errorf("%s: %v sessions are restored, want %v", what, n, want)
		}
		discover(all["stays"])
	}
	again := func(sig syscall.Signal) {
		gw.signal(sig)
		gw = s.run()
	}
	again(syscall.SIGTERM)
	restored("nothing changed", 4)
	old := keys["changes"]
	replace("changes")
	replace("legacy")
	configure("goes")
	again(syscall.SIGTERM)
	restored("two keys replaced, one removed", 1)
	again(syscall.SIGKILL)
	restored("killed", 1)
	keys["changes"] = old
	s.write("changes.key", hex.EncodeToString(old)+"\n")
	configure("")
	again(syscall.SIGTERM)
	restored("put back", 1)
	discover(peers.Dial(t, s.at["coaps"], "changes", old))
}
