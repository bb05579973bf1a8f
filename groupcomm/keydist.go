package groupcomm

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed4911071e/groupgate/cose"
)

func (k *KeyMap) fields() map[int64]any {
	m := map[int64]any{}
	putBytes(m, keyMasterSecret, k.MasterSecret)
	putInt(m, keyHKDF, k.HKDF)
	putInt(m, keyAlg, k.Alg)
	putBytes(m, keySalt, k.Salt)
	putBytes(m, keyContextID, k.ContextID)
	putBytes(m, keySenderID, k.SenderID)
	putInt(m, keyCredFmt, k.CredFmt)
	putInt(m, keyGpEncAlg, k.GpEncAlg)
	putInt(m, keySignAlg, k.SignAlg)
	if k.SignParams != nil {
		m[keySignParams] = k.SignParams
	}
	putInt(m, keyECDHAlg, k.ECDHAlg)
	if k.ECDHParams != nil {
		m[keyECDHParams] = k.ECDHParams
	}
	return m
}

// Encode gives the map; absent fields are left out.
func (k *KeyMap) Encode() []byte { return cose.MustMarshal(k.fields()) }

// DecodeKeyMap reads the map. No member is required: which are depends on the
// message around it.
func DecodeKeyMap(b []byte) (*KeyMap, error) {
	f := decodeFields("key", b)
	k := &KeyMap{
		MasterSecret: f.bytes(keyMasterSecret),
		HKDF:         f.int(keyHKDF),
		Alg:          f.int(keyAlg),
		Salt:         f.bytes(keySalt),
		ContextID:    f.bytes(keyContextID),
		SenderID:     f.bytes(keySenderID),
		CredFmt:      f.int(keyCredFmt),
		GpEncAlg:     f.int(keyGpEncAlg),
		SignAlg:      f.int(keySignAlg),
		SignParams:   array(f, keySignParams, asCapabilities),
		ECDHAlg:      f.int(keyECDHAlg),
		ECDHParams:   array(f, keyECDHParams, asCapabilities),
	}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// HKDFOrDefault is the HKDF, HMAC 256/256 where the message leaves it out
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.3 and 6.4).
func (k *KeyMap) HKDFOrDefault() int64 {
	if k.HKDF == 0 {
		return cose.AlgHMAC256
	}
	return k.HKDF
}

func (p *Policies) fields() map[int64]any {
	return map[int64]any{policyKeyCheck: p.KeyCheck, policyExpirationDelta: p.ExpirationDelta}
}

// Encode gives the body of GET on policies: {16: {1: seconds, 2: seconds}}
// (RFC 9594, Section 4.6.1).
func (p *Policies) Encode() []byte {
	return cose.MustMarshal(map[int64]any{labelPolicies: p.fields()})
}

// DecodePolicies reads the body of GET on policies; nil means that the group has
// none.
func DecodePolicies(b []byte) (*Policies, error) {
	if len(b) == 1 && b[0] == emptyAnswer {
		return nil, nil
	}
	f := decodeFields("policies", b)
	f.need(labelPolicies)
	p := f.policies()
	if f.err != nil {
		return nil, f.err
	}
	return p, nil
}

func (f *fields) policies() *Policies {
	raw, ok := f.m[labelPolicies]
	if !ok {
		return nil
	}
	in := decodeFields("group_policies", raw)
	p := &Policies{KeyCheck: in.uint(policyKeyCheck), ExpirationDelta: in.uint(policyExpirationDelta)}
	f.fail(in.err)
	return p
}

