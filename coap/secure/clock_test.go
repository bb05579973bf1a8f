package secure

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/oscore"
	"github.com/seed4911071e/groupgate/test/clock"
)

// Steps of the clock end no Security Context, and so no observation: only disuse does.
func TestClockSet(t *testing.T) {
	for _, by := range []time.Duration{-365 * 24 * time.Hour, 365 * 24 * time.Hour} {
		now := time.Now()
		l := New(Config{Server: nothing{}})
		c := &link{layer: l, stored: &Stored{Setup: oscore.Setup{ID2: []byte{1}}, Link: "one"}}
		c.used.Store(l.stamp(now))
		l.admit(c)
		l.sweep(clock.Set(t, now, by))
		found := l.Of(coap.Subject{})
		if len(found) != 1 {
			t.Fatalf("set by %v: out of use", by)
		}
		if d := time.Since(found[0].Used); d < 0 || d > time.Minute {
			t.Errorf("used %v ago", d)
		}
		if l.sweep(clock.Set(t, now.Add(idle), by)); len(l.Of(coap.Subject{})) != 0 {
			t.Errorf("set by %v: in memory after %v without use", by, idle)
		}
	}
}

// nothing is a server core that has nothing to do.
type nothing struct{ Server }

func (nothing) Closed(coap.LinkID) {}
