package gm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// An exported group is one file:
//
//	magic (16 bytes) | version (1) | lock (1) | sealed
//
// where sealed is the deterministic CBOR of an exported under AES-256-GCM. With
// lock 0 it is a value of store.Seal, which only a gateway with the same sealing
// key opens. With lock 1 it is salt (32 bytes), ciphertext and tag, with all
// before the ciphertext as additional data: key and nonce come out of
// HKDF-SHA-256 over the salt and the passphrase, hardened by PBKDF2 with 600,000
// rounds of HMAC-SHA-256. A salt is used once, so the nonce is.
const (
	exportMagic   = "groupgate group\n"
	exportVersion = 2 // 1 had no Branches
	lockSealKey   = 0
	lockPhrase    = 1
	exportSalt    = 32
	exportHeader  = len(exportMagic) + 2
	exportRounds  = 600_000 // part of the format
	exportContext = "gm/group export 1"
	minPhrase     = 12
	maxPhrase     = 1024

	// MaxExport bounds an exported file: some 300 bytes for each member.
	MaxExport     = 64 << 20
	maxExported   = 1 << 18 // members, and stale Sender IDs
	maxExportSIDs = 1 << 20 // highest place of a Sender ID: bounds the rows that an import writes
	maxExportNum  = 1 << 62
)

// Failures of an import that the operator can mend.
var (
	errNoExport = errors.New("gm: not an exported group, or damaged")
	// ErrExportLocked: wrong passphrase, or another sealing key, or a damaged
	// file: which of these is not told.
	ErrExportLocked = coap.Errorf(coap.Forbidden, "the file does not open: wrong passphrase or sealing key, or damaged")
)

// exported is a group on its way to another gateway. Neither Master Secret nor
// Master Salt come along: the import makes new ones.
type exported struct {
	_ struct{} `cbor:",toarray"`

	Backup    bool
	ID        []byte // 16 bytes; alike in every file of one move
	Config    []byte // JSON of groupcomm.GroupConfig
	KDCKey    []byte // COSE_Key, private
	KDCCred   []byte
	Active    bool
	Num       uint64
	Epoch     uint64
	Wraps     uint64
	StaleFrom uint64
	Stale     []exportedStale
	Members   []exportedMember
	Branches  []exportedBranch
}

// exportedBranch is a member that follows the group's key tree, of which nothing
// else comes along: at the other gateway grows another.
type exportedBranch struct {
	_       struct{} `cbor:",toarray"`
	Node    string
	Channel string // that it asked for
}

type exportedStale struct {
	_   struct{} `cbor:",toarray"`
	Num uint64
	SID int64
}

type exportedMember struct {
	_ struct{} `cbor:",toarray"`

	Node        string
	SubjectKind int64
	SubjectID   []byte
	SID         int64 // noSID for a monitor
	Roles       int64
	Cred        []byte // empty for a monitor
	Scope       []byte
	CNonce      []byte
	ControlURI  string
	BirthGid    []byte
	JoinedNum   uint64
	Expires     int64 // milliseconds
	Lapsed      bool
	LapsedNum   uint64
}

// addBranches makes the content of a file of version 1, an array of 12 elements,
// what an export of today would have written.
func addBranches(b []byte) []byte {
	if len(b) == 0 || b[0] != 0x8c {
		return b
	}
	return append(append([]byte{0x8d}, b[1:]...), 0x80)
}

func (e *exported) encode() []byte { return cose.MustMarshal(e) }

// decodeExported reads exactly what encode writes, and checks all of it: what it
// returns can be served.
func decodeExported(b []byte) (*exported, *groupcomm.GroupConfig, error) {
	e := &exported{}
	if err := cose.UnmarshalLong(b, e); err != nil {
		return nil, nil, errNoExport
	}
	if !bytes.Equal(e.encode(), b) {
		return nil, nil, errNoExport
	}
	cfg, err := e.check()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoExport, err)
	}
	return e, cfg, nil
}

