package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/seed4911071e/groupgate/cose"
)

// SealKeyEnv is the environment variable that holds the sealing key in place of
// a file: 64 hexadecimal digits.
const SealKeyEnv = "GROUPGATE_SEAL_KEY"

const (
	sealKeySize = 32
	minDerive   = 16 // bytes of a derivation key
	maxKeyFile  = 16 << 10
)

// CheckKeys reads every key file that the configuration names, without creating
// any, and keeps the keys in c. Files that the gateway would create itself may
// be absent. All faults are reported at once, as a [*FaultError].
func (c *Config) CheckKeys() error {
	return c.readKeys(c.owned)
}

// readKeys fills the fields that Bootstrap and CheckKeys promise. absent says
// which missing files are no fault.
func (c *Config) readKeys(absent func(file string) bool) error {
	r := &keyReader{c: c, faults: newFaults(c.file, c.lines), absent: absent}
	c.checkMachine(r.faults)
	for i := range c.Tokens {
		r.token(fmt.Sprintf("tokens[%d]", i), &c.Tokens[i])
	}
	r.oneAlgorithmPerKey()
	for i := range c.PSK {
		p, key := &c.PSK[i], fmt.Sprintf("psk[%d].key_file", i)
		if b, ok := r.hexFile(key, p.KeyFile); ok {
			p.Key = newSecret(b)
			checkPSK(r.faults, key, p.Key)
		}
	}
	for i := range c.Delegates {
		a, key := &c.Delegates[i].Auth, fmt.Sprintf("delegates[%d].auth.psk_file", i)
		r.remotePSK(key, a.PSKFile, &a.Key)
		if b, ok := r.file(fmt.Sprintf("delegates[%d].mqtt_password_file", i), c.Delegates[i].MQTTPasswordFile, true); ok {
			c.Delegates[i].MQTTPassword = newSecret(bytes.TrimRight(b, "\r\n"))
		}
	}
	for i := range c.Groups {
		u := &c.Groups[i].Upstream
		r.remotePSK(fmt.Sprintf("groups[%d].upstream.key_file", i), u.KeyFile, &u.Key)
		if !c.Groups[i].Local() {
			continue
		}
		r.x5(fmt.Sprintf("groups[%d]", i), &c.Groups[i])
	}
	r.remotePSK("resource_directory.key_file", c.ResourceDirectory.KeyFile, &c.ResourceDirectory.Key)
	r.proxy()
	r.seal()
	for _, p := range []struct {
		key, file string
		to        *Secret
	}{
		{"mqtt.password_file", c.MQTT.PasswordFile, &c.MQTT.Password},
		{"mqtt.member_password_file", c.MQTT.MemberPasswordFile, &c.MQTT.MemberPassword},
	} {
		if b, ok := r.file(p.key, p.file, true); ok {
			*p.to = newSecret(bytes.TrimRight(b, "\r\n"))
		}
	}
	for _, x := range []struct{ key, file string }{
		{"listen.mqtts_cert_file", c.Listen.MQTTSCertFile}, {"mqtt.ca_file", c.MQTT.CAFile}, {"mqtt.cert_file", c.MQTT.CertFile},
	} {
		r.pem(x.key, x.file, "CERTIFICATE", false)
	}
	r.certificate()
	r.pem("listen.mqtts_key_file", c.Listen.MQTTSKeyFile, "PRIVATE KEY", true)
	r.pem("mqtt.key_file", c.MQTT.KeyFile, "PRIVATE KEY", true)
	return r.faults.err()
}

type keyReader struct {
	c      *Config
	faults *faults
	absent func(file string) bool
}

// remotePSK reads the key that the gateway has with a CoAP server elsewhere.
func (r *keyReader) remotePSK(key, file string, to *Secret) {
	if b, ok := r.hexFile(key, file); ok {
		*to = newSecret(b)
		checkPSK(r.faults, key, *to)
	}
}

