package config

import (
	"slices"
	"strings"
	"testing"
)

// TestProxySummary: what a person is told of the proxy.
func TestProxySummary(t *testing.T) {
	c, err := Parse("f.yaml", []byte(`proxy:
  allow:
    - {target: "coap://192.0.2.1", peers: ["psk:node-7", token], methods: [GET, PUT]}
  hosts:
    - {name: gm.example.com, upstream: "coap://10.1.0.9", open_to_udp: true}
  reverse:
    - {path: /lamps, upstream: "coap://[ff05::fd]/lamp", interface: eth0}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Proxy-Uri coap://192.0.2.1, for psk:node-7, token: GET, PUT",
		"host gm.example.com to coap://10.1.0.9, for psk entries that may proxy and holders of tokens, and anybody on plain UDP",
		"path /lamps to coap://[ff05::fd]/lamp, for psk entries that may proxy and holders of tokens",
	}
	if got := c.Proxy.Summary(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	c.Proxy.Enabled = false
	if got := c.Proxy.Summary(); len(got) != 0 {
		t.Errorf("not enabled: %q", got)
	}
}

// TestProxyRefused: what the proxy section must not say, and what to do instead.
func TestProxyRefused(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a number for a name", "allow: [{target: 'coap://2130706433'}]", "neither a name nor an address"},
		{"a dot at the end", "allow: [{target: 'coap://host.'}]", "neither a name nor an address"},
		{"TLS with a key", "allow: [{target: 'coaps+tcp://a.example', identity: a, key_file: k}]", "use coaps:// with this identity and key, or ca_file"},
		{"a group over DTLS", "reverse: [{path: /l, upstream: 'coaps://[ff05::fd]', identity: a, key_file: k}]", "a group is reached with coap:// only"},
		{"a group over DTLS by Proxy-Uri", "allow: [{target: 'coaps://224.0.1.187', identity: a, key_file: k}]", "a group is reached with coap:// only"},
		{"a group for anybody", "reverse: [{path: /l, upstream: 'coap://224.0.1.187', open_to_udp: true}]", "multiplies"},
		{"a group for anybody by host", "hosts: [{name: a.example, upstream: 'coap://224.0.1.187', open_to_udp: true}]", "multiplies"},
		{"a chain to one server", "allow: [{target: 'coap://10.0.0.1', next: 'coap://10.0.0.2'}]", "next: is for a group's address"},
		{"a chain through a group", "allow: [{target: 'coap://224.0.1.187', next: 'coap://224.0.1.188'}]", "must name one proxy"},
		{"a chain by a path", "reverse: [{path: /l, upstream: 'coap://224.0.1.187', next: 'coap://10.0.0.2/p'}]", "must name one proxy"},
		{"a chain over DTLS without a credential", "allow: [{target: 'coap://224.0.1.187', next: 'coaps://10.0.0.2'}]", "needs identity and key_file"},
		{"a name in the place of members", "stand_in: 'coaps://gw.example'", "coaps://ADDRESS[:port]"},
		{"a network in the place of members", "stand_in: 'coaps://192.0.2.0/24'", "coaps://ADDRESS[:port]"},
		{"over TCP in the place of members", "stand_in: 'coap+tcp://192.0.2.1'", "coaps://ADDRESS[:port]"},
		{"a network is no upstream", "reverse: [{path: /l, upstream: 'coap://10.0.0.0/8'}]", "must name one host"},
	} {
		_, err := Parse("f.yaml", []byte("proxy:\n  "+c.text+"\n"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestProxyUnused: a rule that nobody can use is pointed out.
func TestProxyUnused(t *testing.T) {
	const rule = "{target: 'coap://192.0.2.1'"
	for _, c := range []struct {
		name, text string
		warned     bool
	}{
		{"no peer at all", "proxy: {allow: [" + rule + "}]}", true},
		{"a key for something else", "psk: [{identity: a, key: 000102030405060708090a0b0c0d0e0f, may: [token]}]\nproxy: {allow: [" + rule + "}]}", true},
		{"a key", "psk: [{identity: a, key: 000102030405060708090a0b0c0d0e0f, may: [proxy]}]\nproxy: {allow: [" + rule + "}]}", false},
		{"tokens", "tokens: [{audience: rs, symmetric_key: 000102030405060708090a0b0c0d0e0f}]\nproxy: {allow: [" + rule + "}]}", false},
		{"plain UDP", "proxy: {allow: [" + rule + ", open_to_udp: true}]}", false},
		{"named peers", "proxy: {allow: [" + rule + ", peers: ['psk:enrolled']}]}", false},
	} {
		got, err := Parse("f.yaml", []byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if warned := strings.Contains(strings.Join(got.Warnings(), "\n"), "proxy.allow[0]: nobody can use it"); warned != c.warned {
			t.Errorf("%s: %q", c.name, got.Warnings())
		}
	}
}
