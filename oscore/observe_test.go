package oscore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
)

// RFC 8613, Sections 4.1.3.5, 7.4.1 and 8.4.2.
func TestObserve(t *testing.T) {
	client, server := pair(t, func(_, s *Params) { s.Sequence.Start = 255 })
	cex, sex := request(t, client, server, observed(get("a"), 0))
	if !cex.Observes() || !sex.Observes() || sex.PIV() != cex.PIV() {
		t.Fatalf("%+v, %+v", cex, sex)
	}
	var notes []*coap.Message
	for i := range 4 {
		notes = append(notes, respond(t, server, sex, observed(content(fmt.Sprint(i)), uint32(10+i))).Clone())
	}
	for i, p := range notes {
		o := optionOf(t, p)
		if outer, _ := p.Options.Uint(coap.ObserveOption); p.Code != coap.Content || outer != uint32(10+i) {
			t.Errorf("notification %d is %v outside, Observe %d", i, p.Code, outer)
		}
		if (o.PIV == nil) != (i == 0) {
			t.Errorf("notification %d has Partial IV %x", i, o.PIV)
		}
	}
	accept := func(i int, observe string) {
		t.Helper()
		got, err := client.UnprotectResponse(nil, &cex, notes[i])
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := got.Options.Get(coap.ObserveOption); !ok || hex.EncodeToString(v) != observe || string(got.Payload) != fmt.Sprint(i) {
			t.Errorf("notification %d is %+v", i, got)
		}
	}
	refuse := func(i int) {
		t.Helper()
		before := cex
		if _, err := client.UnprotectResponse(nil, &cex, notes[i]); !errors.Is(err, ErrReplay) || cex != before {
			t.Errorf("notification %d: %v", i, err)
		}
	}
	accept(0, "")
	refuse(0)
	accept(2, "0100")
	refuse(0)
	refuse(1) // older than one that came
	refuse(2)
	accept(3, "0101")
	// Without Observe it is the last.
	last := respond(t, server, sex, &coap.Message{Code: coap.NotFound})
	if optionOf(t, last).PIV == nil || last.Code != coap.Changed {
		t.Errorf("%+v", last)
	}
	if got, err := client.UnprotectResponse(nil, &cex, last); err != nil || got.Code != coap.NotFound || cex.Open() {
		t.Errorf("%+v, %v", got, err)
	}
	more := respond(t, server, sex, observed(content("more"), 99))
	if _, err := client.UnprotectResponse(nil, &cex, more); !errors.Is(err, ErrReplay) {
		t.Errorf("after the end: %v", err)
	}

	// The first notification with a Partial IV, then one without: it is older.
	cex, sex = request(t, client, server, observed(get("a"), 0))
	first := respond(t, server, sex, observed(content("old"), 1)).Clone()
	second := respond(t, server, sex, observed(content("new"), 2))
	if _, err := client.UnprotectResponse(nil, &cex, second); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UnprotectResponse(nil, &cex, first); !errors.Is(err, ErrReplay) {
		t.Errorf("the oldest after a newer: %v", err)
	}

	// Deregistration is an ordinary request.
	cex, sex = request(t, client, server, observed(get("a"), 1))
	if cex.Observes() || sex.Observes() {
		t.Error("deregistration observes")
	}
	if _, err := client.UnprotectResponse(nil, &cex, respond(t, server, sex, content("x"))); err != nil {
		t.Error(err)
	}
}

// No two responses have the nonce of the request, however the exchange is copied
// and used.
func TestResponseNonce(t *testing.T) {
	client, server := pair(t)
	for range 50 {
		_, sex := request(t, client, server, get("a"))
		var without atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				p, err := server.ProtectResponse(t.Context(), nil, sex, content("x"))
				if err != nil {
					t.Error(err)
					return
				}
				if optionOf(t, p).PIV == nil {
					without.Add(1)
				}
			})
		}
		wg.Wait()
		if n := without.Load(); n != 1 {
			t.Fatalf("%d responses have the nonce of the request", n)
		}
	}
	// When the window has moved on, a late response has its own.
	_, late := request(t, client, server, get("late"))
	for range defaultWindow {
		request(t, client, server, get("a"))
	}
	if optionOf(t, respond(t, server, late, content("x"))).PIV == nil {
		t.Error("a response to a request before the window has its nonce")
	}
}

// One of many copies of a request that come at once is accepted.
func TestRequestAtomic(t *testing.T) {
	client, server := pair(t)
	for range 50 {
		p, _, err := client.ProtectRequest(t.Context(), nil, get("a"))
		if err != nil {
			t.Fatal(err)
		}
		var accepted, replays atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				switch _, _, err := server.UnprotectRequest(nil, p); {
				case err == nil:
					accepted.Add(1)
				case errors.Is(err, ErrReplay):
					replays.Add(1)
				}
			})
		}
		wg.Wait()
		if accepted.Load() != 1 || replays.Load() != 7 {
			t.Fatalf("accepted %d times, refused %d times", accepted.Load(), replays.Load())
		}
	}
}
