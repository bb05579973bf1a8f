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

	// Token Revocation Lists.
	maxTRL           = 256 << 10 // bytes of one, 7,700 hashes
	maxTokenHash     = 65        // bytes of one hash: SHA-512 of RFC 6920
	trlTimeout       = 20 * time.Second
	trlInterval      = 5 * time.Minute
	trlFirstBackoff  = 2 * time.Second
	trlLongestPause  = 2 * time.Minute
	revokedAtOneTime = 256 // hashes in one transaction

	// maxCachedGrants is above the associations that there are by default
	// (limits.sessions): a rekey asks for the grant of each of its observers.
	maxCachedGrants = 1 << 18
	// warmAtOnce is how many grants are read by one statement.
	warmAtOnce   = 64
	purgeBatch   = 256              // tokens expired in one transaction
	flushEvery   = 10 * time.Second // marks of use
	longestSleep = time.Hour        // of the purge, in case the clock is set
	sharedSleep  = time.Minute      // of the purge where other gateways write too

	// Introspection. Anybody can post what makes us ask, so that little of it
	// goes on at one time, and answers are kept for a while.
	maxAsking        = 8 // questions under way
	askTimeout       = 6 * time.Second
	askAgain         = 10               // seconds that peers are asked to wait while the AS is away
	keepActive       = time.Minute      // of an answer, but never beyond exp
	keepInactive     = 30 * time.Second // of the answer that a token is not valid
	maxAnswers       = 1024             // kept at one time
	introspectedLife = time.Hour        // of a token of which the AS tells no end
)
