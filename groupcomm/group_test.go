package groupcomm

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRoles(t *testing.T) {
	for s, want := range map[string]Roles{
		"requester": 2, "responder": 4, "monitor": 8, "verifier": 16, "requester,responder": 6, "responder, requester": 6,
	} {
		if got, err := ParseRoles(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
		if again, err := ParseRoles(want.String()); err != nil || again != want {
			t.Errorf("%v: %v, %v", want, again, err)
		}
	}
	for _, s := range []string{"", "admin", "requester,", "Requester", "requester responder"} {
		if got, err := ParseRoles(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	if s := (Requester | 1<<5).String(); s != "requester,0x20" {
		t.Error(s)
	}
	if s := Roles(0).String(); s != "none" {
		t.Error(s)
	}
	// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.
	for r := range Roles(64) {
		want := r == 2 || r == 4 || r == 6 || r == 8
		if err := r.ValidJoin(); (err == nil) != want {
			t.Errorf("join as %v (%d): %v", r, r, err)
		}
	}
}

func TestScope(t *testing.T) {
	s := Scope{{"a", Requester}, {"b", Monitor}, {"a", Responder}}
	if s.RolesFor("a") != Requester|Responder || s.RolesFor("b") != Monitor || s.RolesFor("c") != 0 {
		t.Error("roles")
	}
	if got := fmt.Sprint(s.Groups()); got != "[a b]" {
		t.Error(got)
	}
}

// RFC 9594, Section 4.4.1.
func TestSelect(t *testing.T) {
	both := Requester | Responder
	id := SenderID{0x52}
	listed, other := []SenderID{{0x77}, id}, []SenderID{{0x77}}
	for _, tc := range []struct {
		name string
		g    GetCreds
		want bool
	}{
		{"all", GetCreds{All: true}, true},
		{"role matches", GetCreds{Roles: []Roles{Responder}}, true},
		{"both roles match", GetCreds{Inclusion: true, Roles: []Roles{both}}, true},
		{"role does not", GetCreds{Inclusion: true, Roles: []Roles{Monitor}}, false},
		{"not all roles", GetCreds{Inclusion: true, Roles: []Roles{Responder | Monitor}}, false},
		{"no roles at all", GetCreds{Inclusion: true, Roles: []Roles{0}}, false},
		{"listed", GetCreds{Inclusion: true, IDs: listed}, true},
		{"not listed", GetCreds{Inclusion: true, IDs: other}, false},
		{"excluded", GetCreds{IDs: listed}, false},
		{"not excluded", GetCreds{IDs: other}, true},
		{"role or listed: listed", GetCreds{Inclusion: true, Roles: []Roles{Monitor}, IDs: listed}, true},
		{"role or listed: role", GetCreds{Inclusion: true, Roles: []Roles{Requester}, IDs: other}, true},
		{"role but excluded", GetCreds{Roles: []Roles{Requester}, IDs: listed}, false},
		{"role and not excluded", GetCreds{Roles: []Roles{Requester}, IDs: other}, true},
		{"not excluded but no role", GetCreds{Roles: []Roles{Monitor}, IDs: other}, false},
	} {
		if got := tc.g.Select(both, id); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestValidGroupName(t *testing.T) {
	for _, s := range []string{"g", "g1", "feedca570000", "A.b_c~d-e", "0", strings.Repeat("x", 63)} {
		if !ValidGroupName(s) {
			t.Errorf("%q refused", s)
		}
	}
	for _, s := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "a%2f", "ä", "a\x00", "a?b", strings.Repeat("x", 64)} {
		if ValidGroupName(s) {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestNames(t *testing.T) {
	for _, table := range [][]named{algNames, curveNames, credFmtNames} {
		ids := map[int64]bool{}
		for _, row := range table {
			if ids[row.id] {
				t.Errorf("%d has two names", row.id)
			}
			ids[row.id] = true
		}
	}
	for name, want := range map[string]int64{
		"none": 0, "EdDSA": -8, "ES256": -7, "ES384": -35, "ES512": -36, "AES-CCM-16-64-128": 10, "AES-CCM-16-128-128": 30,
		"A128GCM": 1, "A256GCM": 3, "A128CTR": -65534, "A192CTR": -65533, "A256CTR": -65532, "ChaCha20/Poly1305": 24, "ECDH-SS+HKDF-256": -27, "ECDH-SS+HKDF-512": -28, "HMAC-256": 5, "HMAC-512": 7,
	} {
		if got, ok := AlgByName(name); !ok || got != want || AlgName(want) != name {
			t.Errorf("%s: %d", name, got)
		}
	}
	if _, ok := AlgByName("eddsa"); ok || AlgName(-999) != "-999" {
		t.Error("unknown names")
	}
	if crv, ok := CurveByName("P-384"); !ok || crv != 2 || CurveName(4) != "X25519" {
		t.Error("curves")
	}
	if f, ok := CredFmtByName("ccs"); !ok || f != 14 || CredFmtName(33) != "x5chain" {
		t.Error("credential formats")
	}
}

func TestGroupConfig(t *testing.T) {
	def := DefaultGroupConfig("g1")
	if err := def.Validate(); err != nil {
		t.Fatal(err)
	}
	if def.MaxSenderIDLen() != 7 || NonceLen(10) != 13 || NonceLen(1) != 12 || NonceLen(999) != 0 {
		t.Error("lengths")
	}
	gcm := def
	gcm.GpEncAlg = 1
	if gcm.MaxSenderIDLen() != 6 {
		t.Error("the shorter nonce decides")
	}
	signOnly, pairOnly := def, def
	signOnly.Alg, signOnly.ECDHAlg, signOnly.ECDHCrv = 0, 0, 0
	pairOnly.SignAlg, pairOnly.GpEncAlg = 0, 0
	pairOnly.ECDHCrv = 1
	if err := signOnly.Validate(); err != nil || !signOnly.GroupMode() || signOnly.PairwiseMode() {
		t.Error(err)
	}
	if err := pairOnly.Validate(); err != nil || pairOnly.GroupMode() || !pairOnly.PairwiseMode() {
		t.Error(err)
	}
	if k := signOnly.KeyParams(); k.Alg != 0 || k.ECDHParams != nil || k.SignParams == nil {
		t.Error("signature-only parameters")
	}
	if k := pairOnly.KeyParams(); k.SignAlg != 0 || k.SignParams != nil || k.GpEncAlg != 0 || k.ECDHParams == nil {
		t.Error("pairwise-only parameters")
	}
	for signAlg, crv := range map[int64]int64{-8: 4, -7: 1, -35: 2, -36: 3} {
		c := def
		c.SignAlg, c.ECDHCrv = signAlg, crv
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
	for name, change := range map[string]func(*GroupConfig){
		"name":              func(c *GroupConfig) { c.Name = "a/b" },
		"half a group mode": func(c *GroupConfig) { c.GpEncAlg = 0 },
		"half a pair mode":  func(c *GroupConfig) { c.ECDHAlg = 0 },
		"no mode":           func(c *GroupConfig) { c.SignAlg, c.GpEncAlg, c.Alg, c.ECDHAlg = 0, 0, 0, 0 },
		"AEAD as signature": func(c *GroupConfig) { c.SignAlg = 10 },
		"signature as AEAD": func(c *GroupConfig) { c.GpEncAlg = -8 },
		"unknown AEAD":      func(c *GroupConfig) { c.Alg = 12 },
		"curve":             func(c *GroupConfig) { c.ECDHCrv = 1 },
		"unknown curve":     func(c *GroupConfig) { c.ECDHCrv = 6 },
		"ECDH":              func(c *GroupConfig) { c.ECDHAlg = -25 },
		"HKDF":              func(c *GroupConfig) { c.HKDF = 4 },
		"ECDH's hash":       func(c *GroupConfig) { c.HKDF = 7 },
		"HKDF's hash":       func(c *GroupConfig) { c.ECDHAlg = -28 },
		"format":            func(c *GroupConfig) { c.CredFmt = 34 },
		"one stale set":     func(c *GroupConfig) { c.MaxStaleSets = 1 },
		"duration":          func(c *GroupConfig) { c.BatchWindow = -time.Second },
		"epoch":             func(c *GroupConfig) { c.GidEpochBytes = 9 },
		"prefix":            func(c *GroupConfig) { c.GidPrefix = make([]byte, 13) },
	} {
		c := def
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	worst := GroupConfig{BatchWindow: -1}
	if n := strings.Count(worst.Validate().Error(), "\n"); n < 4 {
		t.Errorf("%d faults: %v", n+1, worst.Validate())
	}
}

// TestRedacted prints every type that holds a secret in every way that fmt, slog
// and JSON know.
func TestRedacted(t *testing.T) {
	secret := []byte("SECRETSECRETSECRET")
	key := KeyMap{MasterSecret: secret, Salt: secret}
	dist := KeyDistribution{Key: key, MgtKeyMaterial: secret}
	rekey := RekeyMessage{MasterSecret: secret, Salt: secret}
	mgt := MgtKeyMaterial{Key: secret, Password: string(secret)}
	verif := VerifData{SignEncKey: secret}
	plan := RekeyPlan{Message: secret}
	token := TokenTransfer{AccessToken: secret}
	for _, v := range []any{
		verif, &verif, key, &key, dist, &dist, rekey, &rekey, mgt, &mgt, plan, &plan, token, &token,
		[]KeyMap{key}, map[string]RekeyMessage{"x": rekey}, struct{ K *KeyDistribution }{&dist},
		fmt.Errorf("error with %v", mgt),
	} {
		var out []string
		// fmt takes %p of a value that is no pointer past every method; vet reports it.
		for _, verb := range "vTtbcdoOqxXUeEfFgGs" {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "20", ".3"} {
				out = append(out, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		var log bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
			slog.New(h).Info("x", "v", v, slog.Group("g", "v", v))
		}
		out = append(out, log.String())
		if b, err := json.Marshal(v); err == nil {
			out = append(out, string(b))
		}
		for _, s := range out {
			low := strings.ToLower(s)
			for _, leak := range []string{"secretsecret", hex.EncodeToString(secret[:6]), "83 69 67", "0x53, 0x45", "53 45 43", "u0vduku"} {
				if strings.Contains(low, leak) {
					t.Errorf("%T leaks: %s", v, s)
				}
			}
		}
	}
}