// x5 reads the files of a group with certificates as credentials.
func (r *keyReader) x5(key string, g *Group) {
	if g.CredFmt != "x5chain" {
		return
	}
	roots, ok1 := r.file(key+".x5_roots_file", g.X5RootsFile, false)
	cert, ok2 := r.file(key+".x5_cert_file", g.X5CertFile, false)
	priv, ok3 := r.file(key+".x5_key_file", g.X5KeyFile, true)
	if !ok1 || !ok2 || !ok3 {
		return
	}
	x := &X5{Roots: x509.NewCertPool()}
	if !x.Roots.AppendCertsFromPEM(roots) {
		r.faults.add(key+".x5_roots_file", "%s holds no certificate", g.X5RootsFile)
		return
	}
	var err error
	if x.Chain, err = cose.X5ChainFromPEM(cert); err != nil {
		r.faults.add(key+".x5_cert_file", "%s: %s", g.X5CertFile, err)
		return
	}
	if x.Key, err = cose.PrivateKeyFromPEM(priv); err != nil {
		r.faults.add(key+".x5_key_file", "%s: %s", g.X5KeyFile, err)
		return
	}
	r.checkX5(key, g, x)
}

// checkX5 compares certificate, key and the group's algorithms.
func (r *keyReader) checkX5(key string, g *Group, x *X5) {
	pub, err := cose.ParseX5Chain(x.Chain)
	if err != nil {
		r.faults.add(key+".x5_cert_file", "%s: %s", g.X5CertFile, err)
		return
	}
	if !pub.SamePublic(x.Key) {
		r.faults.add(key+".x5_key_file", "is not the key of the certificate in %s", g.X5CertFile)
		return
	}
	gc, err := g.groupConfig()
	if err != nil {
		return // told by Validate
	}
	if gc.PairwiseOnly() {
		err = pub.CheckDH(gc.ECDHCrv)
	} else {
		err = pub.CheckAlg(gc.SignAlg)
	}
	if err != nil {
		r.faults.add(key+".x5_cert_file", "%s: %s", g.X5CertFile, err)
		return
	}
	g.X5 = x
}

func (r *keyReader) token(key string, t *Token) {
	if b, ok := r.hexFile(key+".symmetric_key_file", t.SymmetricKeyFile); ok {
		t.SymmetricKey = newSecret(b)
		checkTokenKey(r.faults, key+".symmetric_key_file", *t)
	}
	if b, ok := r.hexFile(key+".encryption_key_file", t.EncryptionKeyFile); ok {
		t.EncryptionKey = newSecret(b)
		if len(b) != 16 {
			r.faults.add(key+".encryption_key_file", "must hold 16 bytes")
		}
	}
	if b, ok := r.hexFile(key+".derivation_key_file", t.DerivationKeyFile); ok {
		t.DerivationKey = newSecret(b)
		if len(b) < minDerive {
			r.faults.add(key+".derivation_key_file", "must hold at least %d bytes", minDerive)
		}
	}
	r.remotePSK(key+".introspect.key_file", t.Introspect.KeyFile, &t.Introspect.Key)
	r.remotePSK(key+".revocation.key_file", t.Revocation.KeyFile, &t.Revocation.Key)
	if b, ok := r.file(key+".public_key_file", t.PublicKeyFile, false); ok {
		pub, alg, err := parsePublicKey(b)
		switch {
		case err != nil:
			r.faults.add(key+".public_key_file", "%s: %s", t.PublicKeyFile, err)
		case t.Alg != "" && t.Alg != alg:
			r.faults.add(key+".alg", "%s holds a key for %s", t.PublicKeyFile, alg)
		default:
			t.PublicKey, t.Alg = pub, alg
		}
	}
}

// oneAlgorithmPerKey refuses a key in two roles: what one algorithm shows of it
// may break another (docs/protocol.md, Section 2; RFC 9052, Section 9.5).
func (r *keyReader) oneAlgorithmPerKey() {
	const derivation = 1 << 20 // no COSE algorithm
	uses := map[string]int64{}
	use := func(key string, s Secret, alg int64) {
		if s.IsZero() {
			return
		}
		if other, ok := uses[string(s.Bytes())]; ok && other != alg {
			r.faults.add(key, "the same key stands elsewhere for another algorithm: a key serves one")
		}
		uses[string(s.Bytes())] = alg
	}
	for i, t := range r.c.Tokens {
		use(fmt.Sprintf("tokens[%d]", i), t.SymmetricKey, t.AlgID())
		use(fmt.Sprintf("tokens[%d].encryption_key_file", i), t.EncryptionKey, tokenAlgs["AES-CCM-16-64-128"])
		use(fmt.Sprintf("tokens[%d].derivation_key_file", i), t.DerivationKey, derivation)
	}
}

