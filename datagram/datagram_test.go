package datagram

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

func loopback(t *testing.T, network string, ip string) *Conn {
	t.Helper()
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		t.Skipf("%s on this machine: %v", ip, err)
	}
	conn := New(c)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func at(t *testing.T, c *Conn, ip string) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.MustParseAddr(ip), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

// writeAll sends all of ds.
func writeAll(t testing.TB, c *Conn, ds []Datagram) {
	t.Helper()
	for len(ds) > 0 {
		n, err := c.Write(ds)
		if err != nil || n == 0 {
			t.Fatalf("%d written: %v", n, err)
		}
		ds = ds[n:]
	}
}

func room(n int) []Datagram {
	ds := make([]Datagram, n)
	for i := range ds {
		ds[i].B = make([]byte, 2048)
	}
	return ds
}

// TestBothWays: what is written comes, whole, in order, with the address of the
// sender, whatever the family of the sockets.
func TestBothWays(t *testing.T) {
	for _, c := range []struct{ network, listen, ip string }{
		{"udp4", "127.0.0.1", "127.0.0.1"}, {"udp6", "::1", "::1"}, {"udp", "::", "127.0.0.1"},
	} {
		t.Run(c.network+" "+c.ip, func(t *testing.T) {
			server := loopback(t, c.network, c.listen)
			client := loopback(t, "udp", c.ip)
			to := at(t, server, c.ip)
			const n = 150
			var ds []Datagram
			for i := range n {
				ds = append(ds, Datagram{Addr: to, B: bytes.Repeat([]byte{byte(i)}, i+1)})
			}
			writeAll(t, client, ds)
			for got := 0; got < n; {
				in := room(Batch)
				k, err := server.Read(in)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range in[:k] {
					if !bytes.Equal(d.B, ds[got].B) || d.Addr != at(t, client, c.ip) {
						t.Fatalf("datagram %d: %d bytes from %v", got, len(d.B), d.Addr)
					}
					got++
				}
				writeAll(t, server, in[:k]) // back to where they came from
			}
			for got := 0; got < n; {
				in := room(3)
				k, err := client.Read(in)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range in[:k] {
					if !bytes.Equal(d.B, ds[got].B) || d.Addr != to {
						t.Fatalf("answer %d: %d bytes from %v", got, len(d.B), d.Addr)
					}
					got++
				}
			}
		})
	}
}

