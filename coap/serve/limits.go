package serve

import "time"

// Values of the specifications.
const (
	// exchangeLifetime is EXCHANGE_LIFETIME (RFC 7252, Section 4.8.2): after it
	// nothing of an exchange can still be under way, so a transfer that rested
	// as long is forgotten (RFC 7959, Section 2.5).
	exchangeLifetime = 247 * time.Second

	// maxTransmitWait is MAX_TRANSMIT_WAIT (RFC 7252, Section 4.8.2): a client
	// has given up by then, and a handler may.
	maxTransmitWait = 93 * time.Second

	// confirmEvery: RFC 7641, Section 4.5: at least every 24 hours a
	// notification is confirmable, so that the list of observers does not grow
	// with clients that are no more.
	confirmEvery = 24 * time.Hour

	// minBlock and maxBlock bound the size of blocks in bytes (RFC 7959,
	// Section 2.2).
	minBlock = 16
	maxBlock = 1024
)

// Our own bounds, and the defaults of Config.
const (
	// defaultMaxBody holds the largest message of the project, a Join Response
	// with the credentials of a few hundred members.
	defaultMaxBody = 64 << 10

	// defaultPeerRequests lets a node overlap what firmware overlaps (NSTART is
	// 1) and leaves room for a proxy that speaks for several.
	defaultPeerRequests = 16

	// defaultRPS and defaultBurst: a node joins with about ten requests.
	defaultRPS   = 50
	defaultBurst = 100

	// defaultObservations is two for each of 200,000 sessions.
	defaultObservations = 400_000

	// maxPeerObservations keeps one peer from using up defaultObservations; a
	// member of ten groups that observes group and node resources uses 20.
	maxPeerObservations = 64

	// maxPeerTransfers bounds bodies in assembly and snapshots, of each kind,
	// for one peer: the least recently used makes room.
	maxPeerTransfers = 4

	// protection is by how much OSCORE may have made a block larger, in bytes: what
	// is larger was not cut inside.
	protection = 256

	// maxAssembly bounds all bodies in assembly, in bytes. Unauthenticated
	// peers may fill only a share, so that they cannot starve the others.
	maxAssembly      = 16 << 20
	maxPlainAssembly = maxAssembly / 4

	// maxSnapshots bounds all responses kept for their later blocks, in bytes:
	// the least recently used makes room.
	maxSnapshots = 16 << 20

	// maxPeers bounds the peers remembered; spoofed source addresses on plain
	// UDP cost an entry of some 200 bytes each.
	maxPeers = 1 << 18

	// peerIdle is when a peer without any state is forgotten: its rate budget
	// is full again long before.
	peerIdle = time.Minute

	// maxRetained bounds the topics whose notification is kept, without any
	// observer, while a registration is under way.
	maxRetained = 16384

	// maxMisses is how many notifications in a row may go unacknowledged before
	// the observation ends. RFC 7641, Section 4.5, ends it at the first; a
	// sleeping node would then miss the renewal of its keys and never know.
	// Between the attempts lies a sign of life of the peer, so this is not a
	// matter of time.
	maxMisses = 4

	// headStart is how long a notification waits that a request has caused, so
	// that the reply to the request reaches the network first: clients take
	// what comes first for the response.
	headStart = 20 * time.Millisecond

	// maxPeerMore bounds the productions of further responses for one peer, and
	// moreLifetime each of them: a group request through the proxy collects
	// responses for minutes at most.
	maxPeerMore  = 4
	moreLifetime = 5 * time.Minute

	// maxSpareDeliveries bounds the deliveries that are kept for the next, some 400
	// bytes each.
	maxSpareDeliveries = 2048

	// paceEvery is the pause between two portions of what is sent unasked: short
	// enough that nobody notices, long enough that others get the processor.
	paceEvery = 10 * time.Millisecond

	// paceTogether is of how many peers at most a notification is told before it is
	// sent to them, see coap.Notification.Ready.
	paceTogether = 256

	// sweepEvery is how often Run looks for what has expired.
	sweepEvery = 10 * time.Second

	// seqLeap is by how much, times one to seqLeaps, the numbers of notifications go on
	// after a restart: less than 2^23, so that they are newer (RFC 7641, Section 3.4).
	seqLeap  = 1024
	seqLeaps = 4096

	// dumpAtOnce is how many peers' observations are written without letting
	// others work.
	dumpAtOnce = 256

	// peerSize and observationSize are what one of each is reckoned to take, in bytes.
	peerSize        = 144
	observationSize = 176

	// busyMaxAge is the Max-Age of 4.29 and 5.03, in seconds (RFC 8516, Section
	// 3: the time to wait).
	busyMaxAge = 2
)
