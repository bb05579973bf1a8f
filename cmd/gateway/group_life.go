package main

import (
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
)

type groupCreateCmd struct {
	where
	Name        string        `arg:"" help:"Name of the group."`
	SignAlg     string        `default:"EdDSA" help:"Signature algorithm: EdDSA, ES256, ES384, ES512; none: pairwise-only."`
	GpEncAlg    string        `help:"Encryption of the group mode: an AEAD, or A128CTR, A192CTR, A256CTR. Default: AES-CCM-16-64-128."`
	Alg         string        `default:"AES-CCM-16-64-128" help:"AEAD of the pairwise mode; none: signature-only."`
	ECDHCurve   string        `name:"ecdh-curve" help:"Curve of the pairwise mode: X25519, P-256, P-384, P-521. Default: follows the signature algorithm."`
	HKDF        string        `name:"hkdf" default:"HMAC-256" help:"HMAC-256 or HMAC-512."`
	KeyLifetime time.Duration `default:"720h" help:"How long keying material is valid."`
	BatchWindow time.Duration `default:"2s" help:"How long a rekey waits for more causes."`
	OnJoin      bool          `help:"Rekey at each join, so that newcomers read nothing older."`
	GidPrefix   string        `default:"auto" placeholder:"HEX" help:"Prefix of the Gids; auto: one that no group had."`
	GidEpoch    int           `name:"gid-epoch-bytes" default:"4" help:"Bytes of a Gid that count rekeys, 1 to 8."`
	GidReuse    bool          `help:"Begin anew with the first Gid when all are used up."`
	CredFmt     string        `default:"ccs" help:"Format of credentials: ccs or cwt. Groups with x5chain are declared in the configuration, where their roots and keys are."`
	Interface   string        `default:"current" help:"Dialects: current, draft-03, hackathon-109, both."`
	OnRenewal   string        `placeholder:"HOW" help:"What answers a wish for a new Sender ID in an older dialect: new-id (default) or rekey."`
	StaleSets   int           `name:"max-stale-sets" default:"3" help:"Versions whose stale Sender IDs are remembered."`
	Grace       time.Duration `name:"expiry-grace" default:"24h" help:"How long a member may be without a token; 0s: not at all."`
	Batch       time.Duration `name:"expiry-batch" default:"1h" help:"Expired tokens cause one rekey in that time."`
	KeyCheck    uint64        `default:"3600" help:"Key Update Check Interval that members are told, in seconds."`
	Delta       uint64        `name:"expiration-delta" default:"0" help:"Seconds after the expiry of keying material in which members may still decrypt."`
	AppGroup    []string      `help:"Application group that uses the group; may be given several times."`
	Scheme      string        `default:"point-to-point" help:"How rekeys are told: point-to-point, or key-tree for large groups."`
	TreeDegree  int           `default:"4" help:"Children of a node of the key tree."`
	GroupURI    string        `name:"control-group-uri" placeholder:"URI" help:"Where rekeys of the key tree are sent by IP multicast too, such as coap://239.0.0.5:5683/rekey."`
	RetryFor    time.Duration `default:"24h" help:"How long a member that does not answer is tried again by itself; 0s: not at all."`
	Unreachable time.Duration `name:"unreachable-after" default:"168h" help:"Silence after which a member that is behind counts as unreachable."`
	EvictAfter  time.Duration `default:"0s" help:"Silence after which such a member is evicted; 0s: never."`
	Order       string        `name:"activation-order" default:"responders-first" help:"Who is told of a scheduled rekey first: responders-first, or none."`
	Spread      time.Duration `name:"activation-spread" default:"30s" help:"How long a member may wait for a scheduled rekey; 0s: all are told at once."`
	Unlisted    bool          `help:"Leave the group out of /.well-known/core."`
	JSON        bool          `help:"Print JSON."`
}

