package endpoint

import (
	"testing"
	"unsafe"
)

// TestSizes: what there is of each session fills a size of Go's allocator, and no
// larger one (docs/endpoint.md, "Idle sessions").
func TestSizes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64 bits")
	}
	for name, c := range map[string]struct{ have, most uintptr }{
		"session":  {unsafe.Sizeof(session{}), 208},
		"receipt":  {unsafe.Sizeof(receipt{}), 64},
		"seldom":   {unsafe.Sizeof(seldom{}), 64},
		"exchange": {unsafe.Sizeof(exchange{}), 448},
	} {
		if c.have > c.most {
			t.Errorf("%s: %d bytes, more than %d", name, c.have, c.most)
		}
	}
}
