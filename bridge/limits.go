package bridge

import "time"

// Specification constants.
const (
	// kidLen is the length of the key identifier that a member's K_m gets.
	kidLen = 8
	// keyLen, baseIVLen: AES-CCM-16-64-128 (RFC 9053, Section 4.2).
	keyLen    = 16
	baseIVLen = 13
	// mqttVersion is MQTT 3.1.1 as CONNECT names it (docs/protocol.md, Section 5).
	mqttVersion = 4
	// qos of everything that the gateway publishes or subscribes to.
	qos = 1
)

// Implementation constants.
const (
	// ridLen is the length of the random identifier that names a registration
	// towards the broker. Guessing one must be hopeless: topics are what a
	// foreign broker's access rules are often written with.
	ridLen = 16
	// secretLen is the length of a member's password before encoding.
	secretLen = 16

	// maxAck bounds an acknowledgement: a COSE_Encrypt0 of one number takes
	// less than 64 bytes.
	maxAck = 128
	// maxBadAcks is how many acknowledgements of one connection may fail
	// before it is closed: a member that works never sends one.
	maxBadAcks = 16
	// ackQueue is how many acknowledgements wait for verification. Beyond it
	// the sender waits, it loses nothing.
	ackQueue = 256
	// ackBatch is how many are looked up in one read of the store.
	ackBatch = 64

	// confirmDelay and confirmBatch say when gathered confirmations are written: a
	// rekey of a large group must not cost one commit per member. While confirmSpate
	// and more come in a confirmDelay they are gathered for confirmMost.
	confirmDelay = 50 * time.Millisecond
	confirmBatch = 16384
	confirmSpate = 512
	confirmMost  = 4 * confirmDelay
	// confirmRows are written by one statement, confirmFew and more by a transaction
	// that keeps other writers waiting for confirmHold; for longer, up to
	// confirmHoldMost, where a commit takes so long anyway.
	confirmRows     = 64
	confirmFew      = 4 * confirmRows
	confirmHold     = 4 * time.Millisecond
	confirmHoldMost = 20 * time.Millisecond

	// page is how many messages are read from the store at a time.
	page = 256
	// window is how many publications may wait for the broker's PUBACK. Small
	// enough that what is in flight fits the socket buffers of both sides, so
	// that neither can block the other.
	window = 64

	connectTimeout = 10 * time.Second
	tokenTimeout   = 20 * time.Second // a PUBACK or SUBACK that takes longer is a broken connection
	// writeTimeout is also how long a message waits for a connection that has just ended,
	// whatever becomes of the gateway: paho does not notice that it ends.
	writeTimeout = 5 * time.Second
	keepAlive    = 30 * time.Second
	pingTimeout  = 10 * time.Second
	insistence   = 800 * time.Millisecond // 1.5 s in all
	quiesce      = 250                    // milliseconds for the DISCONNECT packet
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 30 * time.Second

	// maxPacket bounds an MQTT packet at the embedded broker. A rekey message
	// is below 1 KiB unless very many Sender IDs are stale.
	maxPacket = 64 << 10
	// writesPending is the embedded broker's queue per client: a member gets
	// one message per rekey and needs only the newest.
	writesPending = 64
	// maxInflight bounds unacknowledged messages per client, for the same
	// reason.
	maxInflight = 64
	// firstPacket is how long a new connection may take to send CONNECT, TLS
	// handshake included.
	firstPacket = 10 * time.Second
	// defaultMaxClients keeps connections of members below the usual limit of
	// descriptors, which they share with the rest of the gateway.
	defaultMaxClients = 10000

	// retryDelay and maxRetries are for rekeys whose message the Group Manager
	// could not give: about five minutes.
	retryDelay = 2 * time.Second
	maxRetries = 150

	// lookupTimeout bounds reads of the store made for a peer that waits.
	lookupTimeout = 5 * time.Second
	// goodbye is how long the last flush of confirmations may take.
	goodbye = 5 * time.Second

	defaultAsleepAfter      = 90 * time.Second
	defaultUnreachableAfter = 7 * 24 * time.Hour
	defaultRetryFor         = 24 * time.Hour

	// retryFirst and retryMost are the distances in which a member is tried
	// again that does not answer: after MAX_TRANSMIT_WAIT each attempt is over.
	retryFirst = 30 * time.Second
	retryMost  = time.Hour
	// shortestSleep is a silence from which wake intervals are learned.
	shortestSleep = 30 * time.Second
	// learnedSleep is a learned interval from which a silent member counts as
	// asleep by habit.
	learnedSleep = time.Minute
	// longestNap is how long a timer is trusted with the time of day.
	longestNap = 15 * time.Minute
	// maxLookups bounds peers that wait to be recognized; the others are at
	// their next datagram.
	maxLookups = 4096
	// keptRekeys is of how many versions of a group it is remembered since when
	// they are due.
	keptRekeys = 64
	// sharedEvery is how often a gateway looks what members confirmed at others, for
	// which a rekey waits.
	sharedEvery = time.Second
	// patrolEvery is how often policies are applied, and saveEvery how exact
	// silence is known after a restart.
	patrolEvery = 5 * time.Minute
	saveEvery   = 10 * time.Minute
)
