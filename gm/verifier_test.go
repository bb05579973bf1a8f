package gm

import (
	"bytes"
	"slices"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.5.2: the proof covers the
// verifier's nonce and a fresh one.
func TestVerifierKDCCred(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	ver := f.joiner("ver", "g1", groupcomm.Verifier)
	cnonce := []byte("12345678")
	var last []byte
	for range 2 {
		r := f.do(ver, coap.FETCH, groupcomm.EncodeKDCCredRequest(cnonce), "ace-group", "g1", "kdc-cred")
		k, err := groupcomm.DecodeKDCCred(r.Payload)
		if err != nil {
			t.Fatal(r.Code, err)
		}
		pub, err := cose.DecodeCCS(k.Cred)
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.Verify(groupcomm.KDCPoPInput(cnonce, k.Nonce), k.Verify); err != nil {
			t.Error(err)
		}
		if len(k.Nonce) < 8 || bytes.Equal(k.Nonce, last) {
			t.Error("the nonce is not fresh")
		}
		last = k.Nonce
	}
	for _, body := range [][]byte{
		nil, {0xa0}, {0xa1, 6, 0x40}, {0xa1, 6, 1}, groupcomm.EncodeKDCCredRequest(make([]byte, 7)), groupcomm.EncodeKDCCredRequest(make([]byte, 65)),
	} {
		if r := f.do(ver, coap.FETCH, body, "ace-group", "g1", "kdc-cred"); r.Code != coap.BadRequest {
			t.Errorf("body %x: %v, want 4.00", body, r.Code)
		}
	}
	req := ver.Request(coap.FETCH, groupcomm.EncodeKDCCredRequest(cnonce), "ace-group", "g1", "kdc-cred")
	req.Options.SetContentFormat(coap.CBOR)
	if _, err := f.m.ServeCoAP(t.Context(), req); coap.ErrorResponse(err).Code != coap.UnsupportedContentFormat {
		t.Errorf("foreign Content-Format: %v", err)
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Section 9.6: what a verifier gets, by
// version, and what it does not get.
func TestVerifData(t *testing.T) {
	for _, mode := range []string{"both modes", "signature-only"} {
		t.Run(mode, func(t *testing.T) {
			cfg := groupConfig("g1")
			if mode == "signature-only" {
				cfg.Alg, cfg.ECDHAlg, cfg.ECDHCrv = 0, 0, 0
			}
			f := newFixture(t, cfg)
			member := f.member("n", "g1")
			ver := f.joiner("ver", "g1", groupcomm.Verifier)
			var keys [][]byte
			for num := range uint64(2) {
				r := f.do(ver, coap.GET, nil, "ace-group", "g1", "verif-data")
				v, err := groupcomm.DecodeVerifData(r.Payload)
				if err != nil || r.Code != coap.Content {
					t.Fatal(r.Code, err)
				}
				kd, err := groupcomm.DecodeKeyDistribution(f.do(member, coap.GET, nil, "ace-group", "g1").Payload)
				if err != nil {
					t.Fatal(err)
				}
				want, err := groupcomm.SignEncKey(5, 10, kd.Key.MasterSecret, kd.Key.Salt, kd.Key.ContextID)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(v.SignEncKey, want.Bytes()) {
					t.Error("not the Signature Encryption Key that members derive")
				}
				k := v.Key
				if k.HKDF != 5 || k.CredFmt != 14 || k.GpEncAlg != 10 || k.SignAlg != -8 || !slices.Equal(k.ContextID, kd.Key.ContextID) ||
					k.ECDHParams != nil || k.Alg != cfg.Alg || k.ECDHAlg != cfg.ECDHAlg {
					t.Error("wrong parameters")
				}
				if v.Num != num || v.Exi <= 0 || v.Exp != kd.Exp {
					t.Errorf("num %d, exi %d, exp %d", v.Num, v.Exi, v.Exp)
				}
				if bytes.Contains(r.Payload, kd.Key.MasterSecret) || bytes.Contains(r.Payload, kd.Key.Salt) {
					t.Error("a verifier is given what decrypts")
				}
				if age, ok := r.Options.Uint(coap.MaxAge); !ok || age != 0 {
					t.Error("Max-Age")
				}
				keys = append(keys, v.SignEncKey)
				f.rekey("g1")
			}
			if bytes.Equal(keys[0], keys[1]) {
				t.Error("the key did not change with the version")
			}
		})
	}
}
