package node

import (
	"bytes"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// FuzzClient: a credential's text gives a usable client or an error that does
// not quote it.
func FuzzClient(f *testing.F) {
	f.Add([]byte(`{"identity":"n","key":"00112233445566778899aabbccddeeff","audience":"rs","as":"coaps://127.0.0.1:5684"}`))
	f.Add([]byte(`{"identity":"n","key":"00"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := parseClient(body)
		if err == nil && (c.Identity == "" || c.Audience == "" || len(c.Key.Bytes()) < 16) {
			t.Fatal("an unusable client is accepted")
		}
		if err != nil && len(body) > 40 && strings.Contains(err.Error(), string(body)) {
			t.Fatal("the error quotes the file")
		}
	})
}

// FuzzMgt: coordinates of the MQTT channel that are accepted name one topic
// each and a broker.
func FuzzMgt(f *testing.F) {
	f.Add((&groupcomm.MgtKeyMaterial{KID: bytes.Repeat([]byte{1}, 8), Key: bytes.Repeat([]byte{2}, 16), Alg: 10,
		BaseIV: make([]byte, 13), Broker: "mqtt://127.0.0.1:1883", Topic: "groupgate/a/rekey", User: "u", Password: "p",
		AckTopic: "groupgate/a/ack"}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := readMgt(b)
		if err != nil {
			return
		}
		for _, topic := range []string{g.Topic, g.AckTopic} {
			if topic == "" || strings.ContainsAny(topic, "+#") {
				t.Fatalf("topic %q", topic)
			}
		}
		if !bytes.Equal(g.Encode(), b) {
			again, err := readMgt(g.Encode())
			if err != nil || again.Topic != g.Topic {
				t.Fatalf("does not read again: %v", err)
			}
		}
	})
}
