package node

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/gob"
	"errors"
	"fmt"
	"hash"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
)

// ExporterLabel names the keying material that stands for N_S when the access
// token was conveyed in psk_identity.
//
// draft-ietf-ace-key-groupcomm-oscore-21, Section 6.1.1: with (D)TLS 1.2 the
// context is present and has length zero, the length is 32 bytes.
const ExporterLabel = "EXPORTER-ACE-Pop-Input-coap-group-oscore-app"

// exporterSize is the length of N_S made by the exporter.
const exporterSize = 32

// errExporter says that keying material could not be computed; never why in
// terms of secrets.
var errExporter = errors.New("node: keying material exporter")

// sessionSecrets are the fields of pion's serialised state that the exporter
// needs. encoding/gob matches them by name, so the others stay out of here.
type sessionSecrets struct {
	LocalRandom  [32]byte
	RemoteRandom [32]byte
	MasterSecret []byte
	IsClient     bool
}

// ExportEmptyContext computes n bytes of keying material of RFC 5705, Section
// 4, with a context value that is present and empty.
//
// A present but empty context adds its length, two zero bytes, to the seed; an
// absent one adds nothing, so the two give different keys in (D)TLS 1.2. pion
// can only say the absent one. The hash function of the session is not in the
// exported state: it is found by reproducing pion's own result, which also
// notices when the layout of that state changes.
func ExportEmptyContext(state *dtls.State, label string, n int) ([]byte, error) {
	const maxExport = 1024 // the protocols here ask for 32
	if n < 1 || n > maxExport {
		return nil, fmt.Errorf("%w: length %d out of range", errExporter, n)
	}
	want, err := state.ExportKeyingMaterial(label, nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errExporter, err)
	}
	raw, err := state.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errExporter, err)
	}
	var s sessionSecrets
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&s); err != nil {
		return nil, fmt.Errorf("%w: session state: %w", errExporter, err)
	}
	clear(raw)
	client, server := s.LocalRandom, s.RemoteRandom
	if !s.IsClient {
		client, server = server, client
	}
	seed := append([]byte(label), client[:]...)
	seed = append(seed, server[:]...)
	for _, h := range []func() hash.Hash{sha256.New, sha512.New384} {
		absent, err := prf.PHash(s.MasterSecret, seed, sha256.Size, h)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errExporter, err)
		}
		if subtle.ConstantTimeCompare(absent, want) != 1 {
			continue
		}
		out, err := prf.PHash(s.MasterSecret, append(seed, 0, 0), n, h)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errExporter, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: the layout of the session state is not the expected one", errExporter)
}