// Encode gives the map: of a Join Response (RFC 9594, Section 4.3.1;
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.3) or of the group's keying
// material. exi is always there, 0 when the time is over.
func (k *KeyDistribution) Encode() []byte {
	m := map[int64]any{
		labelGkty:    GktyOSCORE,
		labelKey:     k.Key.fields(),
		labelNum:     k.Num,
		labelProfile: k.Profile,
		labelExi:     max(k.Exi, 0),
	}
	putInt(m, labelExp, max(k.Exp, 0))
	if k.Creds != nil {
		putCreds(m, k.Creds, k.PeerRoles, k.PeerIdentifiers)
	}
	if k.Policies != nil {
		m[labelPolicies] = k.Policies.fields()
	}
	putBytes(m, labelKDCCred, k.KDCCred)
	putBytes(m, labelKDCNonce, k.KDCNonce)
	putBytes(m, labelKDCCredVerify, k.KDCCredVerify)
	if k.RekeyingScheme != nil {
		m[labelRekeyingScheme] = *k.RekeyingScheme
	}
	putBytes(m, labelMgtKeyMaterial, k.MgtKeyMaterial)
	if k.ControlGroupURI != "" {
		m[labelControlGroupURI] = k.ControlGroupURI
	}
	putActivation(m, k.ActivateIn)
	return cose.MustMarshal(m)
}

// putCreds writes the three parallel arrays; roles that are not known are left
// out, not written as an array of another length.
func putCreds(m map[int64]any, creds [][]byte, roles []Roles, ids []SenderID) {
	m[labelCreds] = creds
	if roles != nil || len(creds) == 0 {
		m[labelPeerRoles] = roles
	}
	m[labelPeerIdentifiers] = ids
}

// creds reads the three parallel arrays. peer_roles may be left out (it is only
// recommended); what is there has one element per credential.
func (f *fields) creds() (creds [][]byte, roles []Roles, ids []SenderID) {
	creds = array(f, labelCreds, cose.AsBytes)
	roles = array(f, labelPeerRoles, asRoles)
	ids = array(f, labelPeerIdentifiers, asSenderID)
	if len(ids) != len(creds) || (roles != nil && len(roles) != len(creds)) {
		f.fail(errors.New("creds, peer_roles and peer_identifiers differ in length"))
	}
	return creds, roles, ids
}

