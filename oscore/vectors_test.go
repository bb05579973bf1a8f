package oscore

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

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
