package oscore

import (
	"errors"

	"github.com/seed4911071e/groupgate/cose"
)

// Exchange binds responses to their request: it keeps kid, Partial IV and kid
// context of the request (RFC 8613, Section 7.1). It is a small value, may be
// compared and stored, and holds no secret.
//
// A server keeps it as long as responses may follow, and may copy it. A client
// hands its Exchange to [Context.UnprotectResponse], which notes there what it has
// accepted: there is one of it, used by one goroutine at a time.
type Exchange struct {
	kid        [13 - 6]byte
	kidLen     uint8
	client     bool // this endpoint made the request
	observe    bool // the request registers an observation
	plain      bool // client: a response with the nonce of the request was accepted
	done       bool // client: no further response is accepted
	piv        uint64
	kidContext string
	next       uint64 // client: one more than the Notification Number
}

func newExchange(kid []byte, piv uint64, kidContext string) Exchange {
	e := Exchange{kidLen: uint8(len(kid)), piv: piv, kidContext: kidContext}
	copy(e.kid[:], kid)
	return e
}

// KID is the kid of the request: the Sender ID of who made it.
func (e *Exchange) KID() []byte { return append([]byte{}, e.kid[:e.kidLen]...) }

// PIV is the number in the Partial IV of the request.
func (e *Exchange) PIV() uint64 { return e.piv }

// KIDContext is the kid context of the request, "" when it had none.
func (e *Exchange) KIDContext() string { return e.kidContext }

// Observes says whether the request registers an observation, so that
// notifications may follow.
func (e *Exchange) Observes() bool { return e.observe }

// Open says whether the client may still accept a response.
func (e *Exchange) Open() bool { return e.client && !e.done }

const (
	exchangeClient = 1 << iota
	exchangeObserve
	exchangePlain
	exchangeDone
	exchangeFlags // one more than all of them
)

// MarshalBinary writes the exchange for a store: a CBOR array of kid, Partial IV,
// kid context, flags and Notification Number.
func (e Exchange) MarshalBinary() ([]byte, error) {
	flags := int64(0)
	for i, set := range []bool{e.client, e.observe, e.plain, e.done} {
		if set {
			flags |= 1 << i
		}
	}
	b := appendCBORBytes([]byte{0x85}, e.kid[:e.kidLen])
	b = appendCBORInt(b, int64(e.piv))
	b = appendCBORBytes(b, []byte(e.kidContext))
	b = appendCBORInt(b, flags)
	return appendCBORInt(b, int64(e.next)), nil
}

var errExchangeForm = errors.New("oscore: not a stored exchange")

// UnmarshalBinary reads what [Exchange.MarshalBinary] wrote.
func (e *Exchange) UnmarshalBinary(b []byte) error {
	items, err := cose.DecodeArray(b)
	if err != nil || len(items) != 5 {
		return errExchangeForm
	}
	kid, err1 := cose.AsBytes(items[0])
	piv, err2 := cose.AsUint(items[1])
	kidContext, err3 := cose.AsBytes(items[2])
	flags, err4 := cose.AsUint(items[3])
	next, err5 := cose.AsUint(items[4])
	if errors.Join(err1, err2, err3, err4, err5) != nil || len(kid) > len(e.kid) || len(kidContext) > 255 ||
		piv >= maxSequence || flags >= exchangeFlags || next > maxSequence {
		return errExchangeForm
	}
	x := newExchange(kid, piv, string(kidContext))
	x.client = flags&exchangeClient != 0
	x.observe = flags&exchangeObserve != 0
	x.plain = flags&exchangePlain != 0
	x.done = flags&exchangeDone != 0
	x.next = next
	*e = x
	return nil
}
