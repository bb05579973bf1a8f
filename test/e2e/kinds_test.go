package e2e

import (
	"syscall"
	"testing"
)

// TestKindsOfGroups has the programs live in every kind of group: a node that
// observes, one that takes its rekeys over MQTT, and a rekey that reaches both.
// Nothing is said to the nodes about the kind of the group.
func TestKindsOfGroups(t *testing.T) {
	for name, lines := range map[string]string{
		"signature-only":      "    alg: none\n    sign_alg: ES384\n    gp_enc_alg: ChaCha20/Poly1305\n",
		"pairwise-only":       "    sign_alg: none\n",
		"pairwise-only P-521": "    sign_alg: none\n    ecdh_curve: P-521\n    hkdf: HMAC-512\n    alg: A256GCM\n",
		"CWT":                 "    cred_fmt: cwt\n",
		"both":                "    sign_alg: ES512\n    hkdf: HMAC-512\n    alg: A128GCM\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.group = lines
			s.configure()
			gateway := s.run()
			observer, mqtt := s.join("observer"), s.join("mqtt", "--mqtt")
			v := s.rekey()
			if e := observer.holds(v); e.Via == "mqtt" {
				t.Errorf("the observer has version %d over %s", v, e.Via)
			}
			e := mqtt.holds(v)
			if e.Via == "poll" { // it asked once, on its way to the broker
				v = s.rekey()
				e = mqtt.holds(v)
			}
			if e.Via != "mqtt" {
				t.Errorf("the node on MQTT has version %d over %s", v, e.Via)
			}
			if code := gateway.signal(syscall.SIGTERM); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}
