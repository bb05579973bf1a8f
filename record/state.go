package record

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
)

// ErrState says that the state of a handshake is not as expected; never why in
// terms of secrets.
var ErrState = errors.New("record: session state of the handshake")

// epoch of every session: there is no renegotiation.
const epoch = 1

// State are the fields of the serialised state of a pion/dtls connection whose
// handshake is finished that a session needs. encoding/gob matches them by name,
// so pion itself is not needed here.
type State struct {
	LocalEpoch         uint16
	RemoteEpoch        uint16
	LocalRandom        [32]byte // our own
	RemoteRandom       [32]byte // the peer's
	CipherSuiteID      uint16
	MasterSecret       []byte
	SequenceNumber     uint64 // the next of LocalEpoch
	LocalConnectionID  []byte // what we gave out
	RemoteConnectionID []byte // what the peer wants to see
	IsClient           bool
}

// ParseState reads what MarshalBinary of pion's State made.
func ParseState(raw []byte) (*State, error) {
	var x State
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&x); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if x.LocalEpoch != epoch || x.RemoteEpoch != epoch || len(x.MasterSecret) != 48 || x.SequenceNumber == 0 {
		return nil, fmt.Errorf("%w: its layout is not the expected one", ErrState)
	}
	return &x, nil
}

// Keys derives the keys that we read and write with.
func (x *State) Keys() (s Suite, read, write Keys, err error) {
	s = Suite(x.CipherSuiteID)
	client, server := x.randoms()
	fromClient, fromServer, err := Derive(s, x.MasterSecret, client, server)
	if x.IsClient {
		return s, fromServer, fromClient, err
	}
	return s, fromClient, fromServer, err
}

func (x *State) randoms() (client, server [32]byte) {
	if x.IsClient {
		return x.LocalRandom, x.RemoteRandom
	}
	return x.RemoteRandom, x.LocalRandom
}

// maxExport bounds what is exported at a time, in bytes: the protocols here
// ask for 32.
const maxExport = 1024

// Exporter is the keying material exporter of the handshake (RFC 5705). A nil
// context is absent, an empty one is present and empty.
func (x *State) Exporter(label string, context []byte, n int) ([]byte, error) {
	if n < 1 || n > maxExport || len(context) > maxExport {
		return nil, fmt.Errorf("record: exporter: length %d", n)
	}
	client, server := x.randoms()
	return Export(x.MasterSecret, client, server, label, context, n), nil
}
