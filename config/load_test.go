package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

const explained = "../configs/gateway.yaml"

// TestExplainedFile holds configs/gateway.yaml and the defaults together: as it
// is, the file says exactly what an empty one means.
func TestExplainedFile(t *testing.T) {
	c, err := Load(explained)
	if err != nil {
		t.Fatal(err)
	}
	c.file, c.lines = "", nil
	if want := Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("configs/gateway.yaml differs from the defaults:\n got %+v\nwant %+v", c, want)
	}
	text, err := os.ReadFile(explained)
	if err != nil {
		t.Fatal(err)
	}
	for key := range keysOf(reflect.TypeFor[Config]()) {
		if !regexp.MustCompile(`(?m)(^|[ {|-])` + key + `:`).Match(text) {
			t.Errorf("configs/gateway.yaml does not explain %q", key)
		}
	}
}

// TestExplainedExamples enables the examples of configs/gateway.yaml: they load,
// and the group in them spells out the defaults of a group.
func TestExplainedExamples(t *testing.T) {
	text, err := os.ReadFile(explained)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m): \[\]\n#\|`).ReplaceAll(text, []byte(":\n#|"))
	text = regexp.MustCompile(`(?m)^#\|`).ReplaceAll(text, nil)
	c, err := Parse("examples", text)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Tokens) != 4 || len(c.PSK) != 1 || len(c.AuthorizationServer.Policies) != 1 || len(c.Groups) != 2 || len(c.Delegates) != 1 {
		t.Fatalf("examples: %+v", c)
	}
	if p := c.Proxy; len(p.Allow) != 3 || len(p.Hosts) != 1 || len(p.Reverse) != 1 {
		t.Fatalf("examples: %+v", p)
	}
	var via ProxyVia
	via.setDefaults()
	if !reflect.DeepEqual(c.Proxy.Allow[0].ProxyVia, via) {
		t.Errorf("the example of a proxy rule differs from the defaults:\n got %+v\nwant %+v", c.Proxy.Allow[0].ProxyVia, via)
	}
	want := DefaultGroup()
	want.Name = "sensors"
	if !reflect.DeepEqual(c.Groups[0], want) {
		t.Errorf("the example of a group differs from the defaults:\n got %+v\nwant %+v", c.Groups[0], want)
	}
	if got := c.AuthorizationServer.Policies[0].Lifetime; got != (24 * time.Hour) {
		t.Errorf("lifetime %v", got)
	}
	if _, err := c.GroupConfigs(); err != nil {
		t.Error(err)
	}
}

func keysOf(t reflect.Type) map[string]bool {
	keys := map[string]bool{}
	for _, f := range reflect.VisibleFields(t) {
		name := f.Tag.Get("yaml")
		if name == "" || name == "-" {
			continue
		}
		keys[name] = true
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct && ft != secretType {
			for k := range keysOf(ft) {
				keys[k] = true
			}
		}
	}
	return keys
}

func TestEmptyFileIsDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "groups:\nlog:\n"} {
		c, err := Parse("f", []byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		c.file, c.lines = "", nil
		if !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

// Every fault is told with its key and its line, and none hides another.
func TestFaults(t *testing.T) {
	const psk = "psk: [{identity: a, key: 000102030405060708090a0b0c0d0e0f, may: [token]}]\n"
	tests := []struct {
		name, text string
		want       []string // "line key: part of the message"
	}{
		{"three mistakes", "data_dir: d\nlisten:\n  coap: here\nlimits:\n  sessions: many\ngruops: []\n", []string{
			`3 listen.coap: must be host:port`, `5 limits.sessions: must be a whole number, not "many"`, `6 gruops: unknown key, did you mean "groups"?`}},
		{"not yaml", "listen: [\n", []string{"2 : not YAML"}},
		{"no mapping", "- a\n", []string{"1 : the file must hold"}},
		{"two documents", "log: {level: info}\n---\nlog: {level: warn}\n", []string{"0 : not YAML: more than one"}},
		{"alias", "listen: &a {coap: ''}\nlog: *a\n", []string{"1 listen: anchors", "2 log: anchors"}},
		{"merge key", "log:\n  <<: {level: info}\n", []string{`2 log.<<: unknown key`}},
		{"twice", "data_dir: a\nstore: sqlite:x\ndata_dir: b\n", []string{"3 data_dir: given twice, first on line 1"}},
		{"no value", "listen:\n  http:\n", []string{"2 listen.http: has no value"}},
		{"list for section", "listen: [a]\n", []string{"1 listen: must be a section"}},
		{"section for list", "groups: {name: a}\n", []string{"1 groups: must be a list"}},
		{"section for value", "data_dir: {a: b}\n", []string{"1 data_dir: must be a single value"}},
		{"bool", "groups:\n- name: a\n  list: yes\n", []string{`3 groups[0].list: must be true or false, not "yes"`}},
		{"durations", "groups:\n- name: a\n  key_lifetime: 30\n  rekey: {batch_window: -1s}\n", []string{
			"3 groups[0].key_lifetime: must be a duration", "4 groups[0].rekey.batch_window: must be a duration"}},
		{"activation", "groups:\n- {name: a, activation: {order: requesters-first, spread: 2h}}\n", []string{
			"2 groups[0].activation.order: must be one of responders-first, none", "2 groups[0].activation.spread: must be"}},
		{"old keys", "groups:\n- {name: a, mode: local}\n", []string{"2 groups[0].mode: unknown key: `gm:` says"}},
		{"unsupported values", "groups:\n- name: a\n  gm: local\n  interface: both\n  on_renewal: never\n  sign_alg: PS256\n  cred_fmt: ccs\n", []string{
			"5 groups[0].on_renewal: must be one of new-id, rekey", "6 groups[0].sign_alg: must be one of EdDSA, ES256"}},
		{"interfaces", "groups:\n- name: a\n  interface: draft-04\n- name: b\n  on_renewal: rekey\n- {name: c, interface: hackathon-109, on_renewal: new-id}\n", []string{
			"3 groups[0].interface: must be one of current, draft-03", "5 groups[1].on_renewal: is for interface draft-03 or both", "6 groups[2].on_renewal: is for"}},
		{"interface with certificates", "groups: [{name: a, interface: both, cred_fmt: cwt}]\n", []string{"1 groups[0].interface: credentials of kind cwt"}},
		{"interface without signatures", "groups: [{name: a, interface: both, sign_alg: none}]\n", []string{"1 groups[0].interface: a pairwise-only group"}},
		{"certificates without files", "groups: [{name: a, cred_fmt: x5chain, x5_cert_file: c}]\n", []string{
			"1 groups[0].x5_roots_file: is missing", "1 groups[0].x5_key_file: is missing"}},
		{"files without certificates", "groups: [{name: a, x5_roots_file: r}]\n", []string{"1 groups[0].x5_roots_file: is for cred_fmt x5chain"}},
		{"CWT without signature", "groups: [{name: a, sign_alg: none, cred_fmt: cwt}]\n", []string{"1 groups[0].cred_fmt: a pairwise-only group has CWTs"}},
		{"no mode", "groups: [{name: a, sign_alg: none, alg: none}]\n", []string{"1 groups[0].alg: a group needs a mode"}},
		{"encryption without signatures", "groups: [{name: a, sign_alg: none, gp_enc_alg: A128GCM}]\n", []string{"1 groups[0].gp_enc_alg: group mode needs both"}},
		{"misspelt value", "groups: [{name: a, sign_alg: edsa}]\n", []string{`1 groups[0].sign_alg: must be one of`}},
		{"curve", "groups: [{name: a, sign_alg: ES256, ecdh_curve: X25519}]\n", []string{"1 groups[0].ecdh_curve: does not fit"}},
		{"half pairwise", "groups: [{name: a, alg: none, ecdh_alg: ECDH-SS+HKDF-256}]\n", []string{"1 groups[0].ecdh_alg: pairwise mode needs both"}},
		{"AES-CTR in pairwise mode", "groups: [{name: a, alg: A128CTR}]\n", []string{"1 groups[0].alg: must be one of"}},
		{"AES-CTR in an older dialect", "groups: [{name: a, interface: both, gp_enc_alg: A128CTR}]\n", []string{"1 groups[0].gp_enc_alg: A128CTR is for interface current"}},
		{"half group mode", "groups: [{name: a, gp_enc_alg: none}]\n", []string{"1 groups[0].gp_enc_alg: group mode needs both"}},
		{"hash", "groups: [{name: a, hkdf: HMAC-512, ecdh_alg: ECDH-SS+HKDF-256}]\n", []string{
			"1 groups[0].ecdh_alg: does not fit hkdf HMAC-512: it must be ECDH-SS+HKDF-512"}},
		{"group names", "groups:\n- name: a/b\n- name: x\n- name: x\n- {list: true}\n", []string{
			"2 groups[0].name: must be", `4 groups[2].name: "x" is taken by groups[1]`, "5 groups[3].name: must be"}},
		{"gid", "groups: [{name: a, gid: {prefix: xyz, epoch_bytes: 9, reuse: true}}]\n", []string{
			"1 groups[0].gid.prefix: must be auto", "1 groups[0].gid.epoch_bytes: must be from"}},
		{"gid without reuse", "groups: [{name: a, gid: {epoch_bytes: 1}}]\n", []string{"1 groups[0].gid.epoch_bytes: must be from 2"}},
		{"open mqtt", "listen:\n  mqtt: ':1883'\n", []string{"2 listen.mqtt: plain MQTT beyond loopback"}},
		{"mqtts", "listen:\n  mqtts: ':8883'\n", []string{"1 listen.mqtts_cert_file: is missing", "1 listen.mqtts_key_file: is missing"}},
		{"same address", "listen: {coaps: ':5683'}\n", []string{"1 listen.coap: the same address as listen.coaps"}},
		{"tab", "listen:\n\tcoaps: ':1'\n", []string{"2 : not YAML: found character that cannot start any token; is it a tab?"}},
		{"address within all", "listen: {coaps: ':5690', coap: '127.0.0.1:5690', http: '0.0.0.0:8081', mqtt: 'localhost:8081'}\n", []string{
			"1 listen.coap: cannot be 127.0.0.1:5690 beside :5690 of listen.coaps", "1 listen.mqtt: cannot be localhost:8081 beside 0.0.0.0:8081 of listen.http"}},
		{"addresses of delegates", "tokens: [{issuer: as1, audience: rs, symmetric_key_file: as.key}]\ngroups: [{name: g}]\ndelegates:\n" +
			"- {name: a, auth: {psk_identity: a, psk_file: a.key}, groups: [{name: g, roles: [responder], listen: '127.0.0.1:5700', resources: [{path: /t, methods: [GET]}]}]}\n" +
			"- {name: b, auth: {psk_identity: b, psk_file: b.key}, groups: [{name: g, roles: [responder], listen: ':5700', resources: [{path: /t, methods: [GET]}]}]}\n" +
			"- {name: c, auth: {psk_identity: c, psk_file: c.key}, groups: [{name: g, roles: [responder], listen: '127.0.0.1:5684', resources: [{path: /t, methods: [GET]}]}]}\n" +
			"- {name: d, auth: {psk_identity: d, psk_file: d.key}, groups: [{name: g, roles: [responder], listen: '127.0.0.1:5700'}]}\n", []string{
			"5 delegates[1].groups[0].listen: cannot be :5700 beside", "6 delegates[2].groups[0].listen: cannot be 127.0.0.1:5684 beside :5684 of listen.coaps"}},
		{"address of a relay", "groups: [{name: p, gm: 'coaps://gm.example', upstream: {relay: true, relay_listen: '127.0.0.1:5684'}}]\n", []string{
			"1 groups[0].upstream.relay_listen: cannot be 127.0.0.1:5684 beside :5684 of listen.coaps"}},
		{"gids that meet", "groups: [{name: a, gid: {prefix: '02'}}, {name: b, gid: {prefix: '03'}}, {name: c, gid: {prefix: '0203', epoch_bytes: 3}}, {name: d, gid: {prefix: '02', epoch_bytes: 3}}]\n", []string{
			"1 groups[2].gid.prefix: leads to the same Gids as that of groups[0]"}},
		{"broker", "mqtt: {broker: 'http://x', public_uri: 'mqtt://u:p@x'}\n", []string{"1 mqtt.broker: must be", "1 mqtt.public_uri: must not hold credentials"}},
		{"open broker", "mqtt: {broker: 'mqtt://broker.example'}\n", []string{"1 mqtt.broker: plain MQTT beyond loopback"}},
		{"broker keys", "mqtt: {user: u}\n", []string{"1 mqtt.user: is for an outside broker"}},
		{"member account", "mqtt: {member_user: u}\n", []string{"1 mqtt.member_user: is for an outside broker"}},
		{"member password", "mqtt: {broker: 'mqtts://b.example', member_password_file: p}\n", []string{"1 mqtt.member_password_file: needs mqtt.member_user"}},
		{"postgres", "store: postgres://user@host\n", []string{"1 store: must be postgres://USER@HOST/DATABASE"}},
		{"token keys", "tokens:\n- {audience: a}\n- {audience: a, symmetric_key: 00, symmetric_key_file: f}\n- {audience: a, symmetric_key: 0xyz}\n- {audience: a, symmetric_key: 001122}\n", []string{
			"2 tokens[0]: needs exactly one", "3 tokens[1]: needs exactly one", "4 tokens[2].symmetric_key: must be hexadecimal",
			"5 tokens[3].symmetric_key: AES-CCM-16-64-128 needs a key of 16 bytes, this one has 3"}},
		{"token alg", "tokens: [{audience: a, alg: EdDSA, symmetric_key_file: f}]\n", []string{"1 tokens[0].alg: must be one of"}},
		{"psk", "psk:\n- {identity: a, key: 00}\n- {identity: a, key_file: f, may: [toke, proxy, introspect]}\n- {}\n", []string{
			"2 psk[0].key: must have 16", `3 psk[1].identity: "a" is taken`, `3 psk[1].may[0]: must be one of token`,
			"4 psk[2].identity: is missing", "4 psk[2]: needs one of"}},
		{"policies", psk + "authorization_server:\n  policies:\n  - {client: b, audience: x, scope: [{group: g, roles: [boss]}], lifetime: 0s}\n  - {client: a, audience: x}\n", []string{
			`4 authorization_server.policies[0].client: no psk entry`, `4 authorization_server.policies[0].audience: no tokens entry`,
			`4 authorization_server.policies[0].scope[0].roles[0]: must be one of`, `4 authorization_server.policies[0].lifetime: must be from`,
			`5 authorization_server.policies[1].audience: no tokens entry`, `5 authorization_server.policies[1].scope: must list groups`}},
		{"app groups", "groups:\n- name: g\n  app_groups: ['', a, a, \"b\\tc\"]\n", []string{
			"3 groups[0].app_groups[0]: must have 1", "3 groups[0].app_groups[2]: is groups[0].app_groups[1] again", "3 groups[0].app_groups[3]: must have 1"}},
		{"no directory", "resource_directory: {endpoint: gm1, key_file: k}\n", []string{
			"1 resource_directory.endpoint: is for a directory", "1 resource_directory.key_file: is for a directory"}},
		{"directory", "resource_directory:\n  uri: coaps://rd.example.com/rd\n  lifetime: 1s\n  base: coaps://gm/x\n", []string{
			"1 resource_directory.endpoint: is missing", "1 resource_directory.identity: is missing", "1 resource_directory.key_file: is missing",
			"3 resource_directory.lifetime: must be from", "4 resource_directory.base: must be a scheme"}},
		{"directory in clear", "listen: {coaps: ''}\nresource_directory: {uri: 'coap://rd', endpoint: gm1, identity: a}\n", []string{
			"2 resource_directory.identity: is for coaps", "2 resource_directory.base: is missing"}},
		{"uris", "tokens:\n- {audience: a, symmetric_key_file: f, as_uri: ftp://as}\n- {audience: a, symmetric_key_file: f, as_uri: 'coaps://as/token?x'}\nresource_directory: {uri: 'coap://rd:0', endpoint: gm1}\n", []string{
			"2 tokens[0].as_uri: must be coaps://", "3 tokens[1].as_uri: must have no user, query", "4 resource_directory.uri: has a port"}},
		{"introspection", "tokens:\n- {audience: a, introspect: {uri: 'coap://as/introspect'}}\n- {audience: a, alg: HMAC-256/256, introspect: {uri: 'coaps://as/i'}}\n- {audience: a, introspect: {identity: b}}\n", []string{
			"2 tokens[0].introspect.uri: must be coaps://", "3 tokens[1].introspect.identity: is missing", "3 tokens[1].introspect.key_file: is missing",
			"3 tokens[1].alg: is that of a key", "4 tokens[2].introspect.uri: is missing", "4 tokens[2]: needs exactly one"}},
		{"revocation", "tokens:\n- audience: a\n  symmetric_key_file: f\n  revocation: {uri: 'coap://as/trl'}\n- audience: a\n  symmetric_key_file: f\n  revocation: {uri: 'coaps://as/trl', identity: b, key_file: f, interval: 1ms}\n- audience: a\n  symmetric_key_file: f\n  revocation: {interval: 1m}\n", []string{
			"4 tokens[0].revocation.uri: must be coaps://", "7 tokens[1].revocation.interval: must be from", "10 tokens[2].revocation.uri: is missing"}},
		{"durations as they are written", "groups: [{name: a, key_lifetime: 1s, delivery: {unreachable_after: 8s, evict_after: 90s}}]\n", []string{
			"1 groups[0].key_lifetime: must be from 1m to 3650d, not 1s", "1 groups[0].delivery.unreachable_after: must be from 1m to 3650d, not 8s",
			"1 groups[0].delivery.evict_after: must be 0s for never, or from 1h to 3650d, not 1m30s"}},
		{"too little memory", "limits: {handshakes: 65536, memory_mb: 1000}\n", []string{
			"1 limits.memory_mb: must be 0 or at least 2568"}},
		{"limits", "limits: {sessions: 0, handshakes: -1, per_peer_rps: nan}\n", []string{
			"1 limits.sessions: must be from", "1 limits.handshakes: must be from", "1 limits.per_peer_rps: must be from"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(tt.text))
			fe, ok := errors.AsType[*FaultError](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if len(fe.Faults) != len(tt.want) {
				t.Errorf("%d faults, want %d:\n%v", len(fe.Faults), len(tt.want), err)
			}
			for _, w := range tt.want {
				line, rest, _ := strings.Cut(w, " ")
				key, msg, _ := strings.Cut(rest, ": ")
				if !hasFault(fe, line, key, msg) {
					t.Errorf("no fault %q in:\n%v", w, err)
				}
			}
		})
	}
}

func hasFault(fe *FaultError, line, key, msg string) bool {
	for _, f := range fe.Faults {
		if strings.HasPrefix((&FaultError{File: "f"}).line(f), "f:"+line+": ") || line == "0" && f.Line == 0 {
			if f.Key == key && strings.Contains(f.Msg, msg) {
				return true
			}
		}
	}
	return false
}

// Hex keys are read from the text as written, whatever YAML takes it for
// (docs/protocol.md, Section 11).
func TestHexScalars(t *testing.T) {
	for text, want := range map[string][]byte{
		"00112233445566778899001122334455":   []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\x00\x11\x22\x33\x44\x55"),
		"'00112233445566778899001122334455'": []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\x00\x11\x22\x33\x44\x55"),
		"1e100000000000000000000000000000":   []byte("\x1e\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		"00000000000000000000000000000011":   []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x11"),
		"FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF":   bytes.Repeat([]byte{0xff}, 16),
	} {
		c, err := Parse("f", []byte("tokens:\n- audience: rs\n  symmetric_key: "+text+"\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := c.Tokens[0].SymmetricKey.Bytes(); !bytes.Equal(got, want) {
			t.Errorf("%s: read as %x", text, got)
		}
	}
	c, err := Parse("f", []byte("groups:\n- {name: 0011, gid: {prefix: 1e10}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	gc, err := c.GroupConfigs()
	if err != nil {
		t.Fatal(err)
	}
	if gc[0].Name != "0011" || !bytes.Equal(gc[0].GidPrefix, []byte{0x1e, 0x10}) {
		t.Errorf("got %+v", gc[0])
	}
}

func TestInlineSecretWarning(t *testing.T) {
	file := filepath.Join(t.TempDir(), "g.yaml")
	text := []byte("tokens: [{audience: rs, symmetric_key: 00112233445566778899001122334455}]\n")
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o644: 1} {
		if err := os.WriteFile(file, text, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		c, err := Load(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(c.Warnings()); got != want {
			t.Errorf("mode %v: warnings %q", mode, c.Warnings())
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "2s": 2 * time.Second, "720h": 720 * time.Hour, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "-1s", "d", "1d-1h", "1h1d", "999999d999999999h", "1 d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q: read as %v", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	text, err := os.ReadFile(explained)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(bytes.ReplaceAll(text, []byte("#|"), nil))
	f.Add([]byte("groups:\n- {name: 0011, gid: {prefix: 1e10}}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			if _, ok := errors.AsType[*FaultError](err); !ok {
				t.Errorf("not a FaultError: %v", err)
			}
			return
		}
		// What loads is valid, and its groups translate.
		if _, err := c.GroupConfigs(); err != nil {
			t.Errorf("loaded, but: %v", err)
		}
	})
}

// TestDocumentedConfigs loads every block of YAML in the documentation.
func TestDocumentedConfigs(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	found := 0
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			found++
			if _, err := Parse(file, m[1]); err != nil {
				t.Errorf("%s:\n%s\n%v", file, m[1], err)
			}
		}
	}
	if found == 0 {
		t.Error("no blocks found")
	}
}
