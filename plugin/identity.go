package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/cose"
)

var _ admin.Identity = (*operator)(nil)

// Identity tells by what nodes know the gateway in handshakes with public keys.
func (o *operator) Identity(context.Context) (admin.IdentityInfo, error) {
	var out admin.IdentityInfo
	key := o.ace.RawKey()
	if key == nil {
		return out, nil
	}
	var err error
	if out.RawPublicKey, err = publicKeyInfo(key); err != nil {
		return out, err
	}
	c := o.certificate
	if c == nil {
		return out, nil
	}
	leaf, err := cose.KeyFromSPKI(c.RawSubjectPublicKeyInfo)
	if err != nil {
		return out, err
	}
	sum := sha256.Sum256(c.Raw)
	out.Certificate = &admin.CertificateInfo{Subject: c.Subject.String(), NotAfter: c.NotAfter, DER: c.Raw, SHA256: hex.EncodeToString(sum[:])}
	out.Certificate.Key, err = publicKeyInfo(leaf)
	return out, err
}

func publicKeyInfo(k *cose.Key) (admin.PublicKeyInfo, error) {
	spki, err := k.SPKI()
	if err != nil {
		return admin.PublicKeyInfo{}, err
	}
	sum := sha256.Sum256(spki)
	return admin.PublicKeyInfo{
		SPKI: spki, SHA256: hex.EncodeToString(sum[:]), NI: "ni:///sha-256;" + base64.RawURLEncoding.EncodeToString(sum[:]),
		COSEKey: hex.EncodeToString(k.Public().Encode()), Thumbprint: hex.EncodeToString(k.Thumbprint()),
	}, nil
}
