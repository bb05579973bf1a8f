package coap

import (
	"context"
	"errors"
)

// Exchange is what a handler needs that answers for something behind it, such as
// a Security Context: over which link a request came and with which token further
// responses to it go.
type Exchange struct {
	Link  Link
	Type  Type
	Token []byte
}

type exchangeKey struct{}

// WithExchange gives the context of a request its exchange.
func WithExchange(ctx context.Context, x Exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

// ExchangeOf is the exchange of a request that the server core serves; false for
// any other context.
func ExchangeOf(ctx context.Context) (Exchange, bool) {
	x, ok := ctx.Value(exchangeKey{}).(Exchange)
	return x, ok
}

// ErrSilent is the error of a handler that has nothing to be sent.
var ErrSilent = errors.New("coap: no response")

// ErrRelayed is what became of a confirmable message that was acknowledged by who
// carries it, not by the peer itself: nothing says that the peer has it.
var ErrRelayed = errors.New("coap: acknowledged on the way")
