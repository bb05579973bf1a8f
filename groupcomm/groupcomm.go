// Package groupcomm is the vocabulary of key management for OSCORE groups in
// ACE (RFC 9594 and draft-ietf-ace-key-groupcomm-oscore-21): identifiers,
// roles, scopes and the messages with their codecs. Plain types: no behaviour
// beyond encoding, no I/O.
//
// Every message type M has an Encode method that gives core-deterministic CBOR
// and a function DecodeM that is strict: duplicate keys, indefinite lengths,
// trailing bytes and wrong types are errors; unknown map keys are ignored
// (RFC 9594, Section 4.1.2).
package groupcomm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// Gid is the OSCORE ID Context of a group at one version of its keying
// material.
type Gid []byte

// GidsMeet says whether two groups whose Gids are a prefix and an epoch of so many
// bytes (draft-ietf-core-oscore-groupcomm-28, Appendix C) could come to have one Gid.
func GidsMeet(prefix []byte, epochBytes int, other []byte, otherEpochBytes int) bool {
	return len(prefix)+epochBytes == len(other)+otherEpochBytes && (bytes.HasPrefix(prefix, other) || bytes.HasPrefix(other, prefix))
}

func (g Gid) String() string { return hex.EncodeToString(g) }

// SenderID identifies an endpoint under one Gid. It may have length zero; nil
// means that there is none (a monitor).
type SenderID []byte

func (s SenderID) String() string { return hex.EncodeToString(s) }

// Version is the number of the group keying material, 'num'.
type Version = uint64

// Roles is a Tperm of AIF-OSCORE-GROUPCOMM: the OR of 2^role.
type Roles uint32

// Roles of draft-ietf-ace-key-groupcomm-oscore-21, Section 3.
const (
	Requester Roles = 1 << 1
	Responder Roles = 1 << 2
	Monitor   Roles = 1 << 3
	Verifier  Roles = 1 << 4
)

// ScopeEntry is one user entry of a scope: a group name and roles.
type ScopeEntry struct {
	Group string
	Roles Roles
}

// Scope is the scope of an access token: several entries
// (AIF-OSCORE-GROUPCOMM).
type Scope []ScopeEntry

// GroupConfig is the configuration of a group that its members learn, and the
// policies under which it is run. Algorithms are COSE identifiers; 0 means that
// the group does not use the algorithm.
type GroupConfig struct {
	Name     string
	SignAlg  int64 // -8 EdDSA, -7 ES256
	GpEncAlg int64 // 10 AES-CCM-16-64-128
	Alg      int64 // pairwise AEAD, 0 for a signature-only group
	ECDHAlg  int64 // -27 ECDH-SS+HKDF-256
	ECDHCrv  int64 // 4 X25519, 1 P-256
	HKDF     int64 // 5 HMAC 256/256
	CredFmt  int64 // 14 kccs

	KeyLifetime     time.Duration
	RekeyOnJoin     bool
	BatchWindow     time.Duration
	ExpiryGrace     time.Duration
	ExpiryBatch     time.Duration
	MaxStaleSets    int
	KeyCheck        uint64 // group_policies 1: Key Update Check Interval, seconds
	ExpirationDelta uint64 // group_policies 2, seconds
	GidPrefix       []byte // nil: one random byte chosen at creation
	GidEpochBytes   int
	GidReuse        bool     // Gids are used again when the epochs are used up
	List            bool     // shown in /.well-known/core and the Resource Directory
	AppGroups       []string // application groups that use the group: app-gp of its link

	// Interface says in which dialects the group is served.
	Interface Interface `json:",omitempty"`
	// KeyTree is the degree of the group's key tree (rekeying_scheme -65538); 0:
	// members are told one by one.
	KeyTree uint32 `json:",omitempty"`
	// ControlGroupURI is where rekeys of the key tree are sent by IP multicast
	// too; "": nowhere.
	ControlGroupURI string `json:",omitempty"`
	// RekeyOnRenewal: a member that asks for a new Sender ID in a legacy dialect
	// is refused with 4.06, and the whole group is rekeyed.
	RekeyOnRenewal bool `json:",omitempty"`
	// Activation says in which order members are told of scheduled rekeys.
	Activation Activation `json:",omitzero"`
	// Delivery says how long members are run after that are behind.
	Delivery DeliveryPolicy `json:",omitzero"`
}

// DeliveryPolicy says how long a group's members are run after. Zero values mean the
// defaults, but for EvictAfter.
type DeliveryPolicy struct {
	RetryFor         time.Duration `json:",omitempty"` // without a sign of life; negative: not at all
	UnreachableAfter time.Duration `json:",omitempty"` // of silence
	EvictAfter       time.Duration `json:",omitempty"` // of silence; 0: never
}

// Activation is how a scheduled rekey reaches the members of a group: one that
// nobody has to be kept out by. Other rekeys are told to everybody at once.
type Activation struct {
	// RespondersFirst: who may be asked is told before those who only ask.
	RespondersFirst bool `json:",omitempty"`
	// Spread bounds how long a member may be kept waiting; 0: nobody is.
	Spread time.Duration `json:",omitempty"`
}

