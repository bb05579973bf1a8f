package config

import (
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/groupcomm/keytree"
)

// Names of the files that the gateway creates in its data folder, besides
// node.ClientFile.
const (
	IssuerKeyFile  = "as.key"      // key of the embedded AS
	SealKeyFile    = "seal.key"    // seals secrets at rest
	AdminTokenFile = "admin.token" // bearer token of the admin API
)

// Default returns the configuration of an empty file: every interface of the
// machine is served, no group exists and no token is accepted.
func Default() *Config {
	return &Config{
		DataDir: "groupgate-data",
		Listen: Listen{
			CoAPS: ":5684",
			CoAP:  ":5683",
			HTTP:  "127.0.0.1:8080",
			MQTT:  "127.0.0.1:1883",
		},
		Store:               "sqlite:groupgate.db",
		Multicast:           Multicast{Hops: 1},
		AuthorizationServer: AuthorizationServer{Enabled: true, Issuer: "as1"},
		Seal:                Seal{KeyFile: SealKeyFile},
		Endpoint:            Endpoint{Kind: EndpointOwn, Handshake: HandshakeOwn, Shards: 1, PersistSessions: true, HibernateAfter: time.Minute},
		Limits:              Limits{Sessions: 200000, Handshakes: 256, MemoryMB: 512, PerPeerRPS: 50, NotifyRPS: 40000},
		MQTT:                MQTT{TopicPrefix: "groupgate"},
		ResourceDirectory:   ResourceDirectory{Lifetime: 25 * time.Hour},
		Proxy:               Proxy{Enabled: true, CacheMB: 16, UDPRPS: 5, GroupTimeout: time.Minute},
		Compat:              Compat{RISELabels: true},
		Audit:               Audit{Retention: 2160 * time.Hour, MaxRecords: 1_000_000},
		Log:                 Log{Level: "info", Format: "text"},
	}
}

// defaultAEAD protects messages of both modes
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 14).
const defaultAEAD = "AES-CCM-16-64-128"

// DefaultGroup returns what a groups entry holds for the keys that it lacks.
func DefaultGroup() Group {
	var g Group
	g.setDefaults()
	return g
}

func (g *Group) setDefaults() {
	*g = Group{
		GM:          "local",
		Interface:   "current",
		SignAlg:     "EdDSA",
		Alg:         defaultAEAD,
		HKDF:        "HMAC-256",
		CredFmt:     "ccs",
		KeyLifetime: 720 * time.Hour,
		Rekey: Rekey{
			BatchWindow: 2 * time.Second,
			Scheme:      "point-to-point",
			TreeDegree:  keytree.DefaultDegree,
			OnExpiry:    OnExpiry{Grace: 24 * time.Hour, Batch: time.Hour},
		},
		Delivery:      Delivery{RetryFor: 24 * time.Hour, UnreachableAfter: 168 * time.Hour},
		Activation:    Activation{Order: groupcomm.OrderRespondersFirst, Spread: groupcomm.DefaultSpread},
		MaxStaleSets:  3,
		Gid:           Gid{Prefix: "auto", EpochBytes: 4},
		GroupPolicies: GroupPolicies{KeyCheck: 3600},
		List:          true,
		Network:       Network{Leisure: time.Second, Collect: 5 * time.Second},
		Upstream:      Upstream{RelayFlows: 1024},
	}
}

func (d *Delegate) setDefaults() {
	*d = Delegate{Awake: 10 * time.Second, Hold: 30 * time.Second, RPS: 10}
}

func (r *ProxyReverse) setDefaults() {
	r.ProxyVia.setDefaults()
	r.List = true
}

func (v *ProxyVia) setDefaults() {
	*v = ProxyVia{Timeout: 30 * time.Second, Parallel: 16, BlockSize: 1024}
}

func (p *Policy) setDefaults() { *p = Policy{Lifetime: 24 * time.Hour} }

// The generated parts of [Embedded].
const (
	embeddedAudience = "groupgate"
	embeddedGroup    = "sensors"
	embeddedClient   = "node"
)

// Embedded returns the configuration of a first run without a file: listeners
// on loopback only, one group, and the embedded AS with one client whose random
// key Bootstrap creates (docs/protocol.md, Section 11).
func Embedded() *Config {
	c := Default()
	c.embedded = true
	c.Listen.CoAPS = "127.0.0.1:5684"
	c.Listen.CoAP = "127.0.0.1:5683"
	c.Tokens = []Token{{
		Issuer:           c.AuthorizationServer.Issuer,
		Audience:         embeddedAudience,
		SymmetricKeyFile: IssuerKeyFile,
	}}
	c.AuthorizationServer.Policies = []Policy{{
		Client:   embeddedClient,
		Audience: embeddedAudience,
		Scope:    []ScopeEntry{{Group: embeddedGroup, Roles: []string{"requester", "responder"}}},
		Lifetime: 24 * time.Hour,
	}}
	g := DefaultGroup()
	g.Name = embeddedGroup
	c.Groups = []Group{g}
	return c
}
