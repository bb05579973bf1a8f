package endpoint

import (
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/net/ipv4"
)

// Datagram is one datagram and who sent it or is to get it.
type Datagram struct {
	Addr netip.AddrPort
	B    []byte
}

// Socket carries datagrams. One goroutine reads and one writes.
type Socket interface {
	// Read fills some of ds and says how many: each B has room when it is
	// called, and is cut to what came. A datagram that does not fit may come
	// cut off.
	Read(ds []Datagram) (int, error)
	// Write sends the first datagrams of ds and says how many; an error is that
	// of the next one.
	Write(ds []Datagram) (int, error)
	LocalAddr() net.Addr
	// Close ends a Read that waits.
	Close() error
}

// batch is how many datagrams one system call carries: beyond 64 nothing is
// gained.
const batch = 64

// udpSocket is a Socket of the system. Several datagrams go with one system
// call where the system can.
type udpSocket struct {
	conn     *net.UDPConn
	packets  *ipv4.PacketConn // IPv6 too: nothing here is about the header
	in, out  []ipv4.Message
	outAddrs []net.UDPAddr
}

// UDP makes a Socket of a UDP socket and takes it over.
func UDP(conn *net.UDPConn) Socket {
	// Best effort: a burst of answers should not be lost for want of room.
	_ = conn.SetReadBuffer(socketBuffer)
	_ = conn.SetWriteBuffer(socketBuffer)
	s := &udpSocket{conn: conn}
	if runtime.GOOS == "linux" {
		s.packets = ipv4.NewPacketConn(conn)
		s.in, s.out = make([]ipv4.Message, batch), make([]ipv4.Message, batch)
		s.outAddrs = make([]net.UDPAddr, batch)
		for i := range batch {
			s.in[i].Buffers = make([][]byte, 1)
			s.out[i].Buffers = make([][]byte, 1)
			s.out[i].Addr = &s.outAddrs[i]
		}
	}
	return s
}

// socketBuffer is what we ask the system to keep for us in either direction.
const socketBuffer = 4 << 20

func (s *udpSocket) Read(ds []Datagram) (int, error) {
	if s.packets == nil {
		n, addr, err := s.conn.ReadFromUDPAddrPort(ds[0].B)
		if err != nil {
			return 0, err
		}
		ds[0].B, ds[0].Addr = ds[0].B[:n], netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		return 1, nil
	}
	ms := s.in[:min(len(ds), batch)]
	for i := range ms {
		ms[i].Buffers[0] = ds[i].B
	}
	n, err := s.packets.ReadBatch(ms, 0)
	if err != nil {
		return 0, err
	}
	for i := range n {
		a := ms[i].Addr.(*net.UDPAddr).AddrPort()
		ds[i].B, ds[i].Addr = ds[i].B[:ms[i].N], netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return n, nil
}

func (s *udpSocket) Write(ds []Datagram) (int, error) {
	if s.packets == nil {
		_, err := s.conn.WriteToUDPAddrPort(ds[0].B, ds[0].Addr)
		if err != nil {
			return 0, err
		}
		return 1, nil
	}
	ds = ds[:min(len(ds), batch)]
	for i, d := range ds {
		s.out[i].Buffers[0] = d.B
		a := &s.outAddrs[i]
		ip := d.Addr.Addr()
		a.IP, a.Port, a.Zone = append(a.IP[:0], ip.AsSlice()...), int(d.Addr.Port()), ip.Zone()
	}
	return s.packets.WriteBatch(s.out[:len(ds)], 0)
}

func (s *udpSocket) LocalAddr() net.Addr { return s.conn.LocalAddr() }
func (s *udpSocket) Close() error        { return s.conn.Close() }
