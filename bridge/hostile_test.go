package bridge

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

// dialRaw sends bytes to the broker and reads what it answers until it closes
// the connection.
func dialRaw(t *testing.T, addr string, packets ...[]byte) []byte {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(addr, "mqtt://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		if _, err := c.Write(p); err != nil {
			break // closed already
		}
	}
	answer, _ := io.ReadAll(c) // a reset is an end as well
	return answer
}

// TestOnlyMQTT311: a member that logs in with MQTT 5 is refused, whatever it
// has to say then, and the broker lives on.
func TestOnlyMQTT311(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	mgt := m.join(t, b, "n1", wantMQTT)
	field := func(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }
	body := append(field("MQTT"), 5, 0xc2, 0, 60, 0) // no properties
	body = append(body, field("raw")...)
	body = append(body, field(mgt.User)...)
	body = append(body, field(mgt.Password)...)
	connect := append([]byte{0x10, byte(len(body))}, body...)
	subscribe := []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'} // ends before the options of its filter
	// MQTT 5, Section 3.2.2.2: 0x84 is Unsupported Protocol Version.
	if a := dialRaw(t, mgt.Broker, connect, subscribe); len(a) < 4 || a[0] != 0x20 || a[3] != 0x84 {
		t.Errorf("answer % x", a)
	}
	if a := dialRaw(t, mgt.Broker, rawConnect(mgt.User, mgt.Password), []byte{0xe0, 0}); len(a) < 4 || a[3] != 0 {
		t.Errorf("afterwards: answer % x", a)
	}
}

// TestPanicEndsOneConnection: a panic of the library under a member's packet
// ends that connection only.
func TestPanicEndsOneConnection(t *testing.T) {
	l := loopbackListener(t, "127.0.0.1:0")
	door := &members{Net: listeners.NewNet("members-0", l), log: slog.New(slog.DiscardHandler)}
	if err := door.Init(slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		door.Serve(func(_ string, c net.Conn) error {
			var b [1]byte
			_, _ = io.ReadFull(c, b[:])
			return []error{nil}[b[0]] // out of range
		})
	}()
	for range 2 {
		dialRaw(t, l.Addr().String(), []byte{7})
	}
	door.Close(func(string) {})
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("Serve does not return")
	}
}
