package rec

import (
	"bytes"
	"strings"
	"testing"
)

// TestReader: what was appended is read, a record that is cut off or too long is bad,
// and a long string is not read.
func TestReader(t *testing.T) {
	b := AppendString([]byte{1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4}, "five")
	read := func(b []byte, most int) bool {
		r := NewReader(b)
		got := []uint64{uint64(r.U8()), uint64(r.U16()), uint64(r.U32()), r.U64()}
		s := r.String(most)
		if !r.Done() {
			return false
		}
		return got[0] == 1 && got[1] == 2 && got[2] == 3 && got[3] == 4 && s == "five"
	}
	if !read(b, 4) {
		t.Error("the record is not read")
	}
	for n := range b {
		if read(b[:n], 4) {
			t.Errorf("%d bytes of it are read", n)
		}
	}
	if read(append(bytes.Clone(b), 0), 4) {
		t.Error("a longer record is read")
	}
	if read(b, 3) {
		t.Error("a longer string is read")
	}
	if r := NewReader(AppendString(nil, strings.Repeat("x", 65535))); len(r.String(65535)) != 65535 || !r.Done() {
		t.Error("the longest string is not read")
	}
	r := NewReader([]byte{1, 2, 3})
	if r.U8(); r.Done() {
		t.Error("what was not read is done")
	}
	if r.Skip(); !r.Done() {
		t.Error("what was passed over is not done")
	}
	r = NewReader([]byte{1})
	if r.U16(); r.Done() {
		t.Error("a number cut off is done")
	}
	if r.Skip(); r.Done() {
		t.Error("passing over the rest mends what is bad")
	}
	r = NewReader(nil)
	if r.Fail(false); !r.Done() {
		t.Error("nothing failed")
	}
	if r.Fail(true); r.Done() {
		t.Error("a bad value passes")
	}
}
