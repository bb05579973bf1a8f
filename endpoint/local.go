package endpoint

import "net/netip"

// On a machine with several addresses an answer has to come from the one that the
// peer asked, and a notification from the one that it last used: a NAT or a firewall
// on the way lets nothing else through, and a peer with a connected socket hears
// nothing else. The system would choose by its routes. Only a socket on every
// address of the machine tells which it was (package datagram); with another there
// is one only.

// maxLocals bounds the addresses that are told apart: an index has one byte.
const maxLocals = 255

// locals are the addresses of this machine that peers use: few, and each session has
// the index of its own. 0 is the system's choice. Guarded by Endpoint.mu.
type locals []netip.Addr

// index finds an address, or adds it.
func (l *locals) index(a netip.Addr) uint8 {
	if !a.IsValid() {
		return 0
	}
	for i, have := range *l {
		if have == a {
			return uint8(i + 1)
		}
	}
	if len(*l) == maxLocals {
		return 0
	}
	*l = append(*l, a)
	return uint8(len(*l))
}

// at is the inverse.
func (l locals) at(i uint8) netip.Addr {
	if i == 0 {
		return netip.Addr{}
	}
	return l[i-1]
}

// cameTo notes at which address of this machine the peer was heard last.
func (s *session) cameTo(a netip.Addr) {
	if l := &s.e.locals; l.at(s.local) != a {
		s.local = l.index(a)
	}
}

// Home is the address of this machine that the peer uses, where the socket tells.
func (s *session) Home() netip.Addr {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	return s.e.locals.at(s.local)
}

// push sends a datagram to the peer.
func (s *session) push(b []byte) {
	s.e.out.push(s.addr(), s.e.locals.at(s.local), b)
}
