package host

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/pkg/runner/periodic"
	"github.com/plgd-dev/go-coap/v3/udp"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/store"
)

const patience = 30 * time.Second

func embedded(t *testing.T) *config.Config {
	t.Helper()
	c := config.Embedded()
	c.DataDir = filepath.Join(t.TempDir(), "data")
	const free = "127.0.0.1:0"
	c.Listen.CoAPS, c.Listen.CoAP, c.Listen.HTTP, c.Listen.MQTT = free, free, free, free
	return c
}

func returns(t *testing.T, over <-chan error) error {
	t.Helper()
	select {
	case err := <-over:
		return err
	case <-time.After(patience):
		t.Fatal("Serve does not return")
		return nil
	}
}

// TestEndsAtOnce: Serve returns, whatever comes first: its servers or the end.
func TestEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := embedded(t)
	if err := c.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	unlock, err := store.LockDir(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // a race between two goroutines is looked for
		over := make(chan error, 1)
		go func() { over <- Serve(t.Context(), c, slog.New(slog.DiscardHandler), nil) }()
		if err := returns(t, over); !errors.Is(err, store.ErrLocked) {
			t.Fatalf("beside another instance: %v", err)
		}
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	over := make(chan error, 1)
	go func() { over <- Serve(ended, c, slog.New(slog.DiscardHandler), nil) }()
	if err := returns(t, over); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestAddresses: what is bound is told, what is switched off is not bound, and
// everything is free again afterwards.
func TestAddresses(t *testing.T) {
	t.Parallel()
	c := embedded(t)
	c.Listen.MQTT = ""
	ctx, cancel := context.WithCancel(t.Context())
	ready, over := make(chan Addrs, 1), make(chan error, 1)
	go func() {
		over <- Serve(ctx, c, slog.New(slog.DiscardHandler), func(_ *plugin.Gateway, at Addrs) { ready <- at })
	}()
	var at Addrs
	select {
	case at = <-ready:
	case err := <-over:
		t.Fatal(err)
	}
	if at.MQTT != "" || at.CoAPS == "" || at.CoAP == "" || at.HTTP == "" || strings.HasSuffix(at.HTTP, ":0") {
		t.Errorf("addresses %+v", at)
	}
	cancel()
	if err := returns(t, over); err != nil {
		t.Error(err)
	}
	for _, addr := range []string{at.CoAPS, at.CoAP} {
		l, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Errorf("still bound: %v", err)
			continue
		}
		_ = l.Close()
	}
	l, err := net.Listen("tcp", at.HTTP)
	if err != nil {
		t.Fatalf("still bound: %v", err)
	}
	_ = l.Close()
}

// TestBusy: an error names the key to change.
func TestBusy(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for key, set := range map[string]func(*config.Listen, string){
		"listen.coaps": func(l *config.Listen, a string) { l.CoAPS = a },
		"listen.coap":  func(l *config.Listen, a string) { l.CoAP = a },
	} {
		c := embedded(t)
		set(&c.Listen, taken.LocalAddr().String())
		err := Serve(t.Context(), c, slog.New(slog.DiscardHandler), nil)
		if err == nil || !strings.HasPrefix(err.Error(), key+": "+taken.LocalAddr().String()) {
			t.Errorf("%s: %v", key, err)
		}
	}
	c := embedded(t)
	c.Listen.CoAPS = "192.0.2.1:5684" // TEST-NET-1: nobody's
	if err := Serve(t.Context(), c, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "is not an address of this machine") {
		t.Errorf("a foreign address: %v", err)
	}
}

// TestAdmission: what is counted is bounded, and counted once.
func TestAdmission(t *testing.T) {
	a := newAdmission(2, 1)
	if err := a.attempt(nil); err != nil {
		t.Fatal(err)
	}
	a.handshakes.Add(2)
	if err := a.attempt(nil); !errors.Is(err, errTooManyHandshakes) {
		t.Errorf("handshakes: %v", err)
	}
	a.handshakes.Add(-2)
	a.sessions.Add(1)
	if err := a.attempt(nil); !errors.Is(err, errTooManySessions) {
		t.Errorf("sessions: %v", err)
	}
}

// TestPlainPeers: an address beyond the bound gets no state, and no answer,
// until another goes.
func TestPlainPeers(t *testing.T) {
	t.Parallel()
	l, err := coapnet.NewListenUDP("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := plainPeers{max: 1}
	first := make(chan *udpclient.Conn, 1)
	srv := udp.NewServer(
		options.WithErrors(func(error) {}), options.WithPeriodicRunner(periodic.New(t.Context().Done(), 20*time.Millisecond)),
		options.WithOnNewConn(func(cc *udpclient.Conn) {
			plain.connected(cc)
			select {
			case first <- cc:
			default:
			}
		}),
	)
	over := make(chan error, 1)
	go func() { over <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := returns(t, over); err != nil {
			t.Error(err)
		}
	}()
	ping := func(c net.Conn) bool { // an empty confirmable message: a Reset comes back
		t.Helper()
		if _, err := c.Write([]byte{0x40, 0, 0, 1}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 16))
		return err == nil
	}
	dial := func() net.Conn {
		c, err := net.Dial("udp", l.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for late := time.Now().Add(patience); !ok(); {
			if time.Now().After(late) {
				t.Fatal(what)
			}
		}
	}
	one, two := dial(), dial()
	until("the first address is not answered", func() bool { return ping(one) })
	for range 3 {
		if ping(two) {
			t.Fatal("an address beyond the bound is answered")
		}
		if n := plain.n.Load(); n != 1 {
			t.Fatalf("%d addresses are counted", n)
		}
	}
	_ = (<-first).Close()
	until("nobody takes the place of an address that went", func() bool { return ping(two) })
}
