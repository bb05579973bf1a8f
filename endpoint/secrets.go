package endpoint

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/record"
)

// errState says that pion's session state is not as expected; never why in
// terms of secrets.
var errState = errors.New("endpoint: session state of the handshake")

// exported are the fields of pion's serialised state that a session needs.
// encoding/gob matches them by name.
type exported struct {
	LocalEpoch         uint16
	RemoteEpoch        uint16
	LocalRandom        [32]byte // the server's
	RemoteRandom       [32]byte // the client's
	CipherSuiteID      uint16
	MasterSecret       []byte
	SequenceNumber     uint64 // the next of LocalEpoch
	LocalConnectionID  []byte
	RemoteConnectionID []byte
	IsClient           bool
}

// export reads the state of a finished handshake in which we are the server.
func export(st *dtls.State) (*exported, error) {
	raw, err := st.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	defer clear(raw)
	var x exported
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&x); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if x.IsClient || x.LocalEpoch != epoch || x.RemoteEpoch != epoch || len(x.MasterSecret) != 48 || x.SequenceNumber == 0 {
		return nil, fmt.Errorf("%w: its layout is not the expected one", errState)
	}
	if n := len(x.LocalConnectionID); n != 0 && n != cidSize {
		return nil, fmt.Errorf("%w: a connection ID of %d bytes", errState, n)
	}
	return &x, nil
}

// keys derives the keys of both directions.
func (x *exported) keys() (suite record.Suite, read, write record.Keys, err error) {
	if suite, err = suiteOf(x.CipherSuiteID); err != nil {
		return suite, read, write, err
	}
	read, write, err = record.Derive(suite, x.MasterSecret, x.RemoteRandom, x.LocalRandom)
	return suite, read, write, err
}

// maxExport bounds what is exported at a time, in bytes: the protocols here
// ask for 32.
const maxExport = 1024

// exporter is the keying material exporter of the handshake.
func (x *exported) exporter(label string, context []byte, n int) ([]byte, error) {
	if n < 1 || n > maxExport || len(context) > maxExport {
		return nil, fmt.Errorf("endpoint: exporter: length %d", n)
	}
	return record.Export(x.MasterSecret, x.RemoteRandom, x.LocalRandom, label, context, n), nil
}
