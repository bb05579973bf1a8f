package admin

import (
	"fmt"
	"strings"
	"testing"
)

// Secrets are printed by no verb, nor through what holds them.
func TestNoSecretIsPrinted(t *testing.T) {
	const secret = "Tr0ub4dor"
	c := Config{Token: secret}
	k := Token{Key: []byte(secret)}
	i := TokenInfo{Key: secret}
	for _, v := range []any{c, &c, k, &k, i, &i, New(c, Deps{}), NewClient("127.0.0.1:1", secret)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			s := fmt.Sprintf(verb, v)
			if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) || strings.Contains(s, fmt.Sprint([]byte(secret))[1:]) {
				t.Errorf("%T under %s shows it", v, verb)
			}
		}
	}
}
