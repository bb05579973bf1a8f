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
	several    bool   // client: responses of a group are accepted
	seen       uint64 // of those: which of the numbers before next; bit 0 is next-1
}

// fresh says whether a response with number n may be accepted: with notifications one
// that is newer than all before it, of a group one that was not accepted before.
func (e *Exchange) fresh(n uint64) bool {
	if n >= e.next {
		return true
	}
	age := e.next - 1 - n
	return e.several && age < 64 && e.seen>>age&1 == 0
}

func (e *Exchange) accept(n uint64) {
	if n >= e.next {
		e.seen <<= n + 1 - e.next
		e.next = n + 1
	}
	if e.several {
		e.seen |= 1 << (e.next - 1 - n)
	}
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
	exchangeSeveral
	exchangeFlags // one more than all of them
)

// MarshalBinary writes the exchange for a store: a CBOR array of kid, Partial IV,
// kid context, flags and Notification Number; where several responses are accepted,
// which of the last 64 numbers were, too.
func (e Exchange) MarshalBinary() ([]byte, error) {
	flags := int64(0)
	for i, set := range []bool{e.client, e.observe, e.plain, e.done, e.several} {
		if set {
			flags |= 1 << i
		}
	}
	head := byte(0x85)
	if e.several {
		head++
	}
	b := appendCBORBytes([]byte{head}, e.kid[:e.kidLen])
	b = appendCBORInt(b, int64(e.piv))
	b = appendCBORBytes(b, []byte(e.kidContext))
	b = appendCBORInt(b, flags)
	b = appendCBORInt(b, int64(e.next))
	if e.several {
		b = appendCBORHead(b, cborUint, e.seen)
	}
	return b, nil
}

var errExchangeForm = errors.New("oscore: not a stored exchange")

// UnmarshalBinary reads what [Exchange.MarshalBinary] wrote.
func (e *Exchange) UnmarshalBinary(b []byte) error {
	items, err := cose.DecodeArray(b)
	if err != nil || len(items) != 5 && len(items) != 6 {
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
	if x.several = flags&exchangeSeveral != 0; x.several != (len(items) == 6) {
		return errExchangeForm
	}
	if x.several {
		if x.seen, err = cose.AsUint(items[5]); err != nil {
			return errExchangeForm
		}
	}
	*e = x
	return nil
}
