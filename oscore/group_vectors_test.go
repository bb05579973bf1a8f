package oscore

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

// hexBytes are bytes that a file of vectors has in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*h = b
	return err
}

// groupVectors are what the files of vectors of Group OSCORE have in common.
type groupVectors struct {
	MasterSecret hexBytes `json:"master_secret"`
	MasterSalt   hexBytes `json:"master_salt"`
	Gid          hexBytes `json:"gid"`
	Algs         struct {
		AEAD         int64 `json:"alg"`
		HKDF         int64 `json:"hkdf"`
		GroupEnc     int64 `json:"gp_enc_alg"`
		Sign         int64 `json:"sign_alg"`
		KeyAgreement int64 `json:"ecdh_alg"`
	} `json:"algs"`
	GMCred    hexBytes `json:"gm_cred"`
	CommonIV  hexBytes `json:"common_iv"`
	SigEncKey hexBytes `json:"sig_enc_key"`
}

func (v *groupVectors) suite(t *testing.T) *groupSuite {
	t.Helper()
	s, err := newGroupSuite(GroupAlgorithms(v.Algs))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func loadVectors(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s\n got %x\nwant %x", what, got, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ed25519Key(t *testing.T, seed []byte) *cose.Key {
	t.Helper()
	k := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, Alg: cose.AlgEdDSA, D: seed}
	k, err := cose.DecodeKey(k.Encode())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ownVectors is the computed set with three members and seven messages.
type ownVectors struct {
	groupVectors
	InfoCommonIV hexBytes `json:"info_common_iv"`
	InfoSEKey    hexBytes `json:"info_sekey"`
	Members      map[string]struct {
		Seed      hexBytes `json:"priv_seed"`
		Cred      hexBytes `json:"cred"`
		X25519Pub hexBytes `json:"x25519_pub_u"`
		Info      hexBytes `json:"info_key"`
		SenderKey hexBytes `json:"sender_key"`
	} `json:"members"`
	PairwiseKeys map[string]struct {
		SharedSecret hexBytes `json:"shared_secret"`
		Info         hexBytes `json:"info"`
		Key          hexBytes `json:"key"`
	} `json:"pairwise_keys"`
	Messages []ownMessage `json:"messages"`
}

type ownMessage struct {
	Name         string   `json:"name"`
	Mode         string   `json:"mode"`
	Sender       hexBytes `json:"sender_sid"`
	Recipient    hexBytes `json:"recipient_sid"`
	PIVGenerator hexBytes `json:"piv_generator_sid"`
	PIV          hexBytes `json:"piv"`
	RequestKID   hexBytes `json:"request_kid"`
	RequestPIV   hexBytes `json:"request_piv"`
	RequestGid   hexBytes `json:"request_kid_context"`
	Option       hexBytes `json:"oscore_option"`
	Key          hexBytes `json:"key"`
	Nonce        hexBytes `json:"nonce"`
	AADArray     hexBytes `json:"aad_array"`
	AAD          hexBytes `json:"aad"`
	Plaintext    hexBytes `json:"plaintext"`
	Ciphertext   hexBytes `json:"ciphertext"`
	Signed5      hexBytes `json:"to_be_signed_5elem"`
	Signed4      hexBytes `json:"to_be_signed_4elem_rfc9338"`
	Signature5   hexBytes `json:"signature_5elem"`
	Signature4   hexBytes `json:"signature_4elem"`
	Keystream    hexBytes `json:"keystream"`
	Payload5     hexBytes `json:"payload_5elem"`
}

// TestGroupKeys derives every key of the computed set.
func TestGroupKeys(t *testing.T) {
	var v ownVectors
	loadVectors(t, "group-oscore-eddsa-own.json", &v)
	s := v.suite(t)
	same(t, "info of the Common IV", appendInfo(nil, nil, v.Gid, s.keyAlg, "IV", s.ivLen), v.InfoCommonIV)
	same(t, "info of the Signature Encryption Key", appendInfo(nil, nil, v.Gid, s.GroupEnc, "SEKey", s.encKeyLen), v.InfoSEKey)
	same(t, "Common IV", must(s.commonIV(v.MasterSecret, v.MasterSalt, v.Gid)), v.CommonIV)
	same(t, "Signature Encryption Key", must(s.signatureEncryptionKey(v.MasterSecret, v.MasterSalt, v.Gid)), v.SigEncKey)
	for sid, m := range v.Members {
		id := must(hex.DecodeString(sid))
		same(t, sid+": info", appendInfo(nil, id, v.Gid, s.keyAlg, "Key", s.keyLen), m.Info)
		same(t, sid+": Sender Key", must(s.memberKey(v.MasterSecret, v.MasterSalt, v.Gid, id)), m.SenderKey)
		same(t, sid+": Montgomery form", must(ed25519Key(t, m.Seed).Montgomery()).X, m.X25519Pub)
	}
	for pair, p := range v.PairwiseKeys {
		from, to, _ := strings.Cut(pair, "->")
		id := must(hex.DecodeString(from))
		a, b := v.Members[from], v.Members[to]
		z := must(ed25519Key(t, a.Seed).ECDH(ed25519Key(t, b.Seed).Public()))
		same(t, pair+": shared secret", z, p.SharedSecret)
		same(t, pair+": info", appendInfo(nil, id, v.Gid, s.AEAD, "Key", s.pairLen), p.Info)
		same(t, pair+": key", must(s.pairwiseKey(a.SenderKey, id, v.Gid, a.Cred, b.Cred, z)), p.Key)
	}
}

// TestGroupMessages makes every message of the computed set from its plaintext.
func TestGroupMessages(t *testing.T) {
	var v ownVectors
	loadVectors(t, "group-oscore-eddsa-own.json", &v)
	s := v.suite(t)
	for _, m := range v.Messages {
		t.Run(m.Name, func(t *testing.T) {
			from := v.Members[hex.EncodeToString(m.Sender)]
			a := &groupAAD{
				requestKID: m.RequestKID, requestPIV: m.RequestPIV, requestGid: m.RequestGid,
				option: m.Option, senderCred: from.Cred, gmCred: v.GMCred,
			}
			same(t, "aad_array", a.appendArray(nil, s), m.AADArray)
			if n := a.arrayLen(s); n != len(m.AADArray) {
				t.Errorf("length of aad_array is %d, not %d", n, len(m.AADArray))
			}
			var f aadFrame
			f.set(a, s)
			same(t, "AAD", f.encrypted(), m.AAD)
			alg := s.AEAD
			if m.Mode == "group" {
				alg = s.GroupEnc
			}
			c := must(newGroupCipher(alg, m.Key))
			nonce := make([]byte, c.nonce)
			setNonce(nonce, v.CommonIV, m.PIVGenerator, pivNumber(m.PIV))
			same(t, "nonce", nonce, m.Nonce)
			ciphertext := c.seal(nil, nonce, m.Plaintext, f.encrypted())
			same(t, "ciphertext", ciphertext, m.Ciphertext)
			same(t, "plaintext", must(c.open(nil, nonce, ciphertext, f.encrypted())), m.Plaintext)
			if m.Mode != "group" {
				return
			}
			same(t, "signed, 5 elements", f.countersigned(ciphertext), m.Signed5)
			same(t, "AAD, once more", f.encrypted(), m.AAD)
			key := ed25519Key(t, from.Seed)
			signature := must(key.Sign(m.Signed5))
			same(t, "signature, 5 elements", signature, m.Signature5)
			request := bytes.Equal(m.Sender, m.RequestKID)
			ks := must(s.keystream(v.SigEncKey, m.PIVGenerator, v.Gid, m.PIV, request))
			same(t, "keystream", ks, m.Keystream)
			for i := range signature {
				signature[i] ^= ks[i]
			}
			same(t, "payload", append(ciphertext, signature...), m.Payload5)

			// The form with four elements differs in its head alone.
			signed4 := append(bytes.Clone(countersignHead[4]), m.Signed5[len(countersignHead[5]):]...)
			same(t, "signed, 4 elements", signed4, m.Signed4)
			same(t, "signature, 4 elements", must(key.Sign(signed4)), m.Signature4)
		})
	}
}

// TestGroupPublishedResponse is the response in the appendix of
// draft-ietf-core-cacheable-oscore.
func TestGroupPublishedResponse(t *testing.T) {
	var v struct {
		groupVectors
		ServerSID  hexBytes `json:"server_sid"`
		ServerSeed hexBytes `json:"server_priv_seed"`
		ServerCred hexBytes `json:"server_cred"`
		ServerKey  hexBytes `json:"server_key"`
		RequestKID hexBytes `json:"request_kid"`
		RequestPIV hexBytes `json:"request_piv"`
		ClassI     hexBytes `json:"class_I_options"`
		Option     hexBytes `json:"oscore_option"`
		AADArray   hexBytes `json:"aad_array"`
		AAD        hexBytes `json:"aad"`
		Nonce      hexBytes `json:"nonce"`
		Plaintext  hexBytes `json:"plaintext"`
		Ciphertext hexBytes `json:"ciphertext"`
		Signed     hexBytes `json:"to_be_signed_5elem"`
		Signature  hexBytes `json:"signature"`
		Keystream  hexBytes `json:"keystream"`
		Encrypted  hexBytes `json:"encrypted_signature"`
	}
	loadVectors(t, "group-response-eddsa-published.json", &v)
	s := v.suite(t)
	same(t, "Sender Key", must(s.memberKey(v.MasterSecret, v.MasterSalt, v.Gid, v.ServerSID)), v.ServerKey)
	same(t, "Signature Encryption Key", must(s.signatureEncryptionKey(v.MasterSecret, v.MasterSalt, v.Gid)), v.SigEncKey)
	var f aadFrame
	f.set(&groupAAD{
		requestKID: v.RequestKID, requestPIV: v.RequestPIV, requestGid: v.Gid, classI: v.ClassI,
		option: v.Option, senderCred: v.ServerCred, gmCred: v.GMCred,
	}, s)
	same(t, "AAD", f.encrypted(), v.AAD)
	c := must(newGroupCipher(s.GroupEnc, v.ServerKey))
	nonce := make([]byte, c.nonce)
	setNonce(nonce, v.CommonIV, v.ServerSID, pivNumber([]byte{0}))
	same(t, "nonce", nonce, v.Nonce)
	ciphertext := c.seal(nil, nonce, v.Plaintext, f.encrypted())
	same(t, "ciphertext", ciphertext, v.Ciphertext)
	same(t, "signed", f.countersigned(ciphertext), v.Signed)
	signature := must(ed25519Key(t, v.ServerSeed).Sign(v.Signed))
	same(t, "signature", signature, v.Signature)
	ks := must(s.keystream(v.SigEncKey, v.ServerSID, v.Gid, []byte{0}, false))
	same(t, "keystream", ks, v.Keystream)
	for i := range signature {
		signature[i] ^= ks[i]
	}
	same(t, "encrypted signature", signature, v.Encrypted)
}

// TestGroupES256Vectors is a request and a response of the implementation in Java,
// signed with ES256.
func TestGroupES256Vectors(t *testing.T) {
	type message struct {
		SID        hexBytes `json:"sender_sid"`
		ServerSID  hexBytes `json:"server_sid"`
		PIV        hexBytes `json:"piv"`
		Key        hexBytes `json:"key"`
		Nonce      hexBytes `json:"nonce"`
		AADArray   hexBytes `json:"aad_array"`
		Plaintext  hexBytes `json:"plaintext"`
		Option     hexBytes `json:"oscore_option"`
		Ciphertext hexBytes `json:"ciphertext"`
		Payload    hexBytes `json:"payload"`
		Keystream  hexBytes `json:"keystream"`
		Signature  hexBytes `json:"signature"`
		X          hexBytes `json:"server_pub_x"`
		Y          hexBytes `json:"server_pub_y"`
	}
	var v struct {
		groupVectors
		Request, Response message
	}
	loadVectors(t, "group-ecdsa-cypress-junit.json", &v)
	s := v.suite(t)
	iv := must(s.commonIV(v.MasterSecret, v.MasterSalt, v.Gid))
	same(t, "Common IV", iv, v.CommonIV)
	sekey := must(s.signatureEncryptionKey(v.MasterSecret, v.MasterSalt, v.Gid))
	same(t, "Signature Encryption Key", sekey, v.SigEncKey)
	for name, m := range map[string]message{"request": v.Request, "response": v.Response} {
		id := append(m.SID, m.ServerSID...)
		same(t, name+": key", must(s.memberKey(v.MasterSecret, v.MasterSalt, v.Gid, id)), m.Key)
		a := &groupAAD{
			requestKID: v.Request.SID, requestPIV: v.Request.PIV, requestGid: v.Gid,
			option: m.Option, gmCred: v.GMCred,
		}
		same(t, name+": aad_array", a.appendArray(nil, s), m.AADArray)
		var f aadFrame
		f.set(a, s)
		c := must(newGroupCipher(s.GroupEnc, m.Key))
		nonce := make([]byte, c.nonce)
		setNonce(nonce, iv, v.Request.SID, pivNumber(v.Request.PIV))
		same(t, name+": nonce", nonce, m.Nonce)
		same(t, name+": ciphertext", c.seal(nil, nonce, m.Plaintext, f.encrypted()), m.Ciphertext)
		if name == "request" {
			continue
		}
		ks := must(s.keystream(sekey, v.Request.SID, v.Gid, v.Request.PIV, false))
		same(t, "keystream", ks, m.Keystream)
		signature := bytes.Clone(m.Payload[len(m.Ciphertext):])
		for i := range signature {
			signature[i] ^= ks[i]
		}
		same(t, "signature", signature, m.Signature)
		pub := &cose.Key{Kty: cose.KtyEC2, Crv: cose.CrvP256, X: m.X, Y: m.Y}
		if err := pub.Verify(f.countersigned(m.Ciphertext), signature); err != nil {
			t.Error(err)
		}
	}
}

// TestGroupCTRVectors is a request under AES-CTR, which takes no AAD and the
// beginning of a Common IV that is longer than its nonce.
func TestGroupCTRVectors(t *testing.T) {
	var v struct {
		groupVectors
		SenderKey  hexBytes `json:"sender_key"`
		Nonce      hexBytes `json:"nonce"`
		Option     hexBytes `json:"oscore_option"`
		AADArray   hexBytes `json:"aad_array"`
		Plaintext  hexBytes `json:"plaintext"`
		Ciphertext hexBytes `json:"ciphertext"`
		Signed     hexBytes `json:"to_be_signed_5elem"`
		Keystream  hexBytes `json:"keystream"`
	}
	loadVectors(t, "group-oscore-a128ctr-own.json", &v)
	s := v.suite(t)
	iv := must(s.commonIV(v.MasterSecret, v.MasterSalt, v.Gid))
	same(t, "Common IV", iv, v.CommonIV)
	key := must(s.memberKey(v.MasterSecret, v.MasterSalt, v.Gid, []byte{0x25}))
	same(t, "Sender Key", key, v.SenderKey)
	sekey := must(s.signatureEncryptionKey(v.MasterSecret, v.MasterSalt, v.Gid))
	same(t, "Signature Encryption Key", sekey, v.SigEncKey)
	c := must(newGroupCipher(s.GroupEnc, key))
	nonce := make([]byte, c.nonce)
	setNonce(nonce, iv, []byte{0x25}, pivNumber([]byte{0}))
	same(t, "nonce", nonce, v.Nonce)
	same(t, "ciphertext", c.seal(nil, nonce, v.Plaintext, []byte("ignored")), v.Ciphertext)
	same(t, "plaintext", must(c.open(nil, nonce, v.Ciphertext, nil)), v.Plaintext)
	same(t, "keystream", must(s.keystream(sekey, []byte{0x25}, v.Gid, []byte{0}, true)), v.Keystream)
}

// TestGroupHackathonKeys has keys and Diffie-Hellman secrets of the interoperability
// events of IETF 108 and 109.
func TestGroupHackathonKeys(t *testing.T) {
	type set struct {
		MasterSecret hexBytes            `json:"master_secret"`
		MasterSalt   hexBytes            `json:"master_salt"`
		Gid          hexBytes            `json:"gid"`
		Keys         map[string]hexBytes `json:"keys"`
		Entities     map[string]struct{ D, X, Y hexBytes }
		DH01Empty    hexBytes `json:"dh_01_empty"`
		DH01AA       hexBytes `json:"dh_01_aa"`
		DH0A51       hexBytes `json:"dh_0a_51"`
		DH0A52       hexBytes `json:"dh_0a_52"`
	}
	var v map[string]json.RawMessage
	loadVectors(t, "legacy-hackathon-keys.json", &v)
	algs := GroupAlgorithms{AEAD: 10, GroupEnc: 10, Sign: cose.AlgEdDSA, KeyAgreement: cose.AlgECDHSSHKDF256}
	s := must(newGroupSuite(algs))
	for _, name := range []string{"rikard1_es256", "rikard2_ed25519", "junit_interop"} {
		var x set
		if err := json.Unmarshal(v[name], &x); err != nil {
			t.Fatal(err)
		}
		for sid, want := range x.Keys {
			id, _ := hex.DecodeString(strings.TrimSuffix(sid, "(empty)"))
			same(t, name+": key of "+sid, must(s.memberKey(x.MasterSecret, x.MasterSalt, x.Gid, id)), want)
		}
		key := func(sid string) *cose.Key {
			e := x.Entities[sid]
			k := &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, D: e.D, X: e.X}
			if e.Y != nil {
				k = &cose.Key{Kty: cose.KtyEC2, Crv: cose.CrvP256, D: e.D, X: e.X, Y: e.Y}
			}
			return k
		}
		for _, dh := range []struct {
			a, b string
			want []byte
		}{{"01", "(empty)", x.DH01Empty}, {"01", "aa", x.DH01AA}, {"0a", "51", x.DH0A51}, {"0a", "52", x.DH0A52}} {
			if dh.want == nil {
				continue
			}
			same(t, name+": "+dh.a+" and "+dh.b, must(key(dh.a).ECDH(key(dh.b).Public())), dh.want)
			same(t, name+": "+dh.b+" and "+dh.a, must(key(dh.b).ECDH(key(dh.a).Public())), dh.want)
		}
	}
}

