package serve

import (
	"testing"
	"unsafe"
)

// TestSizes: what there is of each observer, and of a request under way, fills a size of
// Go's allocator, and no larger one.
func TestSizes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64 bits")
	}
	for name, c := range map[string]struct{ have, most uintptr }{
		"peer":         {unsafe.Sizeof(peer{}), 80},
		"subscription": {unsafe.Sizeof(subscription{}), 80},
		"observation":  {unsafe.Sizeof(observation{}), 48},
		"exchange":     {unsafe.Sizeof(exchange{}), 512},
	} {
		if c.have > c.most {
			t.Errorf("%s: %d bytes, more than %d", name, c.have, c.most)
		}
	}
}
