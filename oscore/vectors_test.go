package oscore

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// rfcVectors are those of RFC 8613, Appendix C.
type rfcVectors struct {
	MasterSecret hexBytes `json:"master_secret"`
	Contexts     map[string]struct {
		MasterSalt    hexBytes  `json:"master_salt"`
		SenderID      hexBytes  `json:"sender_id"`
		RecipientID   hexBytes  `json:"recipient_id"`
		IDContext     *hexBytes `json:"id_context"`
		InfoSender    hexBytes  `json:"info_sender"`
		InfoRecipient hexBytes  `json:"info_recipient"`
		InfoIV        hexBytes  `json:"info_iv"`
		SenderKey     hexBytes  `json:"sender_key"`
		RecipientKey  hexBytes  `json:"recipient_key"`
		CommonIV      hexBytes  `json:"common_iv"`
	} `json:"contexts"`
	Messages []struct {
		Name        string   `json:"name"`
		Unprotected hexBytes `json:"unprotected"`
		Nonce       hexBytes `json:"nonce"`
		AADArray    hexBytes `json:"aad_array"`
		AAD         hexBytes `json:"aad"`
		Plaintext   hexBytes `json:"plaintext"`
		Option      hexBytes `json:"oscore_option"`
		Ciphertext  hexBytes `json:"ciphertext"`
		Protected   hexBytes `json:"protected"`
	} `json:"messages"`
}

func loadRFCVectors(t testing.TB) *rfcVectors {
	t.Helper()
	b, err := os.ReadFile("testdata/rfc8613-appendix-c.json")
	if err != nil {
		t.Fatal(err)
	}
	v := &rfcVectors{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// RFC 8613, Appendices C.1 to C.3.
func TestDerivationVectors(t *testing.T) {
	v := loadRFCVectors(t)
	for name, c := range v.Contexts {
		var idContext []byte
		if c.IDContext != nil {
			idContext = *c.IDContext
		}
		for _, d := range []struct {
			id         []byte
			typ        string
			n          int
			info, want []byte
		}{
			{c.SenderID, typeKey, 16, c.InfoSender, c.SenderKey},
			{c.RecipientID, typeKey, 16, c.InfoRecipient, c.RecipientKey},
			{nil, typeIV, 13, c.InfoIV, c.CommonIV},
		} {
			info := appendInfo(nil, d.id, idContext, cose.AlgAESCCM16_64_128, d.typ, d.n)
			if !bytes.Equal(info, d.info) {
				t.Errorf("%s: info %x, want %x", name, info, d.info)
			}
			got, err := hkdfKey(cose.AlgHMAC256, v.MasterSecret, c.MasterSalt, info, d.n)
			if err != nil || !bytes.Equal(got, d.want) {
				t.Errorf("%s: %s of %x is %x, %v, want %x", name, d.typ, d.id, got, err, d.want)
			}
		}
	}
	if len(v.Contexts) != 3 {
		t.Errorf("%d contexts", len(v.Contexts))
	}
}

// contextC makes the client's context of the vectors, or the server's.
func (v *rfcVectors) context(t testing.TB, name string, server bool, start uint64) *Context {
	t.Helper()
	c := v.Contexts[name]
	p := Params{
		MasterSecret: cose.NewSecret(v.MasterSecret), MasterSalt: c.MasterSalt,
		SenderID: c.SenderID, RecipientID: c.RecipientID, Sequence: SequenceConfig{Start: start},
	}
	if c.IDContext != nil {
		p.IDContext = *c.IDContext
	}
	if server {
		p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	}
	ctx, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

func decode(t testing.TB, b []byte) *coap.Message {
	t.Helper()
	m, err := coap.DecodeMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func encode(t testing.TB, m *coap.Message) []byte {
	t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 8613, Appendices C.4 to C.8: every byte of the protected messages, and back.
func TestMessageVectors(t *testing.T) {
	v := loadRFCVectors(t)
	for i, name := range []string{"C1", "C2", "C3"} {
		m := v.Messages[i]
		client, server := v.context(t, name, false, 20), v.context(t, name, true, 0)
		p, ex, err := client.ProtectRequest(t.Context(), nil, decode(t, m.Unprotected))
		if err != nil {
			t.Fatal(err)
		}
		if got := encode(t, p); !bytes.Equal(got, m.Protected) {
			t.Errorf("%s: %x, want %x", m.Name, got, m.Protected)
		}
		var b Buffer
		if aad := client.setAAD(&b, client.senderID, 20); !bytes.Equal(aad, m.AAD) {
			t.Errorf("%s: AAD %x, want %x", m.Name, aad, m.AAD)
		}
		if nonce := client.setNonce(&b, client.senderID, 20); !bytes.Equal(nonce, m.Nonce) {
			t.Errorf("%s: nonce %x, want %x", m.Name, nonce, m.Nonce)
		}
		got, sex, err := server.UnprotectRequest(nil, decode(t, m.Protected))
		if err != nil {
			t.Fatal(err)
		}
		if b := encode(t, got); !bytes.Equal(b, m.Unprotected) {
			t.Errorf("%s: unprotected %x, want %x", m.Name, b, m.Unprotected)
		}
		if i > 0 {
			continue
		}
		// C.7 and C.8 answer C.4: without a Partial IV, and with one.
		for j, form := range []responseForm{responseFirst, responseOwnPIV} {
			m := v.Messages[3+j]
			p, err := server.protectResponse(t.Context(), nil, sex, decode(t, m.Unprotected), form)
			if err != nil {
				t.Fatal(err)
			}
			if got := encode(t, p); !bytes.Equal(got, m.Protected) {
				t.Errorf("%s: %x, want %x", m.Name, got, m.Protected)
			}
			ex := ex
			got, err := client.UnprotectResponse(nil, &ex, decode(t, m.Protected))
			if err != nil {
				t.Fatal(err)
			}
			if b := encode(t, got); !bytes.Equal(b, m.Unprotected) {
				t.Errorf("%s: unprotected %x, want %x", m.Name, b, m.Unprotected)
			}
		}
	}
	if len(v.Messages) != 5 {
		t.Errorf("%d messages", len(v.Messages))
	}
}
