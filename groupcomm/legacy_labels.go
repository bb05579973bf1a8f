package groupcomm

// Labels of the legacy dialects. The drafts of 2019 and 2020 have none: these are
// the private ones of the interoperability tests at IETF 109. legacyPubKeyEnc,
// legacyClientID and the sub-labels of 'key' are not among those; they are ours.
const (
	legacyKty              int64 = 1 // gkty
	legacyKey              int64 = 2
	legacyPubKeys          int64 = 3
	legacyExp              int64 = 4
	legacyScope            int64 = 9
	legacyProfile          int64 = 38
	legacyCNonce           int64 = 39
	legacyGetPubKeys       int64 = 101
	legacyClientCred       int64 = 102
	legacyClientCredVerify int64 = 103
	legacySignInfo         int64 = 203
	legacyPubKeyEnc        int64 = 204
	legacyChallenge        int64 = 205 // rsnonce, later kdcchallenge
	legacyNum              int64 = 206
	legacyPolicies         int64 = 207
	legacyPeerRoles        int64 = 208
	legacyClientID         int64 = 209 // in a key renewal
)

// Labels inside 'key': those of draft-ietf-ace-oscore-profile in 2019, which the Java
// clients of the interoperability tests have too. serverId, 3, has no place here; rpl,
// the replay window, 8, is not sent, and not looked at.
const (
	legacyKeyMS          int64 = 1
	legacyKeyClientID    int64 = 2
	legacyKeyHKDF        int64 = 4
	legacyKeyAlg         int64 = 5
	legacyKeySalt        int64 = 6
	legacyKeyContextID   int64 = 7
	legacyKeyCSAlg       int64 = 9
	legacyKeyCSParams    int64 = 10
	legacyKeyCSKeyParams int64 = 11
	legacyKeyCSKeyEnc    int64 = 12
)

// Keys inside 'group_policies'. Sequence number synchronization, 1, is not told.
const (
	legacyPolicyKeyCheck        int64 = 2
	legacyPolicyExpirationDelta int64 = 3 // not in draft-03
)

// PubKeyEncCOSEKey is the only value of pub_key_enc and cs_key_enc: COSE_Key, by
// its number as a CWT confirmation method
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.1).
const PubKeyEncCOSEKey int64 = 1

// Labels of a COSE_Key, as keys of the countersignature parameters.
const (
	coseKty int64 = 1
	coseCrv int64 = -1
)
