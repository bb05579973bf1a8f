package ace

// Parameters of application/ace+cbor (RFC 9200, Section 8.10), and of AS
// Request Creation Hints (Section 5.3), which have two of their own.
const (
	paramAccessToken = 1
	paramExpiresIn   = 2
	paramReqCnf      = 4
	paramAudience    = 5
	paramCnf         = 8
	paramScope       = 9
	paramClientID    = 24
	paramError       = 30
	paramGrantType   = 33
	paramTokenType   = 34
	paramProfile     = 38
	paramCNonce      = 39
	paramRSCnf       = 41

	paramNonce2            = 42
	paramServerRecipientID = 44

	// Of introspection (RFC 9200, Section 5.9.2).
	paramActive        = 10
	paramToken         = 11
	paramTokenTypeHint = 33

	paramAS      = 1
	paramHintKID = 2
)

// Values of grant_type and token_type.
const (
	grantClientCredentials = 2
	tokenPoP               = 2
)

// Values of ace_profile (the ACE Profiles registry).
const (
	ProfileDTLS   = 1 // coap_dtls, RFC 9202
	ProfileOSCORE = 2 // coap_oscore, RFC 9203
)

// oauthError is a value of 'error' (RFC 9200, Section 5.8.3).
type oauthError int64

const (
	invalidRequest       oauthError = 1
	invalidClient        oauthError = 2
	unauthorizedClient   oauthError = 4
	unsupportedGrantType oauthError = 5
	invalidScope         oauthError = 6
	unsupportedPoPKey    oauthError = 7
	incompatibleProfiles oauthError = 8
)

func (e oauthError) String() string {
	switch e {
	case invalidRequest:
		return "invalid_request"
	case invalidClient:
		return "invalid_client"
	case unauthorizedClient:
		return "unauthorized_client"
	case unsupportedGrantType:
		return "unsupported_grant_type"
	case invalidScope:
		return "invalid_scope"
	case unsupportedPoPKey:
		return "unsupported_pop_key"
	case incompatibleProfiles:
		return "incompatible_ace_profiles"
	}
	return "error"
}