// check says what is wrong with the content.
func (e *exported) check() (*groupcomm.GroupConfig, error) {
	cfg := &groupcomm.GroupConfig{}
	dec := json.NewDecoder(bytes.NewReader(e.Config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil || len(e.ID) != 16 {
		return nil, errors.New("configuration or identifier")
	}
	if err := errors.Join(cfg.Validate(), validateGroup(*cfg)); err != nil {
		return nil, err
	}
	if cfg.GidPrefix == nil || cfg.GidEpochBytes == 0 {
		return nil, errors.New("no Gid space")
	}
	if err := e.checkKDC(cfg); err != nil {
		return nil, err
	}
	if e.Num > maxExportNum || e.StaleFrom > e.Num || e.Num-e.StaleFrom+1 > uint64(cfg.MaxStaleSets) || len(e.Stale) > maxExported {
		return nil, errors.New("version or stale sets")
	}
	held := map[int64]string{}
	nodes, subjects := map[string]bool{}, map[string]bool{}
	for _, m := range e.Members {
		who := fmt.Sprint(m.SubjectKind, "/", string(m.SubjectID))
		if err := m.check(cfg, e.Num); err != nil {
			return nil, fmt.Errorf("member %q: %w", m.Node, err)
		}
		if nodes[m.Node] || subjects[who] || m.SID != int64(noSID) && held[m.SID] != "" {
			return nil, fmt.Errorf("member %q twice", m.Node)
		}
		nodes[m.Node], subjects[who], held[m.SID] = true, true, m.Node
	}
	for _, b := range e.Branches {
		if !nodes[b.Node] || b.Channel != "mqtt" && b.Channel != "multicast" {
			return nil, errors.New("key tree")
		}
		nodes[b.Node] = false // one place each
	}
	stale := map[exportedStale]bool{}
	for _, s := range e.Stale {
		if s.SID < 0 || s.SID >= maxExportSIDs || s.Num < e.StaleFrom || s.Num > e.Num || stale[s] ||
			s.Num == e.Num && held[s.SID] != "" {
			return nil, errors.New("stale Sender IDs")
		}
		stale[s] = true
	}
	return cfg, nil
}

// checkKDC: the Group Manager's key fits the group, and its credential is that of
// the key.
func (e *exported) checkKDC(cfg *groupcomm.GroupConfig) error {
	errKey := errors.New("key of the Group Manager")
	key, err := cose.DecodeKey(e.KDCKey)
	if err != nil || !key.IsPrivate() || len(e.KDCCred) > maxCred {
		return errKey
	}
	public, err := parseCred(cfg, e.KDCCred)
	if err != nil || !public.SamePublic(key) {
		return errKey
	}
	if _, err := newKDC(cfg, key, e.KDCCred); err != nil {
		return errKey
	}
	return nil
}

func (m *exportedMember) check(cfg *groupcomm.GroupConfig, num uint64) error {
	roles := groupcomm.Roles(m.Roles)
	entry, err := groupcomm.DecodeScopeEntry(m.Scope)
	if err != nil || entry.Group != cfg.Name || entry.Roles != roles || int64(roles) != m.Roles {
		return errors.New("scope")
	}
	if err := roles.ValidJoin(); err != nil {
		return err
	}
	if monitor := roles.MonitorOnly(); monitor != (m.SID == int64(noSID)) || monitor != (len(m.Cred) == 0) {
		return errors.New("sender id or credential")
	}
	if m.SID != int64(noSID) {
		if m.SID < 0 || m.SID >= min(maxExportSIDs, places(cfg.MaxSenderIDLen())) || len(m.Cred) > maxCred {
			return errors.New("sender id or credential")
		}
		if _, err := parseCred(cfg, m.Cred); err != nil {
			return err
		}
	}
	switch {
	case m.Node == "" || len(m.Node) > 64 || !groupcomm.ValidGroupName(m.Node):
		return errors.New("name")
	case m.SubjectKind < 0 || m.SubjectKind > 255 || len(m.SubjectID) == 0 || len(m.SubjectID) > 255:
		return errors.New("subject")
	case len(m.CNonce) < nonceMin || len(m.CNonce) > nonceMax || len(m.BirthGid) == 0 || len(m.BirthGid) > 16:
		return errors.New("nonce or Birth Gid")
	case m.JoinedNum > num || m.LapsedNum > num || m.Expires < 0 || m.Lapsed && m.Expires == 0:
		return errors.New("times")
	}
	return checkControlURI(m.ControlURI, cfg.Name)
}

// phraseLock derives key and nonce of a file from a passphrase.
func phraseLock(salt, phrase []byte) (cipher.AEAD, []byte, error) {
	if len(phrase) < minPhrase || len(phrase) > maxPhrase {
		return nil, nil, coap.Errorf(coap.BadRequest, "the passphrase must have %d to %d bytes", minPhrase, maxPhrase)
	}
	secret, err := pbkdf2.Key(sha256.New, string(phrase), salt, exportRounds, 32)
	if err != nil {
		return nil, nil, err
	}
	okm, err := hkdf.Key(sha256.New, secret, salt, "groupgate group export 1", 32+12)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		return nil, nil, err
	}
	gcm, err := cipher.NewGCM(block)
	return gcm, okm[32:], err
}

// sealExport makes the file; without a passphrase under the sealing key.
func (m *Manager) sealExport(e *exported, phrase []byte) ([]byte, error) {
	if len(phrase) == 0 {
		header := append([]byte(exportMagic), exportVersion, lockSealKey)
		return append(header, m.st.Seal(exportContext, e.encode())...), nil
	}
	header := append([]byte(exportMagic), exportVersion, lockPhrase)
	header = append(header, make([]byte, exportSalt)...)
	salt := header[len(header)-exportSalt:]
	rand.Read(salt)
	gcm, nonce, err := phraseLock(salt, phrase)
	if err != nil {
		return nil, err
	}
	return append(header, gcm.Seal(nil, nonce, e.encode(), header)...), nil
}

// openExport is the inverse of sealExport.
func (m *Manager) openExport(file, phrase []byte) (*exported, *groupcomm.GroupConfig, error) {
	if len(file) > MaxExport || len(file) < exportHeader || string(file[:len(exportMagic)]) != exportMagic {
		return nil, nil, coap.Errorf(coap.BadRequest, "%w", errNoExport)
	}
	var plain []byte
	var err error
	version, lock, body := file[len(exportMagic)], file[len(exportMagic)+1], file[exportHeader:]
	switch {
	case version < 1 || version > exportVersion:
		return nil, nil, coap.Errorf(coap.BadRequest, "exported in format %d, and this program reads %d", version, exportVersion)
	case lock == lockPhrase && len(phrase) == 0:
		return nil, nil, coap.Errorf(coap.BadRequest, "the file was exported with a passphrase")
	case lock == lockSealKey && len(phrase) > 0:
		return nil, nil, coap.Errorf(coap.BadRequest, "the file was exported without a passphrase")
	case lock == lockSealKey:
		plain, err = m.st.Unseal(exportContext, body)
	case lock == lockPhrase && len(body) > exportSalt:
		gcm, nonce, lockErr := phraseLock(body[:exportSalt], phrase)
		if lockErr != nil {
			return nil, nil, lockErr
		}
		plain, err = gcm.Open(nil, nonce, body[exportSalt:], file[:exportHeader+exportSalt])
	default:
		return nil, nil, coap.Errorf(coap.BadRequest, "%w", errNoExport)
	}
	if err != nil {
		return nil, nil, ErrExportLocked
	}
	if version == 1 {
		plain = addBranches(plain)
	}
	e, cfg, err := decodeExported(plain)
	if err != nil {
		return nil, nil, coap.Errorf(coap.BadRequest, "%w", err)
	}
	return e, cfg, nil
}

// Format prints [redacted]: it holds a private key.
func (*exported) Format(f fmt.State, _ rune) { cose.Redact(f) }
