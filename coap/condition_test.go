package coap

import "testing"

// RFC 7252, Section 5.10.8, for a resource that exists.
func TestPrecondition(t *testing.T) {
	match := func(tags ...string) (o Options) {
		for _, tag := range tags {
			o.AddString(IfMatch, tag)
		}
		return o
	}
	for _, c := range []struct {
		name string
		o    Options
		tags []string
		met  bool
	}{
		{"no condition", nil, []string{"a"}, true},
		{"If-Match, the tag", match("a"), []string{"a"}, true},
		{"If-Match, one of several tags", match("a"), []string{"b", "a"}, true},
		{"one of several If-Match", match("x", "a"), []string{"a"}, true},
		{"If-Match, another tag", match("b"), []string{"a"}, false},
		{"If-Match, a longer tag", match("ab"), []string{"a"}, false},
		{"If-Match, no tag", match("a"), nil, false},
		{"If-Match, empty", match(""), nil, true},
		{"If-Match, empty among others", match("b", ""), []string{"a"}, true},
		{"If-None-Match", Options{{ID: IfNoneMatch}}, []string{"a"}, false},
		{"If-None-Match, no tag", Options{{ID: IfNoneMatch}}, nil, false},
		{"both", Options{{ID: IfMatch, Value: []byte("a")}, {ID: IfNoneMatch}}, []string{"a"}, false},
	} {
		var tags [][]byte
		for _, tag := range c.tags {
			tags = append(tags, []byte(tag))
		}
		err := Precondition(c.o, tags...)
		if (err == nil) != c.met || err != nil && ErrorResponse(err).Code != PreconditionFailed {
			t.Errorf("%s: %v", c.name, err)
		}
		if Conditional(c.o) != (len(c.o) > 0) {
			t.Errorf("%s: conditional %v", c.name, Conditional(c.o))
		}
	}
}
