package node

import (
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// FuzzAccess: whatever an Authorization Server answers, what is taken from it
// is within bounds.
func FuzzAccess(f *testing.F) {
	scope := groupcomm.Scope{{Group: "g", Roles: groupcomm.Requester}}
	body := func(k map[int64]any) map[int64]any {
		return map[int64]any{labelToken: []byte("token"), labelExpiresIn: 60, labelCnf: map[int64]any{cnfKey: k}}
	}
	key := map[int64]any{keyKty: cose.KtySymmetric, keyKID: []byte{1}, keyK: make([]byte, 16)}
	f.Add(cose.MustMarshal(body(key)))
	full := body(key)
	full[labelScope], full[labelProfile] = groupcomm.EncodeScope(scope), profileDTLS
	f.Add(cose.MustMarshal(full))
	f.Add(cose.MustMarshal(body(map[int64]any{keyKty: cose.KtyOKP})))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Now()
		a, err := decodeAccess(b, scope, nil, nil, now)
		if err != nil {
			return
		}
		if n := len(a.Key.Bytes()); len(a.Token) == 0 || len(a.Token) > maxToken || n == 0 || n > 64 || len(a.KID) == 0 || len(a.KID) > 64 {
			t.Fatalf("token of %d, key of %d, kid of %d bytes", len(a.Token), n, len(a.KID))
		}
		if !a.ExpiresAt.IsZero() && (a.ExpiresAt.Before(now) || a.ExpiresAt.Sub(now) > maxLifetime) {
			t.Fatalf("expires %v", a.ExpiresAt)
		}
	})
}
