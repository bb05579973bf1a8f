package proxy

import "time"

// Values of the specifications.
const (
	// The transmission parameters of RFC 7252, Section 4.8.
	ackTimeout      = 2 * time.Second
	ackRandomFactor = 1.5
	maxRetransmit   = 4

	// exchangeLifetime is EXCHANGE_LIFETIME (RFC 7252, Section 4.8.2): as long no
	// message identifier is used again.
	exchangeLifetime = 247 * time.Second

	// defaultMaxAge is that of a response without the option (RFC 7252, Section
	// 5.10.5).
	defaultMaxAge = 60 * time.Second

	// defaultHops is the Hop-Limit of a request that came without (RFC 8768,
	// Section 3).
	defaultHops = 16

	// Bounds of option values (RFC 7252, Section 5.10).
	maxURI     = 1034
	maxSegment = 255
	maxETag    = 8
)

// Our own bounds, and the defaults of Config.
const (
	// maxBody bounds the body of a response, in bytes: what the server core takes
	// in the other direction.
	maxBody = 64 << 10

	// maxWaiting bounds the requests that wait for upstreams together: half of
	// what an endpoint has in handlers, so that other traffic goes on when
	// upstreams are silent.
	maxWaiting = 2048

	// maxQueue bounds the requests that wait for their turn at one upstream, as a
	// multiple of what may be outstanding there.
	maxQueue = 16

	// maxUpstreams bounds the associations with upstreams; upstreamIdle is when an
	// unused one ends. A DTLS session is worth more than a socket.
	maxUpstreams = 1024
	upstreamIdle = time.Minute
	sessionIdle  = 30 * time.Minute

	// protection is by how much OSCORE may have made a block larger, in bytes.
	protection = 256

	// maxMessage is the largest datagram read, in bytes: a block of 1024, its
	// options, and as much again for servers that send without blocks.
	maxMessage = 4096

	// maxRecord is the same over DTLS, where what is not read whole ends the association: no
	// larger datagram comes through pion/dtls.
	maxRecord = 8192

	// textTooLarge is what a client is told of a larger one.
	textTooLarge = "the server's message has more than 4096 bytes: it has to send its response in blocks"

	// maxIDs is how many message identifiers one socket uses within an
	// exchangeLifetime: all but some for retransmissions under way.
	maxIDs = 60_000

	// lately is how long ago a server may have been heard over a session for a request
	// that is sent once to go without a ping.
	lately = 10 * time.Second

	// dialTimeout bounds the resolution of a name and a handshake.
	dialTimeout = 10 * time.Second

	// After breakAfter requests in a row without any answer an upstream is not
	// asked for breakMin, then for twice as long each time, up to breakMax.
	breakAfter = 5
	breakMin   = 2 * time.Second
	breakMax   = time.Minute

	// maxRelays bounds the observations at upstreams.
	maxRelays = 16384

	// sweepEvery is how often what is old is looked for.
	sweepEvery = 5 * time.Second

	// An address on plain UDP that returned an Echo value counts as proven so
	// long, and an Echo value is good so long.
	provenFor = 10 * time.Minute
	echoFor   = time.Minute

	// maxAddresses bounds the addresses on plain UDP that are remembered.
	maxAddresses = 16384

	// An address that showed that it receives may be sent proofCredit bytes, and
	// amplification times what came from it since; then it has to show it again (RFC
	// 9175, Section 2.4). What is in flight of a body in blocks goes through.
	amplification = 3
	proofCredit   = 64 << 10

	// entryOverhead is what a cache entry takes besides options and payload.
	entryOverhead = 400

	// maxSilence is how long an observed server is heard not at all, whatever Max-Age it
	// told: within that time it looks whether its client is there (RFC 7641, Section 4.5).
	maxSilence = 24 * time.Hour

	// maxMembers bounds the responses to one group request.
	maxMembers = 1024

	// maxGroupsObserved bounds the observations of groups: each has a socket.
	maxGroupsObserved = 256

	// linksEvery is how often the links of reverse targets are asked for.
	linksEvery = 5 * time.Minute
)
