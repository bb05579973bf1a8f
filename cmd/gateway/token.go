package main

import (
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// tokenCmd works with access tokens.
type tokenCmd struct {
	Issue  tokenIssueCmd  `cmd:"" help:"Issue an access token with a fresh key, as the embedded Authorization Server would."`
	Revoke tokenRevokeCmd `cmd:"" help:"End access tokens at once: members that they admitted are evicted, and their groups rekeyed."`
}

type tokenRevokeCmd struct {
	where
	Tokens []string `arg:"" placeholder:"TOKEN" help:"Access token in hex, or its token hash (RFC 9770)."`
	JSON   bool     `help:"Print JSON."`
}

// Run revokes tokens, known to the gateway or not.
func (c *tokenRevokeCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.RevokeTokens(e.ctx, c.Tokens)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, r)
	}
	_, err = fmt.Fprintf(e.stdout, "revoked: %d, in force here until now: %d\n", r.Revoked, r.Ended)
	return err
}

type tokenIssueCmd struct {
	where
	Scope    []string      `required:"" sep:"none" placeholder:"GROUP=ROLE,ROLE" help:"What the token allows; may be repeated. Roles: requester, responder, monitor, verifier."`
	Audience string        `help:"Audience. Default: that of the only entry in tokens to issue with."`
	Lifetime time.Duration `default:"24h" help:"How long it is valid."`
	OSCORE   bool          `name:"oscore" help:"Issue a token of the OSCORE profile (RFC 9203), with OSCORE input material in place of a key."`
	JSON     bool          `help:"Print JSON."`

	PublicKeyFile string `type:"path" placeholder:"FILE" help:"Public key of the node (PEM; P-256 or Ed25519), for a token that confirms that instead of a fresh key."`
}

// Validate checks the form of --scope; argv calls it, so that a fault is a
// usage error.
func (c *tokenIssueCmd) Validate() error {
	for _, s := range c.Scope {
		if group, roles, ok := strings.Cut(s, "="); !ok || group == "" || roles == "" {
			return fmt.Errorf("--scope %q: must be GROUP=ROLE,ROLE", s)
		}
	}
	return nil
}

// Run issues a token. Its key is printed: it has to reach the node somehow.
func (c *tokenIssueCmd) Run(e *env) error {
	ask := admin.TokenAsk{Audience: c.Audience, Lifetime: c.Lifetime.String()}
	for _, s := range c.Scope {
		group, roles, _ := strings.Cut(s, "=")
		ask.Scope = append(ask.Scope, admin.ScopeEntry{Group: group, Roles: strings.Split(roles, ",")})
	}
	if c.OSCORE && c.PublicKeyFile != "" {
		return errors.New("--public-key-file: a token of the OSCORE profile confirms input material, not a public key")
	}
	if c.OSCORE {
		ask.Profile = "coap_oscore"
	}
	if ask.Audience == "" {
		audience, err := c.onlyAudience()
		if err != nil {
			return err
		}
		ask.Audience = audience
	}
	if c.PublicKeyFile != "" {
		der, err := publicKeyFile(c.PublicKeyFile)
		if err != nil {
			return fmt.Errorf("--public-key-file: %w", err)
		}
		ask.PublicKey = hex.EncodeToString(der)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	t, err := client.IssueToken(e.ctx, ask)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, t)
	}
	if ask.PublicKey != "" {
		_, err = fmt.Fprintf(e.stdout, "access token  %s\npublic key    SHA-256 %s\ngateway key   %s  (shown by the gateway)\nexpires       %s\n",
			t.AccessToken, t.KID, t.ServerKey, ahead(t.Expires))
		return err
	}
	if c.OSCORE {
		_, err = fmt.Fprintf(e.stdout, "access token    %s\nmaterial id     %s\ninput material  %s  (secret, CBOR)\nexpires         %s\n",
			t.AccessToken, t.KID, t.Material, ahead(t.Expires))
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "access token  %s\nkey id        %s\nkey           %s  (secret)\nexpires       %s\n",
		t.AccessToken, t.KID, t.Key, ahead(t.Expires))
	return err
}

// publicKeyFile reads a SubjectPublicKeyInfo in PEM.
func publicKeyFile(name string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf(`%s holds no PEM block "PUBLIC KEY"`, name)
	}
	return block.Bytes, nil
}

// onlyAudience returns the audience to issue for when there is no choice.
func (c *tokenIssueCmd) onlyAudience() (string, error) {
	cfg, err := c.load()
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	for _, t := range cfg.Tokens {
		if cfg.IssuerToken(t.Audience) != nil {
			found[t.Audience] = true
		}
	}
	if len(found) != 1 {
		return "", withHint(fmt.Errorf("the configuration has %d audiences to issue for", len(found)), "name one by --audience")
	}
	for audience := range found {
		return audience, nil
	}
	panic("gateway: internal error: an empty map of length 1")
}