// group is what a groups entry of the configuration file would say.
func (c *groupCreateCmd) group() config.Group {
	g := config.DefaultGroup()
	g.Name, g.SignAlg, g.GpEncAlg, g.Alg, g.ECDHCurve, g.HKDF = c.Name, c.SignAlg, c.GpEncAlg, c.Alg, c.ECDHCurve, c.HKDF
	g.KeyLifetime, g.Rekey.BatchWindow, g.Rekey.OnJoin = c.KeyLifetime, c.BatchWindow, c.OnJoin
	g.Rekey.Scheme, g.Rekey.TreeDegree, g.Rekey.Multicast = c.Scheme, c.TreeDegree, c.GroupURI
	g.Rekey.OnExpiry = config.OnExpiry{Grace: c.Grace, Batch: c.Batch}
	g.Gid, g.List = config.Gid{Prefix: c.GidPrefix, EpochBytes: c.GidEpoch, Reuse: c.GidReuse}, !c.Unlisted
	g.CredFmt, g.Interface, g.OnRenewal, g.MaxStaleSets, g.AppGroups = c.CredFmt, c.Interface, c.OnRenewal, c.StaleSets, c.AppGroup
	g.Delivery = config.Delivery{RetryFor: c.RetryFor, UnreachableAfter: c.Unreachable, EvictAfter: c.EvictAfter}
	g.Activation = config.Activation{Order: c.Order, Spread: c.Spread}
	g.GroupPolicies = config.GroupPolicies{KeyCheck: c.KeyCheck, ExpirationDelta: c.Delta}
	return g
}

// Validate checks the group as the configuration file's would be; argv calls it,
// so that a fault is a usage error.
func (c *groupCreateCmd) Validate() error {
	_, err := c.group().GroupConfig()
	return err
}

// Run creates a group.
func (c *groupCreateCmd) Run(e *env) error {
	cfg, err := c.group().GroupConfig()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	g, err := client.CreateGroup(e.ctx, admin.AskFor(cfg))
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, g)
	}
	_, err = fmt.Fprintf(e.stdout, "group %s is created, gid %s\n", g.Name, g.Gid)
	return err
}

type groupDeleteCmd struct {
	where
	Name string `arg:"" help:"Name of the group."`
	JSON bool   `help:"Print JSON."`
}

// Run deletes a group.
func (c *groupDeleteCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.DeleteGroup(e.ctx, c.Name)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, r)
	}
	if _, err := fmt.Fprintf(e.stdout, "group %s is deleted\n", r.Group); err != nil {
		return err
	}
	return c.warnDeclared(e)
}

// warnDeclared says when the configuration will bring the group back.
func (c *groupDeleteCmd) warnDeclared(e *env) error {
	cfg, err := c.load()
	if err != nil {
		return nil // the gateway answered without it
	}
	for _, g := range cfg.Groups {
		if g.Name == c.Name {
			_, err := fmt.Fprintf(e.stdout, "The configuration declares it: the next start creates a new group of that name, without members.\n")
			return err
		}
	}
	return nil
}

type groupActivateCmd struct {
	where
	Name string `arg:"" help:"Name of the group."`
	JSON bool   `help:"Print JSON."`
}

// Run activates a group.
func (c *groupActivateCmd) Run(e *env) error { return setActive(e, c.where, c.Name, c.JSON, true) }

type groupDeactivateCmd struct {
	where
	Name string `arg:"" help:"Name of the group."`
	JSON bool   `help:"Print JSON."`
}

// Run deactivates a group.
func (c *groupDeactivateCmd) Run(e *env) error { return setActive(e, c.where, c.Name, c.JSON, false) }

func setActive(e *env, w where, name string, asJSON, active bool) error {
	client, err := w.client()
	if err != nil {
		return err
	}
	g, err := client.SetActive(e.ctx, name, active)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(e.stdout, g)
	}
	state := "inactive"
	if g.Active {
		state = "active"
	}
	_, err = fmt.Fprintf(e.stdout, "group %s is %s\n", g.Name, state)
	return err
}
