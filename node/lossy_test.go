package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/coaptest"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// memory is the client end of a link in memory as a Transport.
type memory struct{ link *coaptest.Link }

func (m memory) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	return m.link.Do(ctx, req)
}

func (m memory) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	req = req.Clone()
	req.Options.Remove(coap.NoResponse) // this client waits for the first response
	cancel, err := m.link.Observe(ctx, req, fn)
	if errors.Is(err, coaptest.ErrNotObserved) {
		return func(context.Context) error { return nil }, nil
	}
	return cancel, err
}

// Close leaves the link to the test: dialling again gives the same one.
func (m memory) Close() error { return nil }

// overServe lets the fake Group Manager answer through the real server core.
func overServe(g *fakeGM) coap.Handler {
	return coap.HandlerFunc(func(ctx context.Context, req *coap.Request) (*coap.Response, error) {
		resp, err := g.Do(ctx, req)
		if err != nil {
			return nil, err
		}
		switch path := req.Path(); {
		case req.Code != coap.GET:
		case len(path) == 2:
			resp.Observe = &coap.Observation{Topic: "gm/g1", Version: g.version()}
		case len(path) == 4:
			resp = &coap.Response{Code: coap.Content, Observe: &coap.Observation{Topic: "gm/g1/nodes/" + path[3], Version: 1}}
		}
		return resp, nil
	})
}

func (g *fakeGM) version() groupcomm.Version {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.num
}

// Rekeys over a network that loses, repeats and reorders, through the real
// server core: the node ends with the newest version, and hears of its eviction.
func TestFollowLossy(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			g := newFakeGM(t)
			g.peer(0x52, groupcomm.Requester)
			srv := serve.New(overServe(g), serve.Config{})
			run, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- srv.Run(run) }()
			link := coaptest.NewLink(srv, coap.Peer{}, coaptest.Options{Seed: seed, Drop: 0.2, Duplicate: 0.2, Reorder: 0.2})
			m, err := New(Config{
				Group: "g1", Roles: groupcomm.Responder, Transfer: g.transfer(), WantCreds: true, PollEvery: 10 * time.Minute,
				Redial: func(context.Context) (Transport, error) { return memory{link}, nil },
			}, memory{link})
			if err != nil {
				t.Fatal(err)
			}
			// An exchange may fail on such a network; asking again does no harm.
			for attempt := 1; ; attempt++ {
				err := m.Join(t.Context())
				if err == nil {
					break
				}
				if !lost(err) || attempt == 5 {
					t.Fatal(err)
				}
			}
			over := make(chan error, 1)
			go func() { over <- m.Follow(t.Context()) }()
			for v := groupcomm.Version(6); v < 26; v++ {
				time.Sleep(time.Duration(v) * 700 * time.Millisecond)
				g.mu.Lock()
				g.num = v
				g.mu.Unlock()
				body := reply(coap.Content, coap.ACEGroupcomm, rekeyOf(v))
				srv.Publish("gm/g1", coap.Notification{Version: v, Body: body, Confirm: true})
			}
			time.Sleep(30 * time.Minute)
			if s := state(t, m); s.Version != 25 || !s.Installed || string(s.MasterSecret.Bytes()) != string(secretOf(25)) || len(s.Peers) != 1 {
				t.Errorf("seed %d: state %+v", seed, s)
			}
			srv.Drop("gm/g1/nodes/n7", "client", coap.ErrorResponse(groupcomm.ErrTerminated))
			if err := <-over; !errors.Is(err, ErrEvicted) {
				t.Errorf("seed %d: Follow: %v", seed, err)
			}
			link.Close()
			stop()
			<-served
		})
	}
}
