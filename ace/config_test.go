package ace

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestValidate(t *testing.T) {
	signer := testSigner(t)
	if err := testConfig(signer).Validate(); err != nil {
		t.Fatal(err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the empty configuration: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"audience":         {func(c *Config) { c.Entries[0].Audience = "" }, "tokens[0]: audience"},
		"algorithm":        {func(c *Config) { c.Entries[0].Alg = 1 }, "tokens[0]: algorithm 1"},
		"no key":           {func(c *Config) { c.Entries[0].Key = cose.Secret{} }, "tokens[0]: no symmetric key"},
		"short key":        {func(c *Config) { c.Entries[1].Key = cose.NewSecret([]byte{1}) }, "tokens[1]: symmetric key is shorter"},
		"long CCM key":     {func(c *Config) { c.Entries[0].Key = cose.NewSecret(macKey) }, "tokens[0]: symmetric key is not 16"},
		"no public key":    {func(c *Config) { c.Entries[2].PublicKey = nil }, "tokens[2]: no public key"},
		"other curve":      {func(c *Config) { c.Entries[2].Alg = cose.AlgES256 }, "tokens[2]: public key"},
		"key for two uses": {func(c *Config) { c.Entries[1].Key = cose.NewSecret(encKey) }, "serves another algorithm"},
		"kid identity":     {func(c *Config) { c.PSK[0].Identity = KIDIdentity([]byte{1}) }, "psk[0]: identity reads as"},
		"identity twice":   {func(c *Config) { c.PSK[1].Identity = c.PSK[0].Identity }, "psk[1]: identity is given twice"},
		"no psk":           {func(c *Config) { c.PSK[2].Key = cose.Secret{} }, "psk[2]: no key"},
		"client":           {func(c *Config) { c.AS.Policies[0].Client = "proxied" }, "policies[0]: client"},
		"policy audience":  {func(c *Config) { c.AS.Policies[0].Audience = "rs9" }, "policies[0]: no tokens entry"},
		"lifetime":         {func(c *Config) { c.AS.Policies[0].Lifetime = time.Millisecond }, "policies[0]: lifetime"},
		"no roles":         {func(c *Config) { c.AS.Policies[0].Scope[0].Roles = 0 }, "policies[0]: scope: group"},
		"no scope":         {func(c *Config) { c.AS.Policies[0].Scope = groupcomm.Scope{} }, "policies[0]: scope is empty"},
	} {
		cfg := testConfig(signer)
		c.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	both := testConfig(signer)
	both.Entries[0].Audience = ""
	both.PSK[2].Key = cose.Secret{}
	if err := both.Validate(); err == nil || strings.Count(err.Error(), "\n") < 1 {
		t.Errorf("not all faults: %v", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	cfg := testConfig(testSigner(t))
	issued := Issued{Key: cose.NewSecret(popKey)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		text := fmt.Sprintf(verb, cfg) + fmt.Sprintf(verb, issued)
		for _, secret := range [][]byte{encKey, macKey, kekKey, kdkKey, popKey} {
			for _, form := range []string{string(secret[:8]), fmt.Sprintf("%x", secret[:8]), strings.Trim(fmt.Sprint(secret[:8]), "[]")} {
				if strings.Contains(text, form) {
					t.Errorf("%s prints a secret", verb)
				}
			}
		}
	}
}