// PhasedTopic is what members that asked for two phases observe in place of the
// group, and PhasedVersion a version of it: each of the group's has two, the first of
// which is not active.
func PhasedTopic(group string) string { return "gm/" + group + "/phased" }

// PhasedVersion is the version of a [PhasedTopic].
func PhasedVersion(num Version, active bool) uint64 {
	if active {
		return 2*num + 1
	}
	return 2 * num
}

// Orders of an [Activation], as they are written.
const (
	OrderRespondersFirst = "responders-first"
	OrderNone            = None
)

// Order names the order.
func (a Activation) Order() string {
	if a.RespondersFirst {
		return OrderRespondersFirst
	}
	return OrderNone
}

// SignInfoEntry is one entry of 'sign_info': [id, sign_alg, sign_params_alg,
// sign_params_key, cred_fmt] (RFC 9594, Section 3.3.1), and with ECDH values
// one of 'ecdh_info'.
type SignInfoEntry struct {
	Groups    []string // encoded as a text string when there is exactly one
	Alg       int64
	AlgParams []int64 // capabilities of the algorithm, [kty]
	KeyParams []int64 // capabilities of the key, [kty, crv]
	CredFmt   int64
}

// KeyMap is the Group_OSCORE_Input_Material object, 'key' (label 8), with the
// labels of the OSCORE Security Context Parameters registry. Algorithm values
// of 0 are left out.
type KeyMap struct {
	MasterSecret []byte    // 2
	HKDF         int64     // 3
	Alg          int64     // 4
	Salt         []byte    // 5, nil: left out
	ContextID    Gid       // 6
	SenderID     SenderID  // 7, nil: left out
	CredFmt      int64     // 8
	GpEncAlg     int64     // 9
	SignAlg      int64     // 10
	SignParams   [][]int64 // 11
	ECDHAlg      int64     // 12
	ECDHParams   [][]int64 // 13
}

// GetCreds is the value of 'get_creds' (label 4): All for null, else the
// filter [Inclusion, Roles, IDs].
type GetCreds struct {
	All       bool
	Inclusion bool
	Roles     []Roles
	IDs       []SenderID
}

// JoinRequest is the body of POST /ace-group/NAME (label numbers behind the
// fields). nil byte fields are absent; empty non-nil ones are present and
// empty, which means something else.
type JoinRequest struct {
	Scope            []byte    // 3: the bytes inside the bstr, CBOR [gname, roles]
	GetCreds         *GetCreds // 4
	ClientCred       []byte    // 5
	CNonce           []byte    // 6
	ClientCredVerify []byte    // 24
	ControlURI       string    // 26
	Delivery         *Delivery // -65537, a private label of this project
}

// Delivery is the value of the private parameter 'delivery' (-65537): how a
// member wants to be told of rekeys.
type Delivery struct {
	Channel string // 0: "mqtt" or "multicast"; "": the ones of RFC 9594
	Phased  bool   // 1: "phased": it takes part in a switch of two phases
	Tree    bool   // 2: true: it follows a key tree, if the group has one

	// Degree is that of the group's key tree, 0: none. It is not on the wire.
	Degree uint32
}

// KeyDistribution is the body of a Join Response and of GET on the group or
// the node resource; the fields that a message lacks are nil or zero.
type KeyDistribution struct {
	Key             KeyMap     // 8 (with gkty 7 = 1)
	Num             Version    // 9
	Profile         int64      // 10 = 1
	Exp             int64      // 11, seconds since 1970; 0: left out
	Exi             int64      // 12, seconds left
	Creds           [][]byte   // 13; nil: 13, 14 and 15 are left out
	PeerRoles       []Roles    // 14
	PeerIdentifiers []SenderID // 15
	Policies        *Policies  // 16
	KDCCred         []byte     // 17
	KDCNonce        []byte     // 18
	KDCCredVerify   []byte     // 19
	RekeyingScheme  *int64     // 20
	MgtKeyMaterial  []byte     // 27
	ControlGroupURI string     // 28: where one-to-many rekeys are sent by IP multicast
	ActivateIn      uint64     // -65537: as in a RekeyMessage
}

// Policies is 'group_policies' (label 16).
type Policies struct {
	KeyCheck        uint64 // 1
	ExpirationDelta uint64 // 2
}