// TestGroupSuiteFaults refuses combinations that draft-ietf-core-oscore-groupcomm-28,
// Section 2.1 does not allow.
func TestGroupSuiteFaults(t *testing.T) {
	good := GroupAlgorithms{AEAD: 10, GroupEnc: 10, Sign: -8, KeyAgreement: -27}
	if s := must(newGroupSuite(good)); s.HKDF != cose.AlgHMAC256 || s.maxID != 7 || s.ivLen != 13 {
		t.Errorf("defaults: %+v", s)
	}
	mixed := must(newGroupSuite(GroupAlgorithms{AEAD: 12, GroupEnc: cose.AlgA256CTR, Sign: -36, KeyAgreement: -28, HKDF: 7}))
	if mixed.maxID != 1 || mixed.ivLen != 12 || mixed.keyLen != 32 || mixed.pairLen != 16 || mixed.sigLen != 132 {
		t.Errorf("mixed: %+v", mixed)
	}
	for name, change := range map[string]func(*GroupAlgorithms){
		"no mode":                   func(a *GroupAlgorithms) { *a = GroupAlgorithms{} },
		"no signature":              func(a *GroupAlgorithms) { a.Sign = 0 },
		"no group encryption":       func(a *GroupAlgorithms) { a.GroupEnc = 0 },
		"no AEAD":                   func(a *GroupAlgorithms) { a.AEAD = 0 },
		"no key agreement":          func(a *GroupAlgorithms) { a.KeyAgreement = 0 },
		"A128CBC":                   func(a *GroupAlgorithms) { a.GroupEnc = -65531 },
		"pairwise without AEAD":     func(a *GroupAlgorithms) { a.AEAD = cose.AlgA128CTR },
		"HKDF AES":                  func(a *GroupAlgorithms) { a.HKDF = -12 },
		"key agreement, other HKDF": func(a *GroupAlgorithms) { a.KeyAgreement = -28 },
		"unknown signature":         func(a *GroupAlgorithms) { a.Sign = -257 },
	} {
		a := good
		change(&a)
		if _, err := newGroupSuite(a); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
