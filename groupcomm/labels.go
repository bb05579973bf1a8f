package groupcomm

// Labels of the ACE Groupcomm Parameters registry: keys of the maps with
// Content-Format 261 (RFC 9594, Section 8;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 12).
const (
	labelGid              int64 = 0
	labelGname            int64 = 1
	labelGuri             int64 = 2
	labelScope            int64 = 3
	labelGetCreds         int64 = 4
	labelClientCred       int64 = 5
	labelCNonce           int64 = 6
	labelGkty             int64 = 7
	labelKey              int64 = 8
	labelNum              int64 = 9
	labelProfile          int64 = 10
	labelExp              int64 = 11
	labelExi              int64 = 12
	labelCreds            int64 = 13
	labelPeerRoles        int64 = 14
	labelPeerIdentifiers  int64 = 15
	labelPolicies         int64 = 16
	labelKDCCred          int64 = 17
	labelKDCNonce         int64 = 18
	labelKDCCredVerify    int64 = 19
	labelRekeyingScheme   int64 = 20
	labelSenderID         int64 = 21
	labelClientCredVerify int64 = 24
	labelControlURI       int64 = 26
	labelMgtKeyMaterial   int64 = 27
	labelControlGroupURI  int64 = 28
	labelSignInfo         int64 = 29
	labelKDCChallenge     int64 = 30
	labelECDHInfo         int64 = 31
	labelKDCDHCreds       int64 = 32
	labelSignEncKey       int64 = 33
	labelStaleNodeIDs     int64 = 34
	labelDelivery         int64 = SchemeMQTT
)

// Values of gkty and ace_groupcomm_profile (labels 7 and 10).
const (
	GktyOSCORE int64 = 1 // Group_OSCORE_Input_Material object
	ProfileApp int64 = 1 // coap_group_oscore_app
)

// Keys inside 'key' (label 8): the OSCORE Security Context Parameters registry.
const (
	keyMasterSecret int64 = 2
	keyHKDF         int64 = 3
	keyAlg          int64 = 4
	keySalt         int64 = 5
	keyContextID    int64 = 6
	keySenderID     int64 = 7
	keyCredFmt      int64 = 8
	keyGpEncAlg     int64 = 9
	keySignAlg      int64 = 10
	keySignParams   int64 = 11
	keyECDHAlg      int64 = 12
	keyECDHParams   int64 = 13
)

// Keys inside 'group_policies' (label 16).
const (
	policyKeyCheck        int64 = 1
	policyExpirationDelta int64 = 2
)

// Labels of the OAuth Parameters CBOR Mappings registry that a token transfer
// uses (Content-Format 19).
const (
	paramAccessToken    int64 = 1
	paramNonce1         int64 = 40
	paramNonce2         int64 = 42
	paramClientRecvID   int64 = 43
	paramServerRecvID   int64 = 44
	paramSignInfo       int64 = 45
	paramKDCChallenge   int64 = 46
	paramECDHInfo       int64 = 47
	paramKDCDHCreds     int64 = 48
	paramECDHInfoRISE   int64 = 92 // before the registration of 47
	paramKDCDHCredsRISE int64 = 93 // before the registration of 48
)

// TagScope is the CBOR tag of an extended scope: TN(297) of RFC 9277,
// for application/aif+cbor with the group OSCORE parameters
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 3).
const TagScope uint64 = 1668547115

// emptyAnswer is what a resource answers when nothing matches: one zero-length
// byte string (RFC 9594, Sections 4.2.1 and 4.4.1).
const emptyAnswer = 0x40

// Limits of ours on what is read. Everything else is bounded by the size of the
// body and by package cose.
const (
	maxScopeEntries = 256
	maxGroupNames   = 256
	maxCapabilities = 8   // elements of one capability array
	maxNameLen      = 255 // names of foreign groups; ours are shorter
)
