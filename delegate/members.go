package delegate

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// maxMembers bounds the addresses that are remembered for one membership.
const maxMembers = 1024

// members are the addresses from which messages came that verified, with the Sender
// ID that sent them: the only unicast addresses that a legacy node may send to.
type members struct {
	mu    sync.Mutex
	byAt  map[netip.AddrPort]groupcomm.SenderID
	order []netip.AddrPort // the oldest first
}

// note remembers who is at an address.
func (m *members) note(at netip.AddrPort, kid []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byAt == nil {
		m.byAt = map[netip.AddrPort]groupcomm.SenderID{}
	}
	if _, known := m.byAt[at]; !known {
		if len(m.order) >= maxMembers {
			delete(m.byAt, m.order[0])
			m.order = m.order[1:]
		}
		m.order = append(m.order, at)
	}
	m.byAt[at] = slices.Clone(kid)
}

// of says who is at an address.
func (m *members) of(at netip.AddrPort) (groupcomm.SenderID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kid, ok := m.byAt[at]
	return kid, ok
}
