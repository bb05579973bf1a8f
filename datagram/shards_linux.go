package datagram

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenShards opens n UDP sockets on one address, among which the system spreads
// peers. The first is bound alone, so that a port that is taken is an error, also
// when another process would share it.
func ListenShards(ctx context.Context, addr string, n int) (conns []*net.UDPConn, err error) {
	defer func() {
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			conns = nil
		}
	}()
	var lc net.ListenConfig
	for range n {
		c, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return conns, err
		}
		conn := c.(*net.UDPConn)
		conns = append(conns, conn)
		if len(conns) > 1 || n == 1 {
			continue
		}
		addr = conn.LocalAddr().String() // with the port that the system chose
		if err := share(conn); err != nil {
			return conns, err
		}
		lc.Control = reusePort
	}
	return conns, nil
}

// share lets others be bound where a socket is.
func share(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return reusePort("", "", raw)
}

func reusePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// Steer has the system give a datagram to the socket that a byte of it names, by the
// remainder of that byte by their number, in the order of conns, when its first byte
// is first; all others it spreads as before. It is an optimisation: a system may not
// have it.
func Steer(conns []*net.UDPConn, first byte, at int) error {
	if len(conns) < 2 {
		return nil
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(first)},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}, // no socket has that number
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: uint32(at)},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(len(conns))},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog)
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("datagram: steering: %w", os.NewSyscallError("setsockopt", err))
	}
	return nil
}
