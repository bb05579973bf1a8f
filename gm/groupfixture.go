package gm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// maxFixture bounds the JSON of a fixture.
const maxFixture = 1 << 20

// fixtureSIDs is the highest place of a Sender ID in a fixture: two bytes.
const fixtureSIDs = 1 + 1<<8 + 1<<16

// groupFixture is a new group as plain JSON. Bytes are hexadecimal; an algorithm
// that is left out is the default's, "none" is none.
type groupFixture struct {
	Name          string `json:"name"`
	Gid           string `json:"gid"`
	GidEpochBytes int    `json:"gid_epoch_bytes"` // 0: four, or fewer in a short Gid
	Num           uint64 `json:"num"`
	MasterSecret  string `json:"ms"`
	MasterSalt    string `json:"salt"`
	KeyLifetime   string `json:"key_lifetime"` // "": the default
	SignAlg       string `json:"sign_alg"`
	GpEncAlg      string `json:"gp_enc_alg"`
	Alg           string `json:"alg"`
	ECDHAlg       string `json:"ecdh_alg"`
	ECDHCurve     string `json:"ecdh_curve"`
	HKDF          string `json:"hkdf"`
	KDCKey        string `json:"kdc_key"` // COSE_Key with the private part; "": a new one

	Members []fixtureMember `json:"members"`
}

type fixtureMember struct {
	SenderID *string  `json:"sender_id"` // missing: a monitor
	Roles    []string `json:"roles"`
	Cred     string   `json:"cred"`
	Subject  string   `json:"subject"` // identifier of its key of proof; "": nobody's
}

// ImportFixture makes a NEW group with given keying material and members, from
// plain JSON, for tests with other implementations (docs/protocol.md, Section 10). What
// is in a fixture is known to whoever wrote it: no group that matters begins so.
func (m *Manager) ImportFixture(ctx context.Context, text []byte) (string, uint64, error) {
	p, err := decodeFixture(text)
	if err != nil {
		return "", 0, coap.Errorf(coap.BadRequest, "fixture: %w", err)
	}
	m.planting.Lock()
	defer m.planting.Unlock()
	if p.id, err = m.newest(ctx); err != nil {
		return "", 0, err
	}
	own := gidSpace{p.cfg.GidPrefix, p.cfg.GidEpochBytes}
	for _, g := range m.byID() {
		if own.meets(gidSpace{g.cfg.GidPrefix, g.cfg.GidEpochBytes}) {
			return "", 0, coap.Errorf(coap.Conflict, "fixture: group %q could come to the same Gid", g.cfg.Name)
		}
	}
	retired, err := m.retired(ctx)
	if err != nil {
		return "", 0, err
	}
	for _, r := range retired {
		if own.meets(r.gidSpace) {
			return "", 0, coap.Errorf(coap.Conflict, "fixture: the deleted group %q had such Gids", r.name)
		}
	}
	if err := m.plant(ctx, p); err != nil {
		return "", 0, err
	}
	m.log.WarnContext(ctx, "group made from a fixture", "group", p.cfg.Name, "version", p.num, "members", len(p.members))
	return p.cfg.Name, p.num, nil
}

// decodeFixture reads a fixture and checks all of it.
func decodeFixture(text []byte) (*planted, error) {
	var x groupFixture
	if len(text) > maxFixture {
		return nil, fmt.Errorf("larger than %d bytes", maxFixture)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&x); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the object")
	}
	cfg, gid, err := x.config()
	if err != nil {
		return nil, err
	}
	secret, err := hexField("ms", x.MasterSecret, 16, 64)
	if err != nil {
		return nil, err
	}
	salt, err := hexField("salt", x.MasterSalt, 0, 64)
	if err != nil {
		return nil, err
	}
	p := &planted{cfg: cfg, state: stateActive, num: x.Num, staleFrom: x.Num}
	for _, b := range gid[len(cfg.GidPrefix):] {
		p.epoch = p.epoch<<8 | uint64(b)
	}
	key, err := x.kdcKey(cfg)
	if err != nil {
		return nil, err
	}
	p.key, p.cred = key.Encode(), cose.EncodeCCS(kdcSubject, key.Public())
	for i, f := range x.Members {
		mb, err := f.member(cfg.Name, gid, x.Num)
		if err != nil {
			return nil, fmt.Errorf("members[%d]: %w", i, err)
		}
		p.members = append(p.members, *mb)
	}
	// The rules are those of any import.
	config, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	e := &exported{ID: make([]byte, 16), Config: config, KDCKey: p.key, KDCCred: p.cred, Num: x.Num, StaleFrom: x.Num, Members: p.members}
	if _, err := e.check(); err != nil {
		return nil, err
	}
	p.mat, _ = givenMaterial(newGroup(0, cfg), groupcomm.RekeyMessage{
		MasterSecret: secret, Salt: salt, ContextID: gid, Num: x.Num, Stale: []groupcomm.SenderID{},
	})
	return p, nil
}

