package bridge

import (
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

func TestParseAckTopic(t *testing.T) {
	for topic, want := range map[string]string{
		"groupgate/abc/ack":          "abc",
		"groupgate/abc/rekey":        "",
		"groupgate/a/b/ack":          "",
		"groupgate//ack":             "",
		"groupgate/ack":              "",
		"other/abc/ack":              "",
		"groupgateabc/ack":           "",
		"groupgate/abc/ack/ack":      "",
		"groupgate/" + long + "/ack": "",
	} {
		if got, ok := parseAckTopic("groupgate", topic); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %t", topic, got, ok)
		}
	}
}

const long = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// FuzzAck: nothing but what the key holder sealed for a rendered version
// counts, and a version counts once.
func FuzzAck(f *testing.F) {
	key := []byte("0123456789abcdef")
	c := &ackContext{registration: registration{key: key}, rendered: 9, confirmed: 6}
	sealed := map[string]uint64{}
	for _, num := range []uint64{0, 5, 6, 7, 9, 10, 1 << 40} {
		b, err := cose.SealAck(key, num)
		if err != nil {
			f.Fatal(err)
		}
		sealed[string(b)] = num
		f.Add("groupgate/abc/ack", b)
		f.Add("groupgate/abc/rekey", b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		if rid, ok := parseAckTopic("groupgate", topic); ok && ackTopic("groupgate", rid) != topic {
			t.Fatalf("%q reads as %q", topic, rid)
		}
		num, fresh, err := checkAck(c, payload)
		want, ours := sealed[string(payload)]
		switch {
		case err != nil && ours && want <= c.rendered:
			t.Fatalf("refused version %d: %v", want, err)
		case err == nil && num > c.rendered:
			t.Fatalf("version %d counts, only %d was rendered", num, c.rendered)
		case err == nil && ours && num != want:
			t.Fatalf("version %d reads as %d", want, num)
		case fresh && num <= c.confirmed:
			t.Fatalf("version %d counts again", num)
		case err == nil && !ours && num != 0 && !isKnown(sealed, num):
			t.Fatalf("a forged acknowledgement of %d", num)
		}
		if _, _, err := checkAck(nil, payload); err == nil {
			t.Fatal("an acknowledgement of no registration counts")
		}
	})
}

func isKnown(sealed map[string]uint64, num uint64) bool {
	for _, n := range sealed {
		if n == num {
			return true
		}
	}
	return false
}
