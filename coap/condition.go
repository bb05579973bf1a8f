package coap

import (
	"bytes"
	"slices"
)

// Conditional says whether a request is to be performed on a condition only.
func Conditional(o Options) bool { return o.Has(IfMatch) || o.Has(IfNoneMatch) }

// Precondition is the error that answers a request whose conditions do not hold for a
// resource that exists (RFC 7252, Section 5.10.8): 4.12, and the method must not be
// performed. tags are the entity tags of its representations; of several If-Match
// options one is enough, and an empty one says that the resource is to exist.
func Precondition(o Options, tags ...[]byte) error {
	if o.Has(IfNoneMatch) {
		return Errorf(PreconditionFailed, "the resource exists")
	}
	wanted := o.Values(IfMatch)
	if len(wanted) == 0 || slices.ContainsFunc(wanted, func(w []byte) bool {
		return len(w) == 0 || slices.ContainsFunc(tags, func(t []byte) bool { return bytes.Equal(t, w) })
	}) {
		return nil
	}
	return Errorf(PreconditionFailed, "no such entity tag")
}
