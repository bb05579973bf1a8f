//go:build interop

package interop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

func newRenewal(t *testing.T, sender, recipient []byte) *oscore.Renewal {
	t.Helper()
	r, err := oscore.NewRenewal(oscore.Params{
		MasterSecret: cose.NewSecret(masterSecret), MasterSalt: masterSalt, SenderID: sender, RecipientID: recipient,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// RFC 8613, Appendix B.2 with Californium as server: the first request brings the
// new context about, the next ones are served in it. Then we forget everything.
func TestCaliforniumRenewalServer(t *testing.T) {
	conn, err := net.Dial("udp", startCalifornium(t, "renew"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	mid := uint16(0)
	for life := range 2 {
		r := newRenewal(t, clientID, serverID)
		renewed := 0
		for range 3 {
			for {
				m := &coap.Message{Code: coap.GET}
				m.Options.SetPath("hello")
				p, x, err := r.ProtectRequest(t.Context(), nil, m)
				if err != nil {
					t.Fatal(err)
				}
				mid++
				p.Type, p.ID, p.Token = coap.Confirmable, mid, make([]byte, 4)
				rand.Read(p.Token)
				got, err := r.UnprotectResponse(nil, x, roundTrip(t, conn, p))
				if errors.Is(err, oscore.ErrRenewed) {
					renewed++
					continue
				}
				if err != nil || string(got.Payload) != "Hello World!" {
					t.Fatalf("life %d: %+v, %v", life, got, err)
				}
				break
			}
		}
		if renewed != 1 {
			t.Errorf("life %d: renewed %d times", life, renewed)
		}
	}
}

// roundTrip sends a request and waits for the response that has its token.
func roundTrip(t *testing.T, conn net.Conn, m *coap.Message) *coap.Message {
	t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		b := make([]byte, 2048)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		r, err := coap.DecodeMessage(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		if r.Code.IsResponse() && string(r.Token) == string(m.Token) {
			return r
		}
	}
}

// The same with Californium as client, twice: the second one knows nothing of the
// first.
func TestCaliforniumRenewalClient(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := newRenewal(t, serverID, clientID)
	var challenged, served atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			b := make([]byte, 2048)
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			m, err := coap.DecodeMessage(b[:n])
			if err != nil || !m.Code.IsRequest() {
				continue
			}
			c, _, ex, err := r.UnprotectRequest(nil, m)
			var reply *coap.Message
			if err == nil {
				served.Add(1)
				reply, err = c.ProtectResponse(t.Context(), nil, ex, &coap.Message{Code: coap.Content, Payload: []byte("Hello World!")})
			} else {
				if errors.Is(err, oscore.ErrRenew) {
					challenged.Add(1)
				}
				reply, err = c.Refuse(t.Context(), nil, ex, err)
			}
			if err != nil {
				t.Error(err)
				return
			}
			reply.Type, reply.ID, reply.Token = coap.Acknowledgement, m.ID, m.Token
			if b, err = reply.MarshalBinary(); err == nil {
				_, err = conn.WriteToUDPAddrPort(b, from)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	for life := range 2 {
		uri := fmt.Sprintf("coap://%s/hello", conn.LocalAddr())
		out, err := californium(t.Context(), t, "client", clientID, serverID, uri, "renew", "0").Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != "2.05 Hello World!\n2.05 Hello World!" {
			t.Fatalf("life %d: %v\n%s", life, err, got)
		}
		if n := int32(life) + 1; challenged.Load() != n || served.Load() != 2*n {
			t.Errorf("life %d: challenged %d times, served %d times", life, challenged.Load(), served.Load())
		}
	}
}
