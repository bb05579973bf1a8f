package bridge

import (
	"fmt"
	"strings"
	"testing"
)

// Secrets are printed by no verb, nor through what holds them.
func TestNoSecretIsPrinted(t *testing.T) {
	const secret = "Tr0ub4dor"
	b := New(Config{Broker: "tcp://127.0.0.1:1", Password: secret, MemberPassword: secret}, Deps{Hub: nobody{}})
	g := newGate("p", brokerHooks{}, nil)
	g.secret = []byte(secret)
	r := registration{key: []byte(secret)}
	for _, v := range []any{b.cfg, &b.cfg, b, g, r, &r, ackContext{registration: r}, newBroker(Config{Password: secret}, b.log, brokerHooks{})} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			s := fmt.Sprintf(verb, v)
			if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) || strings.Contains(s, fmt.Sprint([]byte(secret))[1:]) {
				t.Errorf("%T under %s shows it", v, verb)
			}
		}
	}
}
