package secure

import "time"

// Our own bounds.
const (
	// defaultMaxContexts bounds the contexts in memory, some 2 kB each. The least
	// recently used makes room; it is taken anew, and its peer asked for
	// freshness, at its next request.
	defaultMaxContexts = 200_000

	// idle is when a context leaves memory. It costs its peer one more round trip
	// and its observations, so it is longer than nodes sleep.
	idle = 24 * time.Hour

	// goodbye is how long a context that ended stays reachable for us: the last
	// word to its observers comes after the end of its token.
	goodbye = 10 * time.Second

	// sweepEvery is how often Run looks for both.
	sweepEvery = 5 * time.Second

	// maxExchanges bounds the requests of one context that notifications may still
	// be sent to. The server core has 64 observations for a peer at most.
	maxExchanges = 96

	// attempts is how often a request is opened with a context that somebody else
	// took in the same moment.
	attempts = 3

	// victims is among how many contexts the least recently used is looked for.
	victims = 16
)
