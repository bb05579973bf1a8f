package dtls12

import "time"

// Values of the specifications.
const (
	version      = 0xfefd // DTLS 1.2
	version10    = 0xfeff // DTLS 1.0: what a HelloVerifyRequest says (RFC 6347, Section 4.2.1)
	headerSize   = 12     // of a handshake message (RFC 6347, Section 4.2.2)
	finishedSize = 12     // verify_data (RFC 5246, Section 7.4.9)
	maxCookie    = 255
	maxSession   = 32

	// Retransmission (RFC 6347, Section 4.2.4.1).
	firstTimeout = time.Second
	maxTimeout   = 60 * time.Second
)

// Our own bounds.
const (
	// maxMessage bounds one handshake message, in bytes: an access token of 4096
	// in psk_identity, and what is around it.
	maxMessage = 4096 + 64
	// maxChain bounds the certificates of a peer: its own and those above it.
	maxChain = 6
	// maxHello bounds a ClientHello, in bytes, in one piece or several.
	maxHello = 4096
	// maxAhead is how many messages beyond the next one are kept.
	maxAhead = 8
	// maxAssembly bounds all that is kept of messages that are not whole, in bytes.
	maxAssembly = 8192
	// maxPieces bounds the pieces of one message that are kept apart.
	maxPieces = 32
	// maxEarly bounds the protected records that came before their keys: four.
	maxEarly = 4
	// maxEarlySize is the longest of them, in bytes.
	maxEarlySize = 256
	// maxRepeats bounds how often a flight is sent again because the peer repeats
	// its own, and repeatEvery how soon.
	maxRepeats  = 32
	repeatEvery = 100 * time.Millisecond
	// mtu is the longest datagram that we send, in bytes: it fits IPv6 everywhere.
	mtu = 1200
	// cookieSize is the length of our cookies, frontSize that of those for a
	// ClientHello in fragments, in bytes; cookieLife is how long their key lasts, so
	// that a cookie is good for that long and at most twice.
	cookieSize = 16
	frontSize  = 8
	cookieLife = time.Minute
)
