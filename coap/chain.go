package coap

import "slices"

// Chain wraps h in middleware; the first is the outermost, so the list reads in
// the order in which a request passes.
func Chain(h Handler, mw ...func(Handler) Handler) Handler {
	for _, m := range slices.Backward(mw) {
		h = m(h)
	}
	return h
}
