package endpoint

import (
	"fmt"

	"github.com/pion/dtls/v3"

	"github.com/seed4911071e/groupgate/record"
)

// errState says that pion's session state is not as expected.
var errState = record.ErrState

// export reads the state of a finished handshake in which we are the server.
func export(st *dtls.State) (*record.State, error) {
	raw, err := st.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	defer clear(raw)
	x, err := record.ParseState(raw)
	if err != nil {
		return nil, err
	}
	if n := len(x.LocalConnectionID); x.IsClient || n != 0 && n != cidSize {
		return nil, fmt.Errorf("%w: client %v, a connection ID of %d bytes", errState, x.IsClient, n)
	}
	return x, nil
}
