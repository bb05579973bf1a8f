package oscore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// setupVectors is the vector of RFC 9203, Section 4.3.
type setupVectors struct {
	Salt       hexBytes `json:"input_salt"`
	Nonce1     hexBytes `json:"nonce1"`
	Nonce2     hexBytes `json:"nonce2"`
	MasterSalt hexBytes `json:"master_salt"`
	MS         hexBytes `json:"ms"`
	ID1        hexBytes `json:"id1_ace_client_recipientid"`
	ID2        hexBytes `json:"id2_ace_server_recipientid"`
	Plain      keys     `json:"no_id_context"`
	With01     keys     `json:"with_contextId_01"`
}

type keys struct {
	Sender    hexBytes `json:"client_sender_key"`
	Recipient hexBytes `json:"client_recipient_key"`
	CommonIV  hexBytes `json:"common_iv"`
}

func loadSetup(t testing.TB) (*setupVectors, *Setup) {
	t.Helper()
	b, err := os.ReadFile("testdata/rfc9203-context.json")
	if err != nil {
		t.Fatal(err)
	}
	v := &setupVectors{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v, &Setup{
		Material: Material{ID: []byte{1}, MasterSecret: cose.NewSecret(v.MS), Salt: v.Salt},
		Nonce1:   v.Nonce1, Nonce2: v.Nonce2, ID1: v.ID1, ID2: v.ID2,
	}
}

// RFC 9203, Section 4.3.
func TestSetupVectors(t *testing.T) {
	v, s := loadSetup(t)
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if got := s.MasterSalt(); !bytes.Equal(got, v.MasterSalt) {
		t.Fatalf("Master Salt %x, want %x", got, v.MasterSalt)
	}
	for _, c := range []struct {
		idContext []byte
		want      keys
	}{{nil, v.Plain}, {[]byte{1}, v.With01}} {
		for _, d := range []struct {
			id   []byte
			typ  string
			n    int
			want []byte
		}{
			// The Sender ID of the client is ID2, its Recipient ID is ID1.
			{s.ID2, typeKey, 16, c.want.Sender},
			{s.ID1, typeKey, 16, c.want.Recipient},
			{nil, typeIV, 13, c.want.CommonIV},
		} {
			info := appendInfo(nil, d.id, c.idContext, cose.AlgAESCCM16_64_128, d.typ, d.n)
			got, err := hkdfKey(cose.AlgHMAC256, s.MasterSecret.Bytes(), s.MasterSalt(), info, d.n)
			if err != nil || !bytes.Equal(got, d.want) {
				t.Errorf("%s of %x in %x: %x, %v, want %x", d.typ, d.id, c.idContext, got, err, d.want)
			}
		}
	}
	s.Salt = nil
	if got := s.MasterSalt(); !bytes.Equal(got, v.MasterSalt[1+len(v.Salt):]) {
		t.Errorf("Master Salt without a salt %x", got)
	}
}

// The two ends of a setup understand each other, in both directions.
func TestSetupParams(t *testing.T) {
	_, s := loadSetup(t)
	s.IDContext = []byte{1}
	client, err := New(s.ClientParams())
	if err != nil {
		t.Fatal(err)
	}
	server, err := New(s.ServerParams())
	if err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]*Context{{client, server}, {server, client}} {
		m := &coap.Message{Code: coap.GET, Payload: []byte("x")}
		p, _, err := ends[0].ProtectRequest(t.Context(), nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := ends[1].UnprotectRequest(nil, p); err != nil || got.Code != coap.GET || string(got.Payload) != "x" {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// fullMaterial has every parameter.
func fullMaterial() map[int64]any {
	return map[int64]any{
		0: []byte{1, 2}, 1: 1, 2: bytes.Repeat([]byte{7}, 16), 3: 5, 4: 10, 5: []byte{9}, 6: []byte{},
	}
}

func TestDecodeMaterial(t *testing.T) {
	whole := cose.MustMarshal(fullMaterial())
	m, err := DecodeMaterial(whole)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Encode(); !bytes.Equal(got, whole) {
		t.Errorf("encodes to %x, not %x", got, whole)
	}
	for n := range whole {
		if _, err := DecodeMaterial(whole[:n]); !errors.Is(err, ErrMaterial) {
			t.Errorf("prefix of %d bytes: %v", n, err)
		}
	}
	if m.IDContext == nil || m.MaxID() != 7 {
		t.Errorf("ID Context %v, longest identifier %d", m.IDContext, m.MaxID())
	}
	if s := fmt.Sprintf("%v %+v %x %s", *m, m, m.MasterSecret, &Setup{Material: *m}); s != "[redacted] [redacted] [redacted] [redacted]" {
		t.Errorf("prints %q", s)
	}
	named := fullMaterial()
	named[3], named[4] = "HMAC 512/512", "AES-CCM-64-64-128"
	if m, err := DecodeMaterial(cose.MustMarshal(named)); err != nil || m.HKDF != 7 || m.AEAD != 12 || m.MaxID() != 1 {
		t.Errorf("named algorithms: %v, %v", m, err)
	}
	least := map[int64]any{0: []byte{1}, 2: bytes.Repeat([]byte{7}, 16)}
	if m, err := DecodeMaterial(cose.MustMarshal(least)); err != nil || m.Salt != nil || m.IDContext != nil || !bytes.Equal(m.Encode(), cose.MustMarshal(least)) {
		t.Errorf("the least: %v, %v", m, err)
	}

	for name, change := range map[string]func(map[int64]any){
		"no id":             func(m map[int64]any) { delete(m, 0) },
		"empty id":          func(m map[int64]any) { m[0] = []byte{} },
		"long id":           func(m map[int64]any) { m[0] = make([]byte, 65) },
		"id is text":        func(m map[int64]any) { m[0] = "x" },
		"version 2":         func(m map[int64]any) { m[1] = 2 },
		"version is text":   func(m map[int64]any) { m[1] = "1" },
		"no ms":             func(m map[int64]any) { delete(m, 2) },
		"short ms":          func(m map[int64]any) { m[2] = make([]byte, 15) },
		"long ms":           func(m map[int64]any) { m[2] = make([]byte, 65) },
		"hkdf unknown":      func(m map[int64]any) { m[3] = 4 },
		"hkdf name unknown": func(m map[int64]any) { m[3] = "HMAC 256/64" },
		"hkdf is bytes":     func(m map[int64]any) { m[3] = []byte{5} },
		"alg unknown":       func(m map[int64]any) { m[4] = -8 },
		"alg name unknown":  func(m map[int64]any) { m[4] = "EdDSA" },
		"alg null":          func(m map[int64]any) { m[4] = nil },
		"salt is text":      func(m map[int64]any) { m[5] = "x" },
		"long salt":         func(m map[int64]any) { m[5] = make([]byte, 65) },
		"contextId is int":  func(m map[int64]any) { m[6] = 1 },
		"long contextId":    func(m map[int64]any) { m[6] = make([]byte, 65) },
		"unknown":           func(m map[int64]any) { m[7] = 1 },
		"unknown negative":  func(m map[int64]any) { delete(m, 1); m[-1] = 1 },
		"twenty-four more": func(m map[int64]any) {
			for i := range int64(24) {
				m[100+i] = 1
			}
		},
	} {
		m := fullMaterial()
		change(m)
		if _, err := DecodeMaterial(cose.MustMarshal(m)); !errors.Is(err, ErrMaterial) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// {0: h'01', 2: …, "x": 1}
	text := append([]byte{0xa3, 0x00, 0x41, 0x01, 0x02, 0x50}, make([]byte, 16)...)
	if _, err := DecodeMaterial(append(text, 0x61, 'x', 0x01)); !errors.Is(err, ErrMaterial) {
		t.Errorf("unknown by name: %v", err)
	}
}

func TestSetupCheck(t *testing.T) {
	for name, change := range map[string]func(*Setup){
		"no N1":       func(s *Setup) { s.Nonce1 = nil },
		"empty N2":    func(s *Setup) { s.Nonce2 = []byte{} },
		"long N1":     func(s *Setup) { s.Nonce1 = make([]byte, 65) },
		"long ID1":    func(s *Setup) { s.ID1 = make([]byte, 8) },
		"long ID2":    func(s *Setup) { s.ID2 = make([]byte, 8) },
		"equal":       func(s *Setup) { s.ID1 = s.ID2 },
		"equal empty": func(s *Setup) { s.ID1, s.ID2 = nil, []byte{} },
		"short nonce": func(s *Setup) { s.AEAD = cose.AlgAESCCM64_64_128 },
	} {
		_, s := loadSetup(t)
		change(s)
		if err := s.Check(); !errors.Is(err, ErrMaterial) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzMaterial(f *testing.F) {
	f.Add(cose.MustMarshal(fullMaterial()))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMaterial(b)
		if err != nil {
			return
		}
		again, err := DecodeMaterial(m.Encode())
		if err != nil || !bytes.Equal(again.Encode(), m.Encode()) {
			t.Errorf("%x: %v", m.Encode(), err)
		}
	})
}