// TestFailedWrite: a datagram that cannot be sent does not take those before it
// along.
func TestFailedWrite(t *testing.T) {
	server, client := loopback(t, "udp4", "127.0.0.1"), loopback(t, "udp4", "127.0.0.1")
	to := at(t, server, "127.0.0.1")
	big := make([]byte, 70000)
	ds := []Datagram{{Addr: to, B: []byte{1}}, {Addr: to, B: big}, {Addr: netip.AddrPortFrom(netip.IPv6Loopback(), 1), B: []byte{2}}}
	if runtime.GOOS == "linux" {
		if n, err := client.Write(ds); n != 1 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	for _, d := range ds[1:] {
		if n, err := client.Write([]Datagram{d}); n != 0 || err == nil {
			t.Errorf("%d bytes to %v: %d, %v", len(d.B), d.Addr, n, err)
		}
	}
}

// TestLocal: one socket speaks for many addresses of the machine.
func TestLocal(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, err := ListenLocal(0); err == nil {
			t.Error("no error although the system cannot")
		}
		return
	}
	server := loopback(t, "udp4", "127.0.0.1")
	many, err := ListenLocal(0)
	if err != nil {
		t.Fatal(err)
	}
	defer many.Close()
	var ds []Datagram
	for i := range 100 {
		ds = append(ds, Datagram{Addr: at(t, server, "127.0.0.1"), Local: netip.AddrFrom4([4]byte{127, 1, 2, byte(i)}), B: []byte{byte(i)}})
	}
	writeAll(t, many, ds)
	for got := 0; got < len(ds); {
		in := room(Batch)
		k, err := server.Read(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range in[:k] {
			if want := netip.AddrPortFrom(ds[got].Local, at(t, many, "0.0.0.0").Port()); d.Addr != want || d.Local.IsValid() {
				t.Fatalf("from %v, not %v", d.Addr, want)
			}
			got++
		}
		writeAll(t, server, in[:k])
	}
	for got := 0; got < len(ds); {
		in := room(Batch)
		k, err := many.Read(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range in[:k] {
			if d.Local != ds[got].Local || d.B[0] != byte(got) {
				t.Fatalf("%v for %v", d.Local, ds[got].Local)
			}
			got++
		}
	}
}

// TestAnswersFrom: what comes to one of several addresses of the machine is answered
// from there, on a socket for one family and on one for both.
func TestAnswersFrom(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells the local address")
	}
	for _, c := range []struct{ network, listen, ip string }{
		{"udp4", "0.0.0.0", "127.0.0.2"}, {"udp4", "0.0.0.0", "127.0.0.3"},
		{"udp", "::", "127.0.0.2"}, {"udp", "::", "127.0.0.3"}, {"udp", "::", "::1"}, {"udp6", "::", "::1"},
	} {
		t.Run(c.network+" "+c.ip, func(t *testing.T) {
			server := loopback(t, c.network, c.listen)
			to := at(t, server, c.ip)
			client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // hears only who it spoke to
			if err != nil {
				t.Skipf("%s on this machine: %v", c.ip, err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			in := room(1)
			if _, err := server.Read(in); err != nil {
				t.Fatal(err)
			}
			if in[0].Local != to.Addr() {
				t.Fatalf("it came to %v, not %v", in[0].Local, to.Addr())
			}
			writeAll(t, server, in)
			_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
			b := make([]byte, 64)
			if n, err := client.Read(b); err != nil || string(b[:n]) != "question" {
				t.Errorf("%q, %v", b[:n], err)
			}
			// An address that is none of ours is refused, and that alone.
			in[0].Local = netip.MustParseAddr("192.0.2.9")
			if to.Addr().Is6() {
				in[0].Local = netip.MustParseAddr("2001:db8::9")
			}
			if n, err := server.Write(in); n != 0 || err == nil {
				t.Errorf("sent from %v: %d, %v", in[0].Local, n, err)
			}
		})
	}
}

// TestShards: sockets on one address share it among themselves only, and what names
// one of them comes to that one, from wherever.
func TestShards(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, err := ListenShards(t.Context(), "127.0.0.1:0", 2); err == nil {
			t.Error("no error although the system cannot")
		}
		return
	}
	for _, listen := range []string{"127.0.0.1:0", ":0"} {
		const n = 4
		conns, err := ListenShards(t.Context(), listen, n)
		if err != nil {
			t.Fatal(err)
		}
		var all []*Conn
		for _, c := range conns {
			all = append(all, New(c))
			defer c.Close()
		}
		if err := Steer(conns, 25, 11); err != nil {
			t.Fatal(err)
		}
		to := at(t, all[0], "127.0.0.1")
		if more, err := ListenShards(t.Context(), to.String(), 1); err == nil {
			t.Error("the port was taken")
			_ = more[0].Close()
		}
		for i := range byte(40) {
			b := make([]byte, 20)
			b[0], b[11] = 25, i
			writeAll(t, loopback(t, "udp4", "127.0.0.1"), []Datagram{{Addr: to, B: b}})
			_ = conns[i%n].SetReadDeadline(time.Now().Add(20 * time.Second))
			in := room(1)
			if _, err := all[i%n].Read(in); err != nil || in[0].B[11] != i {
				t.Fatalf("%d does not come to socket %d: %v", i, i%n, err)
			}
		}
		// What names none, and what is too short to, comes to some.
		for i := range byte(20) {
			b := []byte{25}
			if i%2 == 0 {
				b = []byte{64, i}
			}
			writeAll(t, loopback(t, "udp4", "127.0.0.1"), []Datagram{{Addr: to, B: b}})
		}
		got := make(chan struct{}, 20)
		for _, c := range all {
			go func() {
				for {
					k, err := c.Read(room(Batch))
					if err != nil {
						return
					}
					for range k {
						got <- struct{}{}
					}
				}
			}()
		}
		for range 20 {
			select {
			case <-got:
			case <-time.After(20 * time.Second):
				t.Fatal("something is lost")
			}
		}
	}
}

// TestClosed: a read that waits ends.
func TestClosed(t *testing.T) {
	c := loopback(t, "udp", "127.0.0.1")
	over := make(chan error, 1)
	go func() {
		_, err := c.Read(room(1))
		over <- err
	}()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err == nil {
		t.Error("no error")
	}
}

// TestNoAllocation: neither direction allocates.
func TestNoAllocation(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("one by one the net package reads and writes")
	}
	server, client := loopback(t, "udp", "::"), loopback(t, "udp4", "127.0.0.1")
	out := []Datagram{{Addr: at(t, server, "127.0.0.1"), B: []byte("hello")}}
	in := room(4)
	full := in[0].B
	if n := testing.AllocsPerRun(200, func() {
		writeAll(t, client, out)
		in[0].B = full
		if _, err := server.Read(in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				b.Fatal(err)
			}
			conn := New(c)
			defer conn.Close()
			ds := make([]Datagram, n)
			for i := range ds {
				ds[i] = Datagram{Addr: netip.MustParseAddrPort("127.0.0.1:9"), B: make([]byte, 160)}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%n == 0 {
					_, _ = conn.Write(ds) // nobody listens there
				}
			}
		})
	}
}
