package datagram

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control is room for one IP_PKTINFO or IPV6_PKTINFO, aligned as a cmsghdr is.
type control struct {
	hdr  unix.Cmsghdr
	info unix.Inet6Pktinfo // the larger of the two
	_    [4]byte
}

func (x *control) v4() *unix.Inet4Pktinfo { return (*unix.Inet4Pktinfo)(unsafe.Pointer(&x.info)) }

// direction is the working memory of one direction; the closure is made once.
type direction struct {
	hdrs  [Batch]mmsghdr
	iov   [Batch]unix.Iovec
	names [Batch]unix.RawSockaddrInet6 // holds an IPv4 one too
	ctl   []control                    // nil: no local addresses
	want  int
	n     int
	errno syscall.Errno
	call  func(fd uintptr) bool
}

type system struct {
	raw     syscall.RawConn
	v6      bool
	in, out *direction
}

func (s *system) init(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // one by one, then
	}
	domain := unix.AF_INET6
	if raw.Control(func(fd uintptr) { domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN) }) != nil || err != nil {
		return
	}
	s.raw, s.v6 = raw, domain == unix.AF_INET6
	s.in, s.out = newDirection(unix.SYS_RECVMMSG), newDirection(unix.SYS_SENDMMSG)
}

// local makes room for local addresses.
func (d *direction) local() {
	d.ctl = make([]control, Batch)
	for i := range d.hdrs {
		d.hdrs[i].hdr.Control = (*byte)(unsafe.Pointer(&d.ctl[i]))
	}
}

func newDirection(trap uintptr) *direction {
	d := &direction{}
	for i := range d.hdrs {
		h := &d.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&d.names[i]))
		h.Iov = &d.iov[i]
		h.SetIovlen(1)
	}
	d.call = func(fd uintptr) bool {
		for {
			n, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(&d.hdrs[0])), uintptr(d.want), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			}
			d.n, d.errno = int(n), errno
			return true
		}
	}
	return d
}

// force sets the buffers beyond net.core.rmem_max, where the process may.
func (s *system) force(size int) bool {
	if s.raw == nil {
		return false
	}
	var err error
	e := s.raw.Control(func(fd uintptr) {
		for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, size)
			}
		}
	})
	return e == nil && err == nil
}

func (s *system) askLocal() error {
	if s.raw == nil {
		return os.NewSyscallError("getsockopt", unix.ENOTSUP)
	}
	var err error
	// A socket for both families tells of IPv4 in the form of IPv6.
	level, opt := unix.IPPROTO_IP, unix.IP_PKTINFO
	if s.v6 {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	if e := s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, 1) }); e != nil {
		return e
	}
	if err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	s.in.local()
	s.out.local()
	return nil
}

// Read fills some of ds and says how many: each B has room when it is called,
// and is cut to what came. A datagram that does not fit comes cut off.
func (c *Conn) Read(ds []Datagram) (int, error) {
	if c.raw == nil {
		return c.readOne(ds)
	}
	d := c.in
	d.want = min(len(ds), Batch)
	for i := range d.want {
		h := &d.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		d.iov[i].Base = unsafe.SliceData(ds[i].B)
		d.iov[i].SetLen(len(ds[i].B))
		if d.ctl != nil {
			h.SetControllen(int(unsafe.Sizeof(control{})))
		}
	}
	if err := c.raw.Read(d.call); err != nil {
		return 0, err
	}
	if d.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", d.errno)
	}
	for i := range d.n {
		ds[i].B = ds[i].B[:d.hdrs[i].n]
		ds[i].Addr = addrOf(&d.names[i])
		if d.ctl != nil {
			ds[i].Local = d.ctl[i].get(int(d.hdrs[i].hdr.Controllen))
		}
	}
	return d.n, nil
}

// Write sends the first datagrams of ds and says how many; an error is that of
// the next one.
func (c *Conn) Write(ds []Datagram) (int, error) {
	if c.raw == nil {
		return c.writeOne(ds)
	}
	d := c.out
	d.want = min(len(ds), Batch)
	for i := range d.want {
		h := &d.hdrs[i].hdr
		d.iov[i].Base = unsafe.SliceData(ds[i].B)
		d.iov[i].SetLen(len(ds[i].B))
		h.Namelen = c.setAddr(&d.names[i], ds[i].Addr)
		if d.ctl != nil {
			h.SetControllen(d.ctl[i].set(ds[i].Local, c.v6))
		}
	}
	if err := c.raw.Write(d.call); err != nil {
		return 0, err
	}
	if d.errno != 0 {
		return 0, os.NewSyscallError("sendmmsg", d.errno)
	}
	return d.n, nil
}

// get is the local address that a datagram came to; invalid where nothing can come
// from there, as from a multicast group.
func (x *control) get(n int) (a netip.Addr) {
	switch {
	case n == 0:
	case x.hdr.Level == unix.IPPROTO_IP && x.hdr.Type == unix.IP_PKTINFO:
		a = netip.AddrFrom4(x.v4().Spec_dst) // of the machine, also where the destination was a group
	case x.hdr.Level == unix.IPPROTO_IPV6 && x.hdr.Type == unix.IPV6_PKTINFO:
		a = netip.AddrFrom16(x.info.Addr).Unmap()
	}
	if a.IsMulticast() || a.IsUnspecified() || a == broadcast {
		return netip.Addr{}
	}
	return a
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// set asks for a source address and returns the length of the request. On a socket
// for both families an IPv4 address is asked for in the form of IPv6.
func (x *control) set(a netip.Addr, v6 bool) int {
	switch {
	case !a.IsValid():
		return 0
	case v6:
		x.hdr.Level, x.hdr.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
		x.hdr.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		x.info = unix.Inet6Pktinfo{Addr: a.As16()}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	case !a.Is4():
		return 0
	}
	x.hdr.Level, x.hdr.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	x.hdr.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	*x.v4() = unix.Inet4Pktinfo{Spec_dst: a.As4()}
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}

// addrOf reads a socket address.
func addrOf(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	a := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && a.Is6() {
		a = a.WithZone(strconv.Itoa(int(sa.Scope_id)))
	}
	return netip.AddrPortFrom(a, port)
}

// setAddr writes a socket address of the socket's family and returns its length.
func (s *system) setAddr(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], a.Port())
	ip := a.Addr()
	if !s.v6 {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		if ip = ip.Unmap(); ip.Is4() {
			v4.Family, v4.Addr = unix.AF_INET, ip.As4()
		} else {
			v4.Family = unix.AF_INET6 // the system refuses it
		}
		return unix.SizeofSockaddrInet4
	}
	sa.Family, sa.Addr, sa.Scope_id = unix.AF_INET6, ip.As16(), zoneOf(ip)
	return unix.SizeofSockaddrInet6
}

func zoneOf(a netip.Addr) uint32 {
	z := a.Zone()
	if z == "" {
		return 0
	}
	if n, err := strconv.ParseUint(z, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(z); err == nil {
		return uint32(i.Index)
	}
	return 0
}
