package ace

import "time"

// From the specifications.
const (
	challengeSize   = 8  // bytes of an N_S that is sent (RFC 9594, Section 3.3)
	exporterSize    = 32 // bytes of an N_S from the exporter (draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.1)
	derivedKeySize  = 16 // bytes of a derived PSK (RFC 9202, Section 3.3.1)
	challengeWindow = 10 * time.Minute
	challengeSlots  = 4
)

// Our choices.
const (
	maxScopeEntries = 256 // entries of a scope claim, understood or not

	// A key outlives its last token for this long: its identifier is not given
	// to another key meanwhile, and a token that renews it by name is still
	// understood: as long as groups wait for a renewal by default.
	keyLinger = 25 * time.Hour

	// An issued key can be renewed for this long after its token expired.
	issuedLinger = 7 * 24 * time.Hour

	defaultUnusedAfter = 24 * time.Hour // for a token that no handshake ever proved
	defaultMaxTokens   = 250_000        // stored tokens
	defaultMaxIssued   = 1_000_000      // remembered keys of the embedded AS
	defaultMaxNodes    = 1_000_000      // enrolled nodes
	defaultPostRate    = 200            // POST /authz-info per second, all peers
	defaultPeerRate    = 5              // POST /authz-info per second, one address
	maxRatedPeers      = 4096           // addresses whose rate is remembered

	maxCachedGrants = 1 << 16
	purgeBatch      = 256              // tokens expired in one transaction
	flushEvery      = 10 * time.Second // marks of use
	longestSleep    = time.Hour        // of the purge, in case the clock is set
	sharedSleep     = time.Minute      // of the purge where other gateways write too
)
