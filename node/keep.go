package node

import (
	"errors"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// Labels of an encoded [Access]. What is written never changes its meaning.
const (
	keptToken    = 1
	keptKID      = 2
	keptKey      = 3
	keptExpires  = 4 // Unix seconds; absent: not told
	keptMaterial = 5 // of the OSCORE profile
	keptPrivate  = 6 // COSE_Key, of an association with raw public keys
	keptServer   = 7 // likewise, what the Group Manager shows
)

// Encode gives an access token with its key, to be kept over a restart where nobody
// else can read it. The scope is not kept.
func (a *Access) Encode() []byte {
	out := map[int64]any{keptToken: a.Token}
	if !a.ExpiresAt.IsZero() {
		out[keptExpires] = a.ExpiresAt.Unix()
	}
	switch {
	case a.Material != nil:
		out[keptMaterial] = a.Material.Encode()
	case a.PrivateKey != nil:
		out[keptPrivate] = a.PrivateKey.Encode()
		if a.ServerKey != nil {
			out[keptServer] = a.ServerKey.Encode()
		}
	default:
		out[keptKID], out[keptKey] = a.KID, a.Key.Bytes()
	}
	return cose.MustMarshal(out)
}

// DecodeAccess reads what [Access.Encode] gave. Its error quotes nothing of it.
func DecodeAccess(b []byte) (*Access, error) {
	damaged := errors.New("node: the kept access token is damaged")
	in, err := cose.DecodeMap(b)
	if err != nil {
		return nil, damaged
	}
	token, _, err1 := in.Bytes(keptToken)
	kid, _, err2 := in.Bytes(keptKID)
	key, _, err3 := in.Bytes(keptKey)
	expires, limited, err4 := in.Int(keptExpires)
	material, ofOSCORE, err5 := in.Bytes(keptMaterial)
	private, raw, err6 := in.Bytes(keptPrivate)
	server, named, err7 := in.Bytes(keptServer)
	shared := len(kid) > 0 && len(key) > 0
	if errors.Join(err1, err2, err3, err4, err5, err6, err7) != nil || len(token) == 0 || !ofOSCORE && !raw && !shared {
		return nil, damaged
	}
	a := &Access{Token: token}
	if limited {
		a.ExpiresAt = time.Unix(expires, 0)
	}
	switch {
	case ofOSCORE:
		a.Material, err = oscore.DecodeMaterial(material)
	case raw:
		if a.PrivateKey, err = cose.DecodeKey(private); err == nil && !a.PrivateKey.IsPrivate() {
			err = damaged
		}
		if err == nil && named {
			a.ServerKey, err = cose.DecodeKey(server)
		}
	default:
		a.KID, a.Key = kid, cose.NewSecret(key)
	}
	if err != nil {
		return nil, damaged
	}
	return a, nil
}