// DecodeKeyDistribution reads the map. What every such message has is required:
// gkty, key with Master Secret, Gid and credential format, num and profile. What
// only a Join Response has is for the caller to look for.
func DecodeKeyDistribution(b []byte) (*KeyDistribution, error) {
	f := decodeFields("key distribution", b)
	f.fixed(labelGkty, GktyOSCORE)
	f.fixed(labelProfile, ProfileApp)
	f.need(labelKey, labelNum)
	k := &KeyDistribution{
		Num:            f.uint(labelNum),
		Profile:        ProfileApp,
		Exp:            f.seconds(labelExp),
		Exi:            f.seconds(labelExi),
		Policies:       f.policies(),
		KDCCred:        f.bytes(labelKDCCred),
		KDCNonce:       f.bytes(labelKDCNonce),
		KDCCredVerify:  f.bytes(labelKDCCredVerify),
		MgtKeyMaterial: f.bytes(labelMgtKeyMaterial),

		ControlGroupURI: f.text(labelControlGroupURI),
	}
	k.Creds, k.PeerRoles, k.PeerIdentifiers = f.creds()
	k.ActivateIn = f.activation()
	if f.m.Has(labelRekeyingScheme) {
		scheme := f.int(labelRekeyingScheme)
		k.RekeyingScheme = &scheme
	}
	if f.err == nil {
		key, err := DecodeKeyMap(f.m[labelKey])
		if err != nil {
			f.fail(err)
		} else if k.Key = *key; key.MasterSecret == nil || key.ContextID == nil || key.CredFmt == 0 {
			f.fail(errors.New("key without Master Secret, Gid or credential format"))
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return k, nil
}

// Encode gives the map (draft-ietf-ace-key-groupcomm-oscore-21, Section 11.1).
func (r *RekeyMessage) Encode() []byte {
	key := KeyMap{MasterSecret: r.MasterSecret, ContextID: r.ContextID, Salt: r.Salt}
	m := map[int64]any{
		labelGkty:         GktyOSCORE,
		labelKey:          key.fields(),
		labelNum:          r.Num,
		labelProfile:      ProfileApp,
		labelExi:          max(r.Exi, 0),
		labelStaleNodeIDs: r.Stale,
	}
	putInt(m, labelExp, max(r.Exp, 0))
	if len(r.Creds) > 0 {
		putCreds(m, r.Creds, r.PeerRoles, r.PeerIdentifiers)
	}
	putActivation(m, r.ActivateIn)
	return cose.MustMarshal(m)
}

// putActivation says that keying material is not to be used yet.
func putActivation(m map[int64]any, seconds uint64) {
	if seconds > 0 {
		m[labelDelivery] = map[int64]any{deliveryPhases: seconds}
	}
}

// activation reads what putActivation wrote. Longer than [MaxSpread] nobody waits.
func (f *fields) activation() uint64 {
	raw, ok := f.m[labelDelivery]
	if !ok || f.err != nil {
		return 0
	}
	in, err := cose.DecodeMap(raw)
	if err != nil {
		f.failf("label %d: %w", labelDelivery, err)
		return 0
	}
	seconds, _, err := in.Uint(deliveryPhases)
	f.fail(err)
	return min(seconds, uint64(MaxSpread/time.Second))
}

// Dormant gives the encoded rekey message b for a member that asked for two phases:
// the same with ActivateIn. It is the same bytes for the same seconds.
func Dormant(b []byte, seconds uint64) ([]byte, error) {
	r, err := DecodeRekeyMessage(b)
	if err != nil {
		return nil, err
	}
	r.ActivateIn = seconds
	return r.Encode(), nil
}

// EncodeDeletionNotice gives the message that tells a member at its control_uri
// that the group was deleted: {7: 1, 8: {}, 10: 1}, a rekey message without keying
// material (draft-ietf-ace-oscore-gm-admin, on deleting a group).
func EncodeDeletionNotice() []byte {
	return cose.MustMarshal(map[int64]any{labelGkty: GktyOSCORE, labelKey: map[int64]any{}, labelProfile: ProfileApp})
}

// IsDeletionNotice says whether a message is that of [EncodeDeletionNotice].
func IsDeletionNotice(b []byte) bool {
	f := decodeFields("deletion notice", b)
	f.fixed(labelGkty, GktyOSCORE)
	f.fixed(labelProfile, ProfileApp)
	if f.err != nil || f.m.Has(labelNum) {
		return false
	}
	key, err := cose.DecodeMap(f.m[labelKey])
	return err == nil && len(key) == 0
}

// DecodeRekeyMessage reads the map. stale_node_ids must be there, even when
// empty: without it a member would keep contexts that it must drop.
func DecodeRekeyMessage(b []byte) (*RekeyMessage, error) {
	f := decodeFields("rekey message", b)
	f.fixed(labelGkty, GktyOSCORE)
	f.fixed(labelProfile, ProfileApp)
	f.need(labelKey, labelNum, labelStaleNodeIDs)
	r := &RekeyMessage{
		Num:   f.uint(labelNum),
		Exp:   f.seconds(labelExp),
		Exi:   f.seconds(labelExi),
		Stale: array(f, labelStaleNodeIDs, asSenderID),
	}
	r.Creds, r.PeerRoles, r.PeerIdentifiers = f.creds()
	r.ActivateIn = f.activation()
	if f.err == nil {
		key, err := DecodeKeyMap(f.m[labelKey])
		if err != nil {
			f.fail(err)
		} else if key.MasterSecret == nil || key.ContextID == nil {
			f.fail(errors.New("key without Master Secret or Gid"))
		} else {
			r.MasterSecret, r.ContextID, r.Salt = key.MasterSecret, key.ContextID, key.Salt
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	return r, nil
}

// Encode gives the map, or one zero-length byte string when there is no
// credential to tell (RFC 9594, Section 4.4.1).
func (c *CredsResponse) Encode() []byte {
	if len(c.Creds) == 0 {
		return []byte{emptyAnswer}
	}
	m := map[int64]any{labelNum: c.Num}
	putCreds(m, c.Creds, c.PeerRoles, c.PeerIdentifiers)
	return cose.MustMarshal(m)
}

// DecodeCredsResponse reads the map; the empty answer gives an empty value.
func DecodeCredsResponse(b []byte) (*CredsResponse, error) {
	if len(b) == 1 && b[0] == emptyAnswer {
		return &CredsResponse{}, nil
	}
	f := decodeFields("credentials", b)
	f.need(labelNum, labelCreds, labelPeerIdentifiers)
	c := &CredsResponse{Num: f.uint(labelNum)}
	c.Creds, c.PeerRoles, c.PeerIdentifiers = f.creds()
	if f.err != nil {
		return nil, f.err
	}
	return c, nil
}

// Keys inside 'mgt_key_material' of the private rekeying schemes.
const (
	mgtKID      int64 = 0
	mgtKey      int64 = 1
	mgtAlg      int64 = 2
	mgtBaseIV   int64 = 3
	mgtBroker   int64 = 4
	mgtTopic    int64 = 5
	mgtUser     int64 = 6
	mgtPassword int64 = 7
	mgtAckTopic int64 = 8
	mgtTree     int64 = 9
	mgtTreeTop  int64 = 10
)

// Encode gives the content of the byte string 'mgt_key_material' (label 27).
func (k *MgtKeyMaterial) Encode() []byte {
	m := map[int64]any{mgtKID: k.KID, mgtKey: k.Key, mgtAlg: k.Alg, mgtBaseIV: k.BaseIV}
	for label, v := range map[int64]string{
		mgtBroker: k.Broker, mgtTopic: k.Topic, mgtUser: k.User, mgtPassword: k.Password, mgtAckTopic: k.AckTopic,
		mgtTreeTop: k.TreeTopic,
	} {
		if v != "" {
			m[label] = v
		}
	}
	putBytes(m, mgtTree, k.Tree)
	putBytes(m, labelKDCCred, k.KDCCred)
	putBytes(m, labelKDCNonce, k.KDCNonce)
	putBytes(m, labelKDCCredVerify, k.KDCCredVerify)
	return cose.MustMarshal(m)
}

// DecodeMgtKeyMaterial reads the content of 'mgt_key_material' and checks that
// key and Base IV suit the algorithm.
func DecodeMgtKeyMaterial(b []byte) (*MgtKeyMaterial, error) {
	f := decodeFields("mgt_key_material", b)
	f.need(mgtKID, mgtKey, mgtAlg, mgtBaseIV)
	if !f.m.Has(mgtTree) {
		f.need(mgtBroker, mgtTopic)
	}
	k := &MgtKeyMaterial{
		KID:      f.bytes(mgtKID),
		Key:      f.bytes(mgtKey),
		Alg:      f.int(mgtAlg),
		BaseIV:   f.bytes(mgtBaseIV),
		Broker:   f.text(mgtBroker),
		Topic:    f.text(mgtTopic),
		User:     f.text(mgtUser),
		Password: f.text(mgtPassword),
		AckTopic: f.text(mgtAckTopic),

		Tree:      f.bytes(mgtTree),
		TreeTopic: f.text(mgtTreeTop),

		KDCCred:       f.bytes(labelKDCCred),
		KDCNonce:      f.bytes(labelKDCNonce),
		KDCCredVerify: f.bytes(labelKDCCredVerify),
	}
	if f.err != nil {
		return nil, f.err
	}
	keyLen, nonceLen, _, ok := cose.AEADSizes(k.Alg)
	if !ok {
		return nil, fmt.Errorf("mgt_key_material: algorithm %d is not supported", k.Alg)
	}
	if len(k.Key) != keyLen || len(k.BaseIV) != nonceLen || len(k.KID) == 0 {
		return nil, errors.New("mgt_key_material: key, Base IV or kid has a wrong length")
	}
	return k, nil
}
