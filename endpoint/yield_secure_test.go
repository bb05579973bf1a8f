package endpoint

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/secure"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// oneContext keeps one Security Context, which nobody else takes.
type oneContext struct{ secure.Stored }

func (c *oneContext) Context(_ context.Context, kid []byte) (*secure.Stored, error) {
	if !bytes.Equal(kid, c.ID2) {
		return nil, secure.ErrNone
	}
	s := c.Stored
	return &s, nil
}

func (c *oneContext) Many(context.Context, [][]byte) (map[string]*secure.Stored, error) {
	return nil, nil
}
func (c *oneContext) Take(context.Context, *secure.Stored, bool) error { return nil }
func (c *oneContext) Reserve(_ context.Context, _ *secure.Stored, upTo uint64) error {
	c.Reserved = upTo
	return nil
}

// TestOvertakenOSCORE: TestOvertaken of notifications under OSCORE: the newest is protected
// anew, with a Partial IV behind that of the one it overtakes (RFC 8613, Section 8.3), and
// what comes late of that is refused by the client. An acknowledgement proves nothing.
func TestOvertakenOSCORE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begin(t, newWire(1), false)
		defer o.stop()
		c := &oneContext{secure.Stored{Setup: oscore.Setup{
			Material: oscore.Material{ID: []byte{1}, MasterSecret: cose.NewSecret(make([]byte, 16))},
			Nonce1:   []byte("nonce one"), Nonce2: []byte("nonce two"), ID1: []byte{0xc0}, ID2: []byte{1},
		}, Link: "inner"}}
		o.set(func() { o.layer = secure.New(secure.Config{Server: front{o}, Contexts: c}) })
		client, err := oscore.New(c.ClientParams())
		if err != nil {
			t.Fatal(err)
		}
		p := o.plain()
		defer p.close()

		m := p.request(coap.GET, "obs", "")
		m.Options.SetUint(coap.ObserveOption, 0)
		out, ex, err := client.ProtectRequest(t.Context(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		out = out.Clone()
		out.Type, out.ID, out.Token = m.Type, m.ID, m.Token
		open := func(r *coap.Message) (string, error) {
			in, err := client.UnprotectResponse(nil, &ex, r)
			if err != nil {
				return "", err
			}
			return string(in.Payload), nil
		}
		if got, err := open(p.ask(out)); got != "1" {
			t.Fatal(got, err)
		}

		before := o.publish(2, true)
		old := p.want()
		newest := o.publish(3, true)
		began := time.Now()
		r := p.want()
		wait := time.Since(began)
		if got, err := open(r); got != "3" || r.ID == old.ID || r.Type != coap.Confirmable || !r.Options.Has(coap.ObserveOption) {
			t.Fatal(r, got, err)
		}
		if got, err := open(old); err == nil {
			t.Errorf("after the newest the client takes %s", got)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: old.ID})
		began = time.Now()
		again := p.want()
		if d := time.Since(began) - 2*wait; again.ID != r.ID || !bytes.Equal(again.Payload, r.Payload) || d < -time.Second || d > time.Second {
			t.Errorf("again after %v, the first time-out was %v: %+v", time.Since(began), wait, again)
		}
		if got := outcomes(before); len(got) != 1 || !errors.Is(got[0], coap.ErrRelayed) {
			t.Errorf("outcome of the old %v", got)
		}
		p.send(&coap.Message{Type: coap.Acknowledgement, ID: r.ID})
		time.Sleep(100 * time.Second)
		if got := outcomes(newest); len(got) != 1 || !errors.Is(got[0], coap.ErrRelayed) || !o.quiet() {
			t.Errorf("outcome of the newest %v", got)
		}
		// A Reset outside ends it.
		o.publish(4, true)
		p.want()
		last := o.publish(5, true)
		p.send(&coap.Message{Type: coap.Reset, ID: p.want().ID})
		time.Sleep(time.Second)
		if got := outcomes(last); len(got) != 1 || !errors.Is(got[0], coap.ErrReset) || len(o.core.Observers(topic)) != 0 {
			t.Errorf("outcome %v, %d observers", got, len(o.core.Observers(topic)))
		}
	})
}
