package groupcomm

import (
	"errors"

	"github.com/seed4911071e/groupgate/cose"
)

// LegacyKey is 'key' of the legacy dialects, the
// Group_OSCORE_Security_Context object
// (draft-ietf-ace-key-groupcomm-oscore-03, Section 4.3). In a rekey message only
// Master Secret, Gid and salt are there.
type LegacyKey struct {
	MasterSecret []byte   // 1: ms
	ClientID     SenderID // 2; nil: left out
	HKDF         int64    // 4; 0: left out
	Alg          int64    // 5; 0: left out
	Salt         []byte   // 6; nil: left out
	ContextID    Gid      // 7
	// Sign is cs_alg (9), cs_params (10), cs_key_params (11); Alg 0: all and
	// cs_key_enc (12) are left out.
	Sign LegacySignInfo
}

// LegacyPubKey is one element of 'pub_keys': a public key and the Sender ID of its
// owner, which it has as kid.
type LegacyPubKey struct {
	SenderID SenderID
	Key      *cose.Key
}

// LegacyKeyDistribution is the body of a Joining Response, of GET on the group,
// and, without the fields that it lacks, of a rekey message
// (draft-ietf-ace-key-groupcomm-oscore-03, Sections 4.3, 6 and 13).
type LegacyKeyDistribution struct {
	Dialect   Interface
	Key       LegacyKey      // 2, with kty 1 = 1
	Num       Version        // 206
	Exp       int64          // 4, seconds since 1970; profile 38 = 1
	PubKeys   []LegacyPubKey // 3; nil: left out
	PeerRoles []Roles        // 208, only in hackathon-109
	Policies  *Policies      // 207
}

func (k *LegacyKey) fields(d Interface) map[int64]any {
	m := map[int64]any{}
	putBytes(m, legacyKeyMS, k.MasterSecret)
	putBytes(m, legacyKeyClientID, k.ClientID)
	putInt(m, legacyKeyHKDF, k.HKDF)
	putInt(m, legacyKeyAlg, k.Alg)
	putBytes(m, legacyKeySalt, k.Salt)
	putBytes(m, legacyKeyContextID, k.ContextID)
	if k.Sign.Alg != 0 {
		m[legacyKeyCSAlg] = k.Sign.Alg
		if k.Sign.Crv != 0 {
			m[legacyKeyCSParams] = k.Sign.params(d)
		}
		if k.Sign.Kty != 0 {
			m[legacyKeyCSKeyParams] = k.Sign.keyParams(d)
		}
		m[legacyKeyCSKeyEnc] = PubKeyEncCOSEKey
	}
	return m
}

