package ace

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

// What is certain about handshakes of one identity: k is asked for key k, e ends
// one that is taken for key e.
func TestHandshakes(t *testing.T) {
	id := []byte("node")
	key := func(b byte) []byte { return []byte{b, 1, 2, 3} }
	for _, c := range []struct {
		name string
		run  func(h *handshakes) bool
		want bool
	}{
		{"never asked, old key", func(h *handshakes) bool { return h.certain(id, key(1), time.Time{}) }, true},
		{"never asked, new key", func(h *handshakes) bool { return h.certain(id, key(1), time.Now()) }, false},
		{"asked, new key", func(h *handshakes) bool { h.hand(id, key(1)); return h.certain(id, key(1), time.Now()) }, true},
		{"another key", func(h *handshakes) bool { h.hand(id, key(1)); return h.certain(id, key(2), time.Time{}) }, false},
		{"another key, then this", func(h *handshakes) bool {
			h.hand(id, key(1))
			wrong := h.certain(id, key(2), time.Now())
			h.hand(id, key(2))
			return !wrong && h.certain(id, key(2), time.Now())
		}, true},
		{"both keys", func(h *handshakes) bool {
			h.hand(id, key(1))
			h.hand(id, key(2))
			return h.certain(id, key(2), time.Now())
		}, false},
		{"earlier one is over", func(h *handshakes) bool {
			h.hand(id, key(1))
			ok := h.certain(id, key(1), time.Time{})
			h.hand(id, key(2))
			return ok && h.certain(id, key(2), time.Now())
		}, true},
		{"one of two is over", func(h *handshakes) bool {
			h.hand(id, key(1))
			h.hand(id, key(1))
			ok := h.certain(id, key(1), time.Time{})
			h.hand(id, key(2))
			return !ok || h.certain(id, key(2), time.Now())
		}, false},
		{"earlier one is too old", func(h *handshakes) bool {
			h.hand(id, key(1))
			time.Sleep(handshakeLife + time.Second)
			h.hand(id, key(2))
			return h.certain(id, key(2), time.Now())
		}, true},
		{"of somebody else", func(h *handshakes) bool {
			h.hand([]byte("other"), key(1))
			h.hand(id, key(2))
			return h.certain(id, key(2), time.Now())
		}, true},
		{"many keys", func(h *handshakes) bool {
			for b := range byte(9) {
				h.hand(id, key(b))
			}
			return h.certain(id, key(8), time.Now()) || len(h.handed) != 1
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := c.run(newHandshakes()); got != c.want {
					t.Errorf("certain: %v", got)
				}
			})
		})
	}
}

func TestHandshakesBounded(t *testing.T) {
	h := newHandshakes()
	for i := range uint32(maxHandshakes + 100) {
		h.hand(binary.BigEndian.AppendUint32(nil, i), []byte{1})
	}
	if len(h.handed) != maxHandshakes {
		t.Errorf("%d identities remembered", len(h.handed))
	}
}
