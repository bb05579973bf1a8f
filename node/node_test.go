package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	es256, err := cose.GenerateKey(cose.AlgES256)
	if err != nil {
		t.Fatal(err)
	}
	ok := Config{Group: "g1", Roles: groupcomm.Requester, Transfer: g.transfer()}
	for name, change := range map[string]func(*Config){
		"no group":          func(c *Config) { c.Group = "" },
		"group of another":  func(c *Config) { c.Group = "g2" },
		"no roles":          func(c *Config) { c.Roles = 0 },
		"verifier":          func(c *Config) { c.Roles = groupcomm.Verifier },
		"monitor and other": func(c *Config) { c.Roles = groupcomm.Monitor | groupcomm.Responder },
		"public key":        func(c *Config) { c.Key = g.key.Public() },
		"key of other kind": func(c *Config) { c.Key = es256 },
		"other cred_fmt": func(c *Config) {
			e := g.cfg.SignInfo()
			e.CredFmt = 34
			c.Transfer = &groupcomm.TokenTransferResponse{KDCChallenge: g.ns, SignInfo: []groupcomm.SignInfoEntry{e}}
		},
	} {
		c := ok
		change(&c)
		if _, err := New(c, g); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(ok, nil); err == nil {
		t.Error("no transport: accepted")
	}
	if _, err := New(ok, g); err != nil {
		t.Error(err)
	}
}

// Nothing secret is printed.
func TestRedacted(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	m, _ := joinedMember(t, g, nil)
	s := state(t, m)
	a := &Access{Token: []byte("the token"), KID: []byte{1}, Key: cose.NewSecret(secretOf(1))}
	c := Client{Identity: "n", Key: cose.NewSecret(secretOf(1)), Audience: "a"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{m, s, &s, a, *a, c, &c} {
			got := fmt.Sprintf(verb, v)
			for _, secret := range [][]byte{secretOf(5), secretOf(1), m.Key().D, []byte("the token")} {
				for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%d", secret), fmt.Sprintf("%#v", secret)} {
					if strings.Contains(got, strings.Trim(form, "[]")) {
						t.Errorf("%s of %T shows a secret: %s", verb, v, got)
					}
				}
			}
		}
	}
}
