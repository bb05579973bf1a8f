package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/groupcomm"
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
