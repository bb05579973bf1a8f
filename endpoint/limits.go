package endpoint

import "time"

// Values of the specifications.
const (
	// The transmission parameters of RFC 7252, Section 4.8.
	ackTimeout      = 2 * time.Second
	ackRandomFactor = 1.5
	maxRetransmit   = 4

	// exchangeLifetime is EXCHANGE_LIFETIME (RFC 7252, Section 4.8.2): as long a
	// message identifier of the peer is remembered.
	exchangeLifetime = 247 * time.Second

	// maxTransmitSpan is MAX_TRANSMIT_SPAN (RFC 7252, Section 4.8.2): as long after
	// the first the last copy of a confirmable message is sent.
	maxTransmitSpan = 45 * time.Second

	// maxTransmitWait is MAX_TRANSMIT_WAIT (RFC 7252, Section 4.8.2).
	maxTransmitWait = 93 * time.Second

	// epoch of every session: there is no renegotiation.
	epoch = 1
)

// Our own bounds, and the defaults of Config.
const (
	// processingDelay is how long an acknowledgement waits for the response to
	// go with it (RFC 7252, Section 5.2.1): well below ACK_TIMEOUT.
	processingDelay = 500 * time.Millisecond

	// maxReceipts bounds the messages remembered of one peer. A delayed copy
	// cannot be further back: the replay window has 64 places.
	maxReceipts = 64

	// maxKept bounds the responses kept for copies of requests, in bytes over all
	// peers: beyond it the oldest are forgotten.
	maxKept = 32 << 20

	// receiptSize is what a receipt takes besides its response, with its place on
	// the shelf.
	receiptSize = 144

	// maxWorking bounds the requests in handlers: beyond it they are dropped,
	// and come again.
	maxWorking = 4096

	// handshakeTimeout ends a handshake: the state of a client with a wrong key,
	// which meets silence, must not live much longer than an honest handshake
	// over a slow link.
	handshakeTimeout = 20 * time.Second

	// cookieTimeout ends a handshake whose peer has not returned its cookie: it
	// may be nobody.
	cookieTimeout = 5 * time.Second

	// handshakeGrace is how old a handshake that showed its cookie must be before
	// it may be given up for another.
	handshakeGrace = 5 * time.Second

	// takeOverAfter is when a session is taken over from the handshake although
	// the peer sent nothing: its last flight would have been repeated by then if
	// ours had been lost.
	takeOverAfter = 75 * time.Second

	// maxEarly bounds the records kept that came before their handshake was over.
	maxEarly = 8

	// cidSize is the length of the connection IDs that we give out.
	cidSize = 8

	// maxDatagram is the largest datagram read, in bytes: a flight of a handshake
	// with certificates in one piece.
	maxDatagram = 8192

	// proofFactor bounds what is sent to an address that has not shown that it
	// receives: so many times what came from it.
	proofFactor = 3

	// proofEvery is how often such an address is asked to show it.
	proofEvery = 2 * time.Second

	// maxMoves is as far as the moves of a session are counted.
	maxMoves = 1<<16 - 1

	// sweepEvery is how often what is old is looked for.
	sweepEvery = 5 * time.Second

	// maxSpareActs bounds the activities that are kept for the next.
	maxSpareActs = 1024

	// maxSpareSent bounds the transmissions that are kept for the next, and their
	// messages, of maxSpareBytes each at most.
	maxSpareSent  = 2048
	maxSpareBytes = 512

	// maxSpareReply bounds the memory of an answer, in bytes, that is kept for the next,
	// which may be smaller. There are maxSpareSent of them at most, and of receipts.
	maxSpareReply = 128

	// cipherSlots is how many sessions have expanded keys at a time, some 1.3 kB
	// each; cipherIdle is when they are given up.
	cipherSlots = 2048
	cipherIdle  = 30 * time.Second

	// keepEvery is how often what moved on in sessions is written: what was
	// received since may be replayed after a crash, and meets a stale session.
	// keepAtOnce is how many are written without letting others work.
	keepEvery  = 500 * time.Millisecond
	keepAtOnce = 256

	// idReserve is how many message identifiers are used before that is written,
	// and idLeap by how many, times one to idLeaps, a restored session goes on: no
	// identifier of before is used again while copies of it may be under way.
	idReserve = 4096
	idLeap    = 2 * idReserve
	idLeaps   = 4

	// maxReply bounds an answer that outlives the process, and maxSubject what
	// names a peer there, in bytes.
	maxReply   = 1500
	maxSubject = 1024

	defaultSessions   = 200_000
	defaultHandshakes = 256

	// defaultHibernate is when a session is compacted.
	defaultHibernate = time.Minute

	// defaultIdle lets a node sleep for a week.
	defaultIdle = 7 * 24 * time.Hour

	// plainIdle is when an address on plain UDP is forgotten, and maxPlain how
	// many are known: anybody can invent addresses.
	plainIdle = exchangeLifetime
	maxPlain  = 8192
)
