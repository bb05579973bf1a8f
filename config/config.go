// Package config reads the gateway's configuration: one YAML file, strict, with
// a default for every key.
//
// [Load] parses and validates without touching anything but the file;
// [Config.Bootstrap] then creates what the gateway itself owns (data folder,
// keys, tokens) and reads every key that the file names. Without a file,
// [Embedded] is a complete gateway on loopback. configs/gateway.yaml explains
// every key.
package config

import (
	"crypto/x509"
	"path/filepath"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

// Config is the whole configuration. Names of files are relative to DataDir.
type Config struct {
	DataDir             string              `yaml:"data_dir"` // created 0700
	Listen              Listen              `yaml:"listen"`
	Store               string              `yaml:"store"` // "sqlite:FILE" or "postgres://USER@HOST/DATABASE"
	Tokens              []Token             `yaml:"tokens"`
	PSK                 []PSK               `yaml:"psk"`
	AuthorizationServer AuthorizationServer `yaml:"authorization_server"`
	Seal                Seal                `yaml:"seal"`
	Endpoint            Endpoint            `yaml:"endpoint"`
	Limits              Limits              `yaml:"limits"`
	Groups              []Group             `yaml:"groups"`
	Delegates           []Delegate          `yaml:"delegates"`
	MQTT                MQTT                `yaml:"mqtt"`
	Multicast           Multicast           `yaml:"multicast"`
	ResourceDirectory   ResourceDirectory   `yaml:"resource_directory"`
	Proxy               Proxy               `yaml:"proxy"`
	Compat              Compat              `yaml:"compat"`
	Audit               Audit               `yaml:"audit"`
	Log                 Log                 `yaml:"log"`

	StorePassword Secret `yaml:"-"` // of Store; in the file it is part of the URL

	AdminToken Secret `yaml:"-"` // bearer token of the admin API, filled by Bootstrap

	file     string         // where it was read from; "" for none
	lines    map[string]int // key path → line in file
	warnings []string
	embedded bool // from Embedded: Bootstrap adds the generated node client
}

// Listen holds the addresses to serve on, "host:port"; "" serves none.
type Listen struct {
	CoAPS string `yaml:"coaps"` // CoAP over DTLS 1.2, UDP
	CoAP  string `yaml:"coap"`  // plain UDP: discovery, /authz-info, and what OSCORE protects
	HTTP  string `yaml:"http"`  // health, metrics, admin API
	MQTT  string `yaml:"mqtt"`  // embedded broker, plain TCP
	MQTTS string `yaml:"mqtts"` // embedded broker, TLS

	CoAPSCertFile  string `yaml:"coaps_cert_file"`  // PEM: the gateway's certificate, then those above it
	CoAPSKeyFile   string `yaml:"coaps_key_file"`   // PEM, PKCS #8
	CoAPSRootsFile string `yaml:"coaps_roots_file"` // PEM: to which nodes' certificates may lead

	MQTTSCertFile string `yaml:"mqtts_cert_file"` // PEM
	MQTTSKeyFile  string `yaml:"mqtts_key_file"`  // PEM

	CoAPSCert *Certificate `yaml:"-"` // filled by Bootstrap; nil: none
}

// Token says which access tokens are accepted, and the key that protects them.
type Token struct {
	Issuer   string `yaml:"issuer"` // "": not checked; else checked when the token carries iss
	Audience string `yaml:"audience"`
	Alg      string `yaml:"alg"` // "": AES-CCM-16-64-128 with a symmetric key, else as the public key says

	SymmetricKey      Secret `yaml:"symmetric_key"`       // hex in the file
	SymmetricKeyFile  string `yaml:"symmetric_key_file"`  // hex
	PublicKeyFile     string `yaml:"public_key_file"`     // PEM, SubjectPublicKeyInfo
	EncryptionKeyFile string `yaml:"encryption_key_file"` // hex; opens an Encrypted_COSE_Key in COSE_Mac0 and COSE_Sign1 tokens
	DerivationKeyFile string `yaml:"derivation_key_file"` // hex; RFC 9202, Section 3.3.1

	ASURI      string     `yaml:"as_uri"`     // token endpoint that peers are told of; "": none
	Introspect Introspect `yaml:"introspect"` // an entry with it needs no key
	Revocation Revocation `yaml:"revocation"`

	// Filled by Bootstrap, besides SymmetricKey.
	PublicKey     *cose.Key `yaml:"-"`
	EncryptionKey Secret    `yaml:"-"`
	DerivationKey Secret    `yaml:"-"`
}

// Introspect is the introspection endpoint of an Authorization Server (RFC 9200,
// Section 5.9), which tells what tokens mean that no key opens.
type Introspect struct {
	URI      string `yaml:"uri"`      // coaps://; "": none
	Identity string `yaml:"identity"` // psk_identity
	KeyFile  string `yaml:"key_file"` // hex

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// Revocation is the Token Revocation List of an Authorization Server (RFC 9770).
type Revocation struct {
	URI      string        `yaml:"uri"`      // coaps://; "": none
	Identity string        `yaml:"identity"` // psk_identity
	KeyFile  string        `yaml:"key_file"` // hex
	Interval time.Duration `yaml:"interval"` // between full queries besides notifications; 0: 5m

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// PSK is a DTLS peer with a configured key: a client of the embedded AS.
type PSK struct {
	Identity string   `yaml:"identity"`
	Key      Secret   `yaml:"key"`      // hex in the file; filled by Bootstrap
	KeyFile  string   `yaml:"key_file"` // hex
	May      []string `yaml:"may"`      // "token", "introspect", "trl", "proxy"
}

// AuthorizationServer is the embedded AS. It protects tokens with the key of
// the tokens entry that has its issuer and the policy's audience.
type AuthorizationServer struct {
	Enabled  bool     `yaml:"enabled"`
	Issuer   string   `yaml:"issuer"`
	Policies []Policy `yaml:"policies"` // none: it issues nothing
}

// Policy lets one client have tokens for one audience, up to Scope.
type Policy struct {
	Client   string        `yaml:"client"` // identity of a psk entry
	Audience string        `yaml:"audience"`
	Scope    []ScopeEntry  `yaml:"scope"`
	Lifetime time.Duration `yaml:"lifetime"`
	Profile  string        `yaml:"profile"` // coap_dtls, coap_oscore; "": what the client asks for, else coap_dtls
}

// ScopeEntry is one group and the roles in it: requester, responder, monitor,
// verifier.
type ScopeEntry struct {
	Group string   `yaml:"group"`
	Roles []string `yaml:"roles"`
}

// Seal says where the key is that seals secrets at rest. The environment
// variable GROUPGATE_SEAL_KEY (64 hex digits) goes before the file.
type Seal struct {
	KeyFile string `yaml:"key_file"` // hex, 32 bytes; created when absent

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// The kinds of servers under listen.coaps and listen.coap.
const (
	EndpointOwn   = "own"   // the gateway's own, for very many sleeping nodes
	EndpointStock = "stock" // those of go-coap and pion

	HandshakePion = "pion" // handshakes with pre-shared keys by pion
	HandshakeOwn  = "own"  // by the gateway itself, as those with raw public keys always are
)

// Endpoint says which servers nodes talk to.
type Endpoint struct {
	Kind      string `yaml:"kind"`      // EndpointOwn or EndpointStock
	Handshake string `yaml:"handshake"` // HandshakePion or HandshakeOwn; of the own endpoint
	Shards    int    `yaml:"shards"`    // of the own endpoint; 0: one for each core
	// PersistSessions has associations and observations outlive the process.
	PersistSessions bool `yaml:"persist_sessions"`
	// HibernateAfter is how long an association is silent before it is compacted.
	HibernateAfter time.Duration `yaml:"hibernate_after"`
}

// Limits bounds what peers can make the gateway hold or do.
type Limits struct {
	Sessions   int     `yaml:"sessions"`     // DTLS associations
	Handshakes int     `yaml:"handshakes"`   // half-open at one time
	MemoryMB   int     `yaml:"memory_mb"`    // MiB that peers may take together; 0: no bound but the others
	PerPeerRPS float64 `yaml:"per_peer_rps"` // requests per second of one peer

	// What is sent unasked, in messages per second; 0: no limit.
	NotifyRPS float64 `yaml:"notify_rps"`
	SubnetRPS float64 `yaml:"notify_subnet_rps"` // to one IPv4 /24 or IPv6 /64
}

// Group is one OSCORE group. Algorithms are named as in design and IANA
// registries; GroupConfigs translates them.
type Group struct {
	Name         string        `yaml:"name"`
	GM           string        `yaml:"gm"`
	Interface    string        `yaml:"interface"`
	OnRenewal    string        `yaml:"on_renewal"` // "" or new-id, rekey
	SignAlg      string        `yaml:"sign_alg"`
	GpEncAlg     string        `yaml:"gp_enc_alg"` // "": AES-CCM-16-64-128; none with SignAlg none
	Alg          string        `yaml:"alg"`
	ECDHAlg      string        `yaml:"ecdh_alg"`   // "": the one that fits HKDF; none with Alg none
	ECDHCurve    string        `yaml:"ecdh_curve"` // "": the curve that fits SignAlg
	HKDF         string        `yaml:"hkdf"`
	CredFmt      string        `yaml:"cred_fmt"`
	KeyLifetime  time.Duration `yaml:"key_lifetime"`
	Rekey        Rekey         `yaml:"rekey"`
	Delivery     Delivery      `yaml:"delivery"`
	Activation   Activation    `yaml:"activation"`
	MaxStaleSets int           `yaml:"max_stale_sets"`
	Gid          Gid           `yaml:"gid"`
	X5RootsFile  string        `yaml:"x5_roots_file"` // PEM: the roots of members' certificates
	X5CertFile   string        `yaml:"x5_cert_file"`  // PEM: the Group Manager's certificate and those above
	X5KeyFile    string        `yaml:"x5_key_file"`   // PEM, PKCS #8: its key

	X5 *X5 `yaml:"-"` // filled by Bootstrap from the three files

	GroupPolicies GroupPolicies `yaml:"policies"`
	List          bool          `yaml:"list"`
	AppGroups     []string      `yaml:"app_groups"` // names of application groups that use it

	Network  Network  `yaml:"network"`
	Upstream Upstream `yaml:"upstream"`
}

// X5 is what a group with certificates as credentials needs.
type X5 struct {
	Roots *x509.CertPool
	Key   *cose.Key
	Chain []byte // credential of kind x5chain
}

// Rekey says when a group's keying material is renewed.
type Rekey struct {
	OnJoin      bool          `yaml:"on_join"`
	OnStart     bool          `yaml:"on_start"`
	BatchWindow time.Duration `yaml:"batch_window"`
	Scheme      string        `yaml:"scheme"` // point-to-point or key-tree
	TreeDegree  int           `yaml:"tree_degree"`
	Multicast   string        `yaml:"control_group_uri"` // where rekeys of a key tree are multicast too; "": nowhere
	OnExpiry    OnExpiry      `yaml:"on_expiry"`
}

// OnExpiry says how the expiry of members' tokens is treated.
type OnExpiry struct {
	Grace time.Duration `yaml:"grace"`
	Batch time.Duration `yaml:"batch"`
}

// Delivery says how long members are run after that are behind.
type Delivery struct {
	RetryFor         time.Duration `yaml:"retry_for"`         // without a sign of life; 0: never
	UnreachableAfter time.Duration `yaml:"unreachable_after"` // of silence
	EvictAfter       time.Duration `yaml:"evict_after"`       // of silence; 0: never
}

// Activation says in which order members are told of scheduled rekeys.
type Activation struct {
	Order  string        `yaml:"order"`  // responders-first or none
	Spread time.Duration `yaml:"spread"` // so long a member waits at most; 0: not at all
}

// Gid says how group identifiers are made.
type Gid struct {
	Prefix     string `yaml:"prefix"` // "auto" or hex
	EpochBytes int    `yaml:"epoch_bytes"`
	Reuse      bool   `yaml:"reuse"`
}

// GroupPolicies are the values of 'group_policies', in seconds.
type GroupPolicies struct {
	KeyCheck        uint64 `yaml:"key_check"`
	ExpirationDelta uint64 `yaml:"expiration_delta"`
}

// Multicast says where rekeys of key trees leave for their control_group_uri.
type Multicast struct {
	Interface string `yaml:"interface"` // "": as the system routes
	Hops      int    `yaml:"hops"`      // routers that let it pass, 1: none
}

// MQTT is the broker over which sleeping members are rekeyed.
type MQTT struct {
	Broker       string `yaml:"broker"` // "": the embedded one
	TopicPrefix  string `yaml:"topic_prefix"`
	PublicURI    string `yaml:"public_uri"` // what members are told; "": made from broker or listen
	CAFile       string `yaml:"ca_file"`    // PEM; "": the system's roots
	CertFile     string `yaml:"cert_file"`  // PEM, client certificate
	KeyFile      string `yaml:"key_file"`   // PEM
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`

	// The account that all members share at a broker that does not know the
	// credentials which the gateway gives each of them; "": each its own.
	MemberUser         string `yaml:"member_user"`
	MemberPasswordFile string `yaml:"member_password_file"`

	Insecure bool `yaml:"insecure"` // allows MQTT without TLS beyond loopback

	// Filled by Bootstrap.
	Password       Secret `yaml:"-"`
	MemberPassword Secret `yaml:"-"`
}

// ResourceDirectory is a CoRE Resource Directory (RFC 9176) at which the listed
// groups are registered.
type ResourceDirectory struct {
	URI      string        `yaml:"uri"`      // coap:// or coaps://; "": none. Without a path the resource is asked for
	Endpoint string        `yaml:"endpoint"` // ep
	D        string        `yaml:"d"`        // sector; "": none
	Base     string        `yaml:"base"`     // what links are relative to; "": coaps:// and the address of listen.coaps
	Lifetime time.Duration `yaml:"lifetime"` // lt
	Identity string        `yaml:"identity"` // psk_identity with coaps
	KeyFile  string        `yaml:"key_file"` // hex

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// Compat holds switches for peers that differ from the specifications.
type Compat struct {
	RISELabels bool `yaml:"rise_labels"` // labels 92 and 93 in the token POST
}

// Audit says what the audit log keeps.
type Audit struct {
	Retention  time.Duration `yaml:"retention"`
	MaxRecords int           `yaml:"max_records"`
}

// Log says how the gateway logs, to standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// File returns the name of the file that the configuration came from, "" for
// none.
func (c *Config) File() string { return c.file }

// Warnings returns what is legal but deserves a look, one sentence each. They
// hold no secrets.
func (c *Config) Warnings() []string { return c.warnings }

// Path returns the name of a file that a key of the configuration holds,
// relative to the data folder.
func (c *Config) Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.DataDir, name)
}