// config is the configuration of the group.
func (x *groupFixture) config() (groupcomm.GroupConfig, groupcomm.Gid, error) {
	c := groupcomm.DefaultGroupConfig(x.Name)
	for _, a := range []struct {
		name, value string
		to          *int64
		find        func(string) (int64, bool)
	}{
		{"sign_alg", x.SignAlg, &c.SignAlg, groupcomm.AlgByName}, {"gp_enc_alg", x.GpEncAlg, &c.GpEncAlg, groupcomm.AlgByName},
		{"alg", x.Alg, &c.Alg, groupcomm.AlgByName}, {"ecdh_alg", x.ECDHAlg, &c.ECDHAlg, groupcomm.AlgByName},
		{"hkdf", x.HKDF, &c.HKDF, groupcomm.AlgByName}, {"ecdh_curve", x.ECDHCurve, &c.ECDHCrv, groupcomm.CurveByName},
	} {
		if a.value == "" {
			continue
		}
		v, ok := a.find(a.value)
		if !ok && a.value != "none" {
			return c, nil, fmt.Errorf("%s: %q is unknown", a.name, a.value)
		}
		*a.to = v
	}
	if c.ECDHAlg == 0 {
		c.ECDHCrv = 0
	}
	if x.KeyLifetime != "" {
		d, err := time.ParseDuration(x.KeyLifetime)
		if err != nil {
			return c, nil, errors.New("key_lifetime: not a duration such as 24h")
		}
		c.KeyLifetime = d
	}
	gid, err := hexField("gid", x.Gid, 1, 16)
	if err != nil {
		return c, nil, err
	}
	c.GidEpochBytes = x.GidEpochBytes
	if c.GidEpochBytes == 0 {
		c.GidEpochBytes = min(groupcomm.DefaultGidEpochBytes, len(gid))
	}
	if c.GidEpochBytes < 1 || c.GidEpochBytes > min(8, len(gid)) {
		return c, nil, errors.New("gid_epoch_bytes: longer than the gid")
	}
	c.GidPrefix = append([]byte{}, gid[:len(gid)-c.GidEpochBytes]...)
	return c, gid, nil
}

func (x *groupFixture) kdcKey(c groupcomm.GroupConfig) (*cose.Key, error) {
	if x.KDCKey == "" {
		return makeKDCKey(&c)
	}
	b, err := hexField("kdc_key", x.KDCKey, 1, maxCred)
	if err != nil {
		return nil, err
	}
	key, err := cose.DecodeKey(b)
	if err != nil || !key.IsPrivate() {
		return nil, errors.New("kdc_key: not a private COSE_Key")
	}
	return key, nil
}

func (f *fixtureMember) member(group string, gid groupcomm.Gid, num uint64) (*exportedMember, error) {
	roles, err := groupcomm.ParseRoles(strings.Join(f.Roles, ","))
	if err != nil {
		return nil, err
	}
	mb := &exportedMember{
		Node: newNodeName(), SubjectKind: int64(coap.SubjectPoP), SID: int64(noSID), Roles: int64(roles),
		Scope: groupcomm.ScopeEntry{Group: group, Roles: roles}.Encode(), CNonce: make([]byte, nonceMin), BirthGid: gid, JoinedNum: num,
	}
	rand.Read(mb.CNonce)
	if mb.SubjectID = []byte("fixture/" + mb.Node); f.Subject != "" {
		if mb.SubjectID, err = hexField("subject", f.Subject, 1, 255); err != nil {
			return nil, err
		}
	}
	if mb.Cred, err = hexField("cred", f.Cred, 0, maxCred); err != nil {
		return nil, err
	}
	if f.SenderID != nil {
		id, err := hexField("sender_id", *f.SenderID, 0, maxSenderID)
		if err != nil {
			return nil, err
		}
		place, ok := placeOf(id)
		if !ok || place >= fixtureSIDs {
			return nil, errors.New("sender_id: longer than two bytes")
		}
		mb.SID = int64(place)
	}
	return mb, nil
}

// hexField reads bytes; the error does not show them.
func hexField(name, text string, shortest, longest int) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) < shortest || len(b) > longest {
		return nil, fmt.Errorf("%s: %d to %d bytes in hexadecimal are expected", name, shortest, longest)
	}
	return b, nil
}

// Format prints [redacted]: it holds keys.
func (groupFixture) Format(f fmt.State, _ rune) { cose.Redact(f) }

// Format prints [redacted]: it holds keys.
func (*planted) Format(f fmt.State, _ rune) { cose.Redact(f) }
