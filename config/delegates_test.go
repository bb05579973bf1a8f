package config

import (
	"errors"
	"testing"
)

// TestDelegatesExample: configs/delegates.yaml is valid as it is.
func TestDelegatesExample(t *testing.T) {
	c, err := Load("../configs/delegates.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Delegates) != 1 || c.DelegateAudience(&c.Groups[0]) != "groupgate" {
		t.Errorf("%+v", c.Delegates)
	}
}

// TestDelegateFaults: who is not recognised, or reaches more than it should, is found.
func TestDelegateFaults(t *testing.T) {
	_, err := Parse("f", []byte(`tokens: [{issuer: as1, audience: rs, symmetric_key_file: as.key}]
psk: [{identity: taken, key_file: k}]
groups:
- {name: sensors}
- {name: far, gm: "coaps://gm.example", upstream: {relay: true}}
- {name: odd, gm: "http://gm.example", network: {multicast: "10.0.0.1:5683"}}
- {name: cast, network: {multicast: "239.1.2.3:5683"}}
delegates:
- {name: a, groups: [{name: sensors, roles: [responder]}]}
- {name: b, auth: {psk_identity: taken, psk_file: k}, groups: [{name: nowhere, roles: [responder]}]}
- {name: c, auth: {insecure_address: "10.0.0.7:5683"}, groups: [{name: far, roles: [responder]}]}
- {name: d, auth: {cert_sha256: "00"}, groups: [{name: sensors, roles: [monitor], send_path: /token, resources: [{path: t, methods: [TRACE]}]}]}
- {name: d, mqtt_topic: groupgate/x, groups: [{name: sensors, roles: [responder], resources: [{path: /t, methods: [PUT]}]}]}
- {name: e, auth: {psk_identity: "delegate:a", psk_file: k}, groups: []}
- {name: f, auth: {psk_identity: f, psk_file: k}, groups: [{name: cast, roles: [responder], resources: [{path: /t, methods: [GET]}]}]}
`))
	fe, ok := errors.AsType[*FaultError](err)
	if !ok {
		t.Fatal("no fault")
	}
	for _, w := range []struct{ line, key, msg string }{
		{"5", "groups[1].upstream.relay_listen", "must be host:port"},
		{"6", "groups[2].gm", "must be local, coaps://HOST or coap://HOST"},
		{"6", "groups[2].network.multicast", "must be an IPv4 multicast address"},
		{"9", "delegates[0].auth", "needs one of psk_identity"},
		{"10", "delegates[1].auth.psk_identity", "is one of psk"},
		{"10", "delegates[1].groups[0].name", "no groups entry"},
		{"11", "delegates[2].auth.interface", "proves nothing"},
		{"11", "delegates[2].groups[0].name", "no Authorization Server gives tokens"},
		{"12", "delegates[3].auth.cert_sha256", "must be 64 hexadecimal digits"},
		{"12", "delegates[3].groups[0].roles[0]", "must be one of requester, responder"},
		{"12", "delegates[3].groups[0].send_path", "not one of the gateway's own"},
		{"12", "delegates[3].groups[0].resources[0].path", "must be a path"},
		{"12", "delegates[3].groups[0].resources[0].methods[0]", "must be one of GET"},
		{"13", "delegates[4].name", "is taken by delegates[3]"},
		{"13", "delegates[4].mqtt_topic", "outside of mqtt.topic_prefix"},
		{"13", "delegates[4].mqtt_password_file", "is missing"},
		{"13", "delegates[4].groups[0].resources[0].methods[0]", "can be read: GET"},
		{"14", "delegates[5].auth.psk_identity", "nor begin with"},
		{"14", "delegates[5].groups", "must list the groups"},
		{"15", "delegates[6].groups[0].resources", "the port of 239.1.2.3:5683"},
	} {
		if !hasFault(fe, w.line, w.key, w.msg) {
			t.Errorf("no fault %v in:\n%v", w, fe)
		}
	}
}