func decodeLegacyKey(d Interface, b []byte) (*LegacyKey, error) {
	f := decodeFields("key", b)
	f.need(legacyKeyMS, legacyKeyContextID)
	k := &LegacyKey{
		MasterSecret: f.bytes(legacyKeyMS),
		ClientID:     f.bytes(legacyKeyClientID),
		HKDF:         f.int(legacyKeyHKDF),
		Alg:          f.int(legacyKeyAlg),
		Salt:         f.bytes(legacyKeySalt),
		ContextID:    f.bytes(legacyKeyContextID),
		Sign:         LegacySignInfo{Alg: f.int(legacyKeyCSAlg)},
	}
	enc := f.int(legacyKeyCSKeyEnc)
	if f.m.Has(legacyKeyCSKeyEnc) && enc != PubKeyEncCOSEKey {
		f.failf("label %d: encoding %d of public keys is not supported", legacyKeyCSKeyEnc, enc)
	}
	if f.err == nil && k.Sign.Alg != 0 {
		f.fail(k.Sign.readParams(d, f.m[legacyKeyCSParams], f.m[legacyKeyCSKeyParams]))
	}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// Encode gives the map.
func (k *LegacyKeyDistribution) Encode() []byte {
	m := map[int64]any{
		legacyKty:     GktyOSCORE,
		legacyKey:     k.Key.fields(k.Dialect),
		legacyNum:     k.Num,
		legacyProfile: ProfileApp,
		legacyExp:     max(k.Exp, 0),
	}
	if k.PubKeys != nil {
		m[legacyPubKeys] = encodeKeySet(k.PubKeys)
		putPeerRoles(m, k.Dialect, k.PeerRoles)
	}
	if k.Policies != nil {
		m[legacyPolicies] = legacyPolicyFields(k.Dialect, k.Policies)
	}
	return cose.MustMarshal(m)
}

// DecodeLegacyKeyDistribution reads the map. kty, key with Master Secret and Gid,
// num, profile and exp are required.
func DecodeLegacyKeyDistribution(d Interface, b []byte) (*LegacyKeyDistribution, error) {
	f := decodeFields("legacy key distribution", b)
	if d != Draft03 && d != Hackathon109 {
		f.fail(errNotLegacy)
	}
	f.fixed(legacyKty, GktyOSCORE)
	f.fixed(legacyProfile, ProfileApp)
	f.need(legacyKey, legacyNum, legacyExp)
	k := &LegacyKeyDistribution{
		Dialect: d, Num: f.uint(legacyNum), Exp: f.seconds(legacyExp), Policies: f.legacyPolicies(),
	}
	if f.err == nil {
		key, err := decodeLegacyKey(d, f.m[legacyKey])
		if err != nil {
			f.fail(err)
		} else {
			k.Key = *key
		}
	}
	k.PubKeys, k.PeerRoles = f.pubKeys(d)
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// LegacyPubKeys is the answer to a Public Key Request: {3: COSE_KeySet}, in
// hackathon-109 with peer_roles (208).
type LegacyPubKeys struct {
	Dialect   Interface
	PubKeys   []LegacyPubKey
	PeerRoles []Roles
}

// Encode gives the map, or one zero-length byte string when there is no key to
// tell (draft-ietf-ace-key-groupcomm-03, Section 4.1.3.1).
func (p *LegacyPubKeys) Encode() []byte {
	if len(p.PubKeys) == 0 {
		return []byte{emptyAnswer}
	}
	m := map[int64]any{legacyPubKeys: encodeKeySet(p.PubKeys)}
	putPeerRoles(m, p.Dialect, p.PeerRoles)
	return cose.MustMarshal(m)
}

// DecodeLegacyPubKeys reads the map; the empty answer gives an empty value.
func DecodeLegacyPubKeys(d Interface, b []byte) (*LegacyPubKeys, error) {
	if len(b) == 1 && b[0] == emptyAnswer {
		return &LegacyPubKeys{Dialect: d}, nil
	}
	f := decodeFields("legacy public keys", b)
	f.need(legacyPubKeys)
	p := &LegacyPubKeys{Dialect: d}
	p.PubKeys, p.PeerRoles = f.pubKeys(d)
	if f.err != nil {
		return nil, f.err
	}
	return p, nil
}

func putPeerRoles(m map[int64]any, d Interface, roles []Roles) {
	if d != Draft03 && roles != nil {
		m[legacyPeerRoles] = roles
	}
}

// encodeKeySet gives the content of 'pub_keys': a COSE_KeySet (RFC 8152, Section
// 7).
func encodeKeySet(keys []LegacyPubKey) []byte {
	set := make([]cose.Item, 0, len(keys))
	for _, k := range keys {
		pub := k.Key.Public()
		pub.KID = append([]byte{}, k.SenderID...)
		set = append(set, pub.Encode())
	}
	return cose.MustMarshal(set)
}

// pubKeys reads pub_keys and peer_roles, which is aligned with it.
func (f *fields) pubKeys(d Interface) (keys []LegacyPubKey, roles []Roles) {
	set := f.bytes(legacyPubKeys)
	if f.err != nil {
		return nil, nil
	}
	if set != nil {
		var err error
		if keys, err = decodeArray(set, asPubKey); err != nil {
			f.failf("label %d: %w", legacyPubKeys, err)
		}
	}
	if d == Draft03 {
		return keys, nil
	}
	roles = array(f, legacyPeerRoles, asRoles)
	if roles != nil && len(roles) != len(keys) {
		f.fail(errors.New("pub_keys and peer_roles differ in length"))
	}
	return keys, roles
}

func asPubKey(b []byte) (LegacyPubKey, error) {
	key, err := cose.DecodeKey(b)
	switch {
	case err != nil:
		return LegacyPubKey{}, err
	case key.Kty == cose.KtySymmetric || key.IsPrivate():
		return LegacyPubKey{}, errors.New("not a public key")
	case key.KID == nil:
		return LegacyPubKey{}, errors.New("no kid")
	}
	k := LegacyPubKey{SenderID: key.KID, Key: key}
	key.KID = nil
	return k, nil
}

// CredOfKey makes the credential of a client that has only a COSE_Key: a CWT
// Claims Set {8: {1: key}} without kid, in deterministic encoding, so that one key
// gives one credential. The key must be public and on its curve.
func CredOfKey(coseKey []byte) ([]byte, error) {
	key, err := cose.DecodeKey(coseKey)
	switch {
	case err != nil:
		return nil, err
	case key.Kty == cose.KtySymmetric || key.IsPrivate():
		return nil, errors.New("COSE_Key: not a public key")
	}
	key.KID = nil
	return cose.EncodeCCS("", key), nil
}

// KeyOfCred is the reverse of [CredOfKey], for credentials of any origin that are
// CWT Claims Sets; what else the claims say is left out.
func KeyOfCred(cred []byte, sid SenderID) (LegacyPubKey, error) {
	key, err := cose.ParseCCS(cred)
	if err != nil {
		return LegacyPubKey{}, err
	}
	key.KID = nil
	return LegacyPubKey{SenderID: sid, Key: key}, nil
}
