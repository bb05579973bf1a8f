package admin

import (
	"context"
	"net/http"
	"time"
)

// Identity tells by what nodes know the gateway.
type Identity interface {
	// Identity is the zero value before the gateway has a key.
	Identity(ctx context.Context) (IdentityInfo, error)
}

// IdentityInfo is what the gateway shows in handshakes with public keys. None of it
// is a secret.
type IdentityInfo struct {
	RawPublicKey PublicKeyInfo    `json:"raw_public_key"`
	Certificate  *CertificateInfo `json:"certificate"` // null: listen.coaps_cert_file is not set
}

// PublicKeyInfo is a public key in the forms that nodes are given it in.
type PublicKeyInfo struct {
	SPKI       []byte `json:"spki"`       // SubjectPublicKeyInfo in DER, base64 (RFC 7250)
	SHA256     string `json:"sha256"`     // of that, hex
	NI         string `json:"ni"`         // the same as a URI (RFC 6920)
	COSEKey    string `json:"cose_key"`   // hex (RFC 9052, Section 7), as in rs_cnf
	Thumbprint string `json:"thumbprint"` // of the COSE_Key, SHA-256, hex (RFC 9679)
}

// CertificateInfo is the gateway's certificate.
type CertificateInfo struct {
	Subject  string        `json:"subject"`
	NotAfter time.Time     `json:"not_after"`
	DER      []byte        `json:"der"`    // base64
	SHA256   string        `json:"sha256"` // of that, hex: x5t (RFC 9360, Section 2)
	Key      PublicKeyInfo `json:"key"`
}

func (s *Server) identity(r *http.Request) (any, error) {
	if s.deps.Identity == nil {
		return nil, errNotServed
	}
	return s.deps.Identity.Identity(r.Context())
}

// Identity tells by what nodes know the gateway.
func (c *Client) Identity(ctx context.Context) (*IdentityInfo, error) {
	return call[IdentityInfo](ctx, c, http.MethodGet, "/v1/identity", nil)
}