func (r *keyReader) seal() {
	const key = "seal.key_file"
	if text, ok := os.LookupEnv(SealKeyEnv); ok {
		b, err := parseHex(text)
		if err != nil || len(b) != sealKeySize {
			r.faults.addLine(0, SealKeyEnv, "must hold %d hexadecimal digits", 2*sealKeySize)
			return
		}
		r.c.Seal.Key = newSecret(b)
		return
	}
	if b, ok := r.hexFile(key, r.c.Seal.KeyFile); ok {
		r.c.Seal.Key = newSecret(b)
		if len(b) != sealKeySize {
			r.faults.add(key, "%s must hold %d hexadecimal digits", r.c.Seal.KeyFile, 2*sealKeySize)
		}
	}
}

func (r *keyReader) hexFile(key, name string) ([]byte, bool) {
	text, ok := r.file(key, name, true)
	if !ok {
		return nil, false
	}
	b, err := parseHex(string(text))
	if err == nil && len(b) == 0 {
		err = errors.New("is empty")
	}
	if err != nil {
		r.faults.add(key, "%s %s", name, err)
		return nil, false
	}
	return b, true
}

func (r *keyReader) pem(key, name, kind string, secret bool) {
	b, ok := r.file(key, name, secret)
	if !ok {
		return
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind || block.Type == "EC "+kind || block.Type == "RSA "+kind {
			return
		}
	}
	r.faults.add(key, "%s holds no PEM block %q", name, kind)
}

// file reads a file that the configuration names. false: not named, or faulty.
func (r *keyReader) file(key, name string, secret bool) ([]byte, bool) {
	if name == "" {
		return nil, false
	}
	path := r.c.Path(name)
	b, mode, err := readBounded(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.absent(name):
		return nil, false
	case errors.Is(err, fs.ErrNotExist):
		r.faults.add(key, "%s does not exist (names are relative to data_dir)", path)
		return nil, false
	case err != nil:
		r.faults.add(key, "%s", err)
		return nil, false
	case mode.Perm()&0o022 != 0:
		// Whoever writes the file owns the groups.
		r.faults.add(key, "%s can be written by others: chmod 600 %s", path, path)
		return nil, false
	case secret && mode.Perm()&0o044 != 0:
		r.c.warn("%s: %s can be read by others: chmod 600 %s", key, path, path)
	}
	return b, true
}

func readBounded(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, 0, err
	}
	if len(b) > maxKeyFile {
		return nil, 0, fmt.Errorf("%s is larger than %d bytes", path, maxKeyFile)
	}
	return b, info.Mode(), nil
}

// parsePublicKey reads the key that verifies COSE_Sign1 tokens and names its
// algorithm.
func parsePublicKey(b []byte) (*cose.Key, string, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, "", errors.New(`must hold one PEM block "PUBLIC KEY"`)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, "", err
	}
	switch k := key.(type) {
	case ed25519.PublicKey:
		return &cose.Key{Kty: cose.KtyOKP, Crv: cose.CrvEd25519, Alg: cose.AlgEdDSA, X: k}, "EdDSA", nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			break
		}
		point, err := k.Bytes() // 0x04 | x | y
		if err != nil {
			return nil, "", err
		}
		return &cose.Key{Kty: cose.KtyEC2, Crv: cose.CrvP256, Alg: cose.AlgES256, X: point[1:33], Y: point[33:]}, "ES256", nil
	}
	return nil, "", errors.New("must be an Ed25519 or P-256 key")
}

// ReadAdminToken returns the bearer token of the admin API from the data
// folder.
func (c *Config) ReadAdminToken() (Secret, error) {
	b, _, err := readBounded(c.Path(AdminTokenFile))
	if err != nil {
		return Secret{}, fmt.Errorf("config: admin token: %w", err)
	}
	b = bytes.TrimSpace(b)
	if _, err := hex.DecodeString(string(b)); err != nil || len(b) != 2*adminTokenSize {
		return Secret{}, fmt.Errorf("config: admin token: %s is not a token", c.Path(AdminTokenFile))
	}
	return newSecret(b), nil
}
