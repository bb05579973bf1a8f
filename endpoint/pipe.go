package endpoint

import (
	"github.com/seed4911071e/groupgate/record"
)

// reply sends what pion wrote. After an unknown identity its alert says so.
func (h *handshake) reply(b []byte) {
	out := append(h.e.out.buffer(), b...)
	if h.stranger.Load() {
		illegalParameter(out)
	}
	h.e.out.push(h.addr, h.local, out)
	h.e.out.kick()
}

// illegalParameter makes a clear internal_error, which is what pion says when
// it gets no key, what RFC 9202, Section 3.3.2, has for an unknown psk_identity.
func illegalParameter(b []byte) {
	r, rest, err := record.Next(b, 0)
	if err == nil && len(rest) == 0 && r.Type == record.Alert && r.Epoch == 0 && len(r.Fragment) == 2 && r.Fragment[1] == alertInternalError {
		r.Fragment[0], r.Fragment[1] = alertFatal, alertIllegalParameter
	}
}
