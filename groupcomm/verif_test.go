package groupcomm

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// draft-ietf-core-oscore-groupcomm-28, Section 2.1.
func TestSignEncKeyVectors(t *testing.T) {
	var v struct {
		Keys []struct {
			Origin string
			Alg    int64  `json:"gp_enc_alg"`
			HKDF   int64  `json:"hkdf"`
			Secret string `json:"master_secret"`
			Salt   string `json:"master_salt"`
			Gid    string
			Key    string
		} `json:"sig_enc_keys"`
	}
	readVectors(t, "sig-enc-key.json", &v)
	if len(v.Keys) != 2 {
		t.Fatalf("%d vectors", len(v.Keys))
	}
	for _, k := range v.Keys {
		got, err := SignEncKey(k.HKDF, k.Alg, unhex(t, k.Secret), unhex(t, k.Salt), unhex(t, k.Gid))
		if err != nil || hex.EncodeToString(got.Bytes()) != k.Key {
			t.Errorf("algorithm %d: %x, want %s, %v", k.Alg, got.Bytes(), k.Key, err)
		}
		other, err := SignEncKey(cose.AlgHMAC512, k.Alg, unhex(t, k.Secret), unhex(t, k.Salt), unhex(t, k.Gid))
		if err != nil || bytes.Equal(other.Bytes(), got.Bytes()) {
			t.Errorf("algorithm %d with HMAC 512: %v", k.Alg, err)
		}
	}
	if _, err := SignEncKey(cose.AlgHMAC256, 0, nil, nil, nil); err == nil {
		t.Error("a group without the group mode has such a key")
	}
	if _, err := SignEncKey(0, cose.AlgA128GCM, nil, nil, nil); err == nil {
		t.Error("an unknown HKDF gives a key")
	}
}

// A verifier gets nothing that decrypts.
func TestVerifDataSecrets(t *testing.T) {
	for _, spoil := range []func(*KeyMap){
		func(k *KeyMap) { k.MasterSecret = []byte{1} },
		func(k *KeyMap) { k.Salt = []byte{} },
		func(k *KeyMap) { k.SenderID = SenderID{} },
		func(k *KeyMap) { k.SignParams = nil },
	} {
		key := testVerifKey
		spoil(&key)
		if _, err := DecodeVerifData((&VerifData{Key: key, SignEncKey: []byte{1}}).Encode()); err == nil {
			t.Error("accepted")
		}
	}
	if _, err := DecodeVerifData((&VerifData{Key: testGroup.VerifParams(), SignEncKey: []byte{1}}).Encode()); err == nil {
		t.Error("accepted without a Gid")
	}
}
