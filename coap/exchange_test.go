package coap

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestWithExchange: the context of a request ends at its deadline, with its
// parent and with the request, whether somebody waited before or not, and so do
// those made of it.
func TestWithExchange(t *testing.T) {
	for _, waited := range []bool{false, true} {
		for name, c := range map[string]struct {
			end  func(parent, own context.CancelFunc)
			want error
		}{
			"deadline": {func(_, _ context.CancelFunc) { time.Sleep(time.Minute) }, context.DeadlineExceeded},
			"parent":   {func(parent, _ context.CancelFunc) { parent() }, context.Canceled},
			"request":  {func(_, own context.CancelFunc) { own() }, context.Canceled},
		} {
			synctest.Test(t, func(t *testing.T) {
				parent, stop := context.WithCancel(t.Context())
				defer stop()
				ctx := WithExchange(parent, Exchange{Token: []byte{1}}, time.Now().Add(time.Minute))
				cancel := ctx.End
				defer cancel()
				if d, ok := ctx.Deadline(); !ok || time.Until(d) != time.Minute {
					t.Errorf("%s: deadline in %v", name, time.Until(d))
				}
				child, free := context.WithCancel(context.WithValue(ctx, exchangeTestKey{}, 1))
				if !waited {
					free()
				}
				defer free()
				if err := ctx.Err(); err != nil {
					t.Fatalf("%s: over at once: %v", name, err)
				}
				if waited {
					select {
					case <-ctx.Done():
						t.Fatalf("%s: over at once", name)
					default:
					}
				}
				c.end(stop, cancel)
				<-ctx.Done()
				<-child.Done()
				if err := ctx.Err(); !errors.Is(err, c.want) {
					t.Errorf("%s, waited %v: %v", name, waited, err)
				}
				if x, ok := ExchangeOf(child); !ok || len(x.Token) != 1 {
					t.Errorf("%s: %+v", name, x)
				}
			})
		}
	}
	early, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	ctx := WithExchange(early, Exchange{}, time.Now().Add(time.Hour))
	cancel := ctx.End
	defer cancel()
	if d, _ := ctx.Deadline(); time.Until(d) > time.Second {
		t.Error("the deadline of the parent is forgotten")
	}
}

// TestDecodeAgain: a message that is read into twice has nothing of the first, and
// nothing is allocated for it.
func TestDecodeAgain(t *testing.T) {
	first := &Message{Code: POST, Token: []byte{1, 2}, Payload: []byte("x")}
	first.Options.SetPath("a", "b")
	a, err := first.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	second := []byte{0x60, 0, 0, 9}
	var m Message
	if n := testing.AllocsPerRun(10, func() {
		if err := m.Decode(a); err != nil || len(m.Options) != 2 || len(m.Token) != 2 {
			t.Fatal(err)
		}
		if err := m.Decode(second); err != nil || len(m.Options)+len(m.Token)+len(m.Payload) != 0 || m.ID != 9 {
			t.Fatalf("%+v, %v", m, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type exchangeTestKey struct{}