// RekeyMessage is the body of a rekey notification
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1): {7, 8: {2, 6, ? 5},
// 9, 10, 11, 12, 34}.
type RekeyMessage struct {
	MasterSecret []byte
	ContextID    Gid
	Salt         []byte // nil: left out, which means an empty Master Salt
	Num          Version
	Exp, Exi     int64
	Stale        []SenderID // 34, present even when empty

	// Newcomers, when joins caused the rekey: 13, 14, 15, in parallel. No
	// credentials: all three are left out.
	Creds           [][]byte
	PeerRoles       []Roles
	PeerIdentifiers []SenderID

	// ActivateIn is -65537: {1: seconds}, for members that asked for two phases: the
	// material is to be used when the same message comes without it, and by itself
	// after so many seconds. 0: at once, the label is left out.
	ActivateIn uint64
}

// CredsResponse is the answer to GET and FETCH on creds.
type CredsResponse struct {
	Num             Version
	Creds           [][]byte
	PeerRoles       []Roles
	PeerIdentifiers []SenderID
}

// MgtKeyMaterial is what the private rekeying schemes put into label 27: the
// member's key and its MQTT coordinates, and with -65538 its part of the key tree.
// Then Key is that of its leaf, and there are no coordinates if it listens to IP
// multicast; a later answer leaves the password out.
type MgtKeyMaterial struct {
	KID      []byte // 0: 8 bytes, unique per Group Manager
	Key      []byte // 1: K_m
	Alg      int64  // 2
	BaseIV   []byte // 3
	Broker   string // 4
	Topic    string // 5
	User     string // 6
	Password string // 7
	AckTopic string // 8

	Tree      []byte // 9: of package keytree; nil: none
	TreeTopic string // 10: topics of nodes are below it, /LEVEL/INDEX

	// In a group that uses the pairwise mode only: the credential that
	// countersigns rekeys, and the proof that the Group Manager has its key.
	KDCCred       []byte // 17
	KDCNonce      []byte // 18
	KDCCredVerify []byte // 19
}

// SchemeMQTT is the private value of rekeying_scheme (label 20) and the label
// of 'delivery'.
const SchemeMQTT int64 = -65537

// SchemeKeyTree is the private value of rekeying_scheme (label 20) of a key tree.
const SchemeKeyTree int64 = -65538

// Grant is what a peer may do now, as its access token says. It is looked up
// anew at every request.
type Grant struct {
	Token   string // identifies the stored token; not the token
	Subject coap.Subject
	Scope   Scope
	Expires time.Time // zero: never
	// PublicKey is the key of proof of the token, which the peer has shown in its
	// handshake; nil when that is a symmetric one.
	PublicKey *cose.Key
	// Challenges are the values of N_S that a proof of possession may cover,
	// newest first.
	Challenges [][]byte
	// Exported says that the token came in psk_identity, so that N_S is an
	// exporter value until a challenge replaces it.
	Exported bool
}

// ErrPlanMoved says that what a rekey was prepared for changed before it was
// written: it is prepared again.
var ErrPlanMoved = errors.New("groupcomm: the delivery changed since the rekey was prepared")

// RekeyPlan is a decided rekey that is not yet on disk: what is to be
// delivered, and to whom.
type RekeyPlan struct {
	Group   string
	Num     Version
	Message []byte // encoded RekeyMessage
	// Excluded are the node names of members that are not entitled to it: their
	// tokens expired, or this rekey evicts them.
	Excluded []string
	SignAlg  int64
	// Sign signs with the Group Manager's key of this group.
	Sign func(message []byte) ([]byte, error)
	// Activation is the order in which members are told; zero: all at once.
	Activation Activation
}

// Member is one group member as the Group Manager tells it to other rooms.
type Member struct {
	Group    string
	Node     string
	Subject  coap.Subject
	SenderID SenderID
	Roles    Roles
	Lapsed   bool // its token expired; gets no newer key
	Expires  time.Time
	JoinedAt Version // version given at the latest join

	ControlURI string // where it takes requests of the Group Manager; "": nowhere
	Phased     bool   // it takes part in a switch of two phases
}

// GroupStatus is one group as operators see it.
type GroupStatus struct {
	Name    string
	Gid     Gid
	Version Version
	Active  bool
	Exp     time.Time
	Members int
	Due     bool // a rekey is due and waits for its batch window
}

// Kinds of events that rooms write in the transaction of a change and follow
// with durable cursors. The key of an event is the group name, but for
// token events, whose key is the hex of kind and subject.
const (
	EventRekeyed      = "group.rekeyed"
	EventJoined       = "group.joined"
	EventLeft         = "group.left"
	EventEvicted      = "group.evicted"
	EventDeleted      = "group.deleted"
	EventNewCred      = "group.credential" // a member replaced its credential
	EventSenderID     = "group.sender-id"  // a member has a new Sender ID
	EventCreated      = "group.created"
	EventConfigured   = "group.configured"     // other policies
	EventState        = "group.state"          // Reason: the state
	EventUnreachable  = "delivery.unreachable" // a member is behind and silent for long
	EventDelivered    = "delivery.done"        // every member confirmed the version
	EventTokenExpired = "token.expired"
	EventTokenStored  = "token.stored"
)

// NoteRekeyFailed is told for the audit log; it is no event, for nothing
// changed.
const NoteRekeyFailed = "group.rekey-failed"

// StateActive is the Reason of an [EventState] that activated a group.
const StateActive = "active"

// Event is the content of an entry of the event log.
type Event struct {
	Group   string
	Node    string
	Version Version
	Subject coap.Subject
	Reason  string
	Expires int64 // token events: seconds since 1970

	// For the audit log, where they apply; zero values are left out.
	SenderID SenderID // nil: none
	Gid      Gid
	Roles    Roles
	Addr     string // of the peer whose request it was

	ControlURI string // of a member that left or was evicted
}
