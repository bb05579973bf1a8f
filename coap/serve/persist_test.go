package serve

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// keeping is a Keeper in memory; full has Commit fail.
type keeping struct {
	recs      [][]byte
	committed int
	full      bool
}

func (k *keeping) Append(b []byte) { k.recs = append(k.recs, bytes.Clone(b)) }

func (k *keeping) Commit(context.Context) error {
	if k.full {
		return errors.New("disk full")
	}
	k.committed = len(k.recs)
	return nil
}

func (k *keeping) Keeps(topic string) bool { return topic == "topic" }

// recover reads what was kept.
func (k *keeping) recover(t *testing.T) *Recovery {
	t.Helper()
	var r Recovery
	for _, b := range k.recs {
		if err := r.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	return &r
}

func keptRecords() [][]byte {
	o := registration{link: "0011", token: "t", topic: "gm/g", szx: 6, noResponse: 2, seq: 77, shown: 5, heard: 1e9}
	v := shownRecord{link: "0011", topic: "gm/g", version: 6, seq: 78, heard: 1e9}
	e := endRecord{link: "0011", token: "t"}
	return [][]byte{o.append(nil), v.append(nil), e.append(nil)}
}

func encodeKept(v any) []byte {
	switch v := v.(type) {
	case *registration:
		return v.append(nil)
	case *shownRecord:
		return v.append(nil)
	}
	return v.(*endRecord).append(nil)
}

func TestKeptRecords(t *testing.T) {
	for _, b := range keptRecords() {
		v, err := decodeKept(b)
		if err != nil || !bytes.Equal(encodeKept(v), b) {
			t.Errorf("%x: %v, %v", b, v, err)
		}
		for n := range b {
			if _, err := decodeKept(b[:n]); err == nil {
				t.Errorf("%q: a prefix of %d bytes is read", b[0], n)
			}
		}
	}
}

func FuzzKept(f *testing.F) {
	for _, b := range keptRecords() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeKept(b)
		if err != nil {
			return
		}
		if again := encodeKept(v); !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x", b, again)
		}
		var r Recovery
		_ = r.Apply(b)
	})
}

// TestRestore: an observation comes back with its token, its number and what it
// was shown; one that ended does not, nor one of a peer that proved nothing.
func TestRestore(t *testing.T) {
	handler := coap.HandlerFunc(func(_ context.Context, r *coap.Request) (*coap.Response, error) {
		return &coap.Response{Code: coap.Content, Payload: []byte("v3"), Observe: &coap.Observation{Topic: "topic", Version: 3}}, nil
	})
	k := &keeping{}
	s := New(handler, Config{})
	s.Keep(k)
	register := func(l coap.Link, token string, observe uint32) *coap.Message {
		m := &coap.Message{Type: coap.Confirmable, Code: coap.GET, Token: []byte(token)}
		m.Options.SetUint(coap.ObserveOption, observe)
		return s.Handle(t.Context(), l, m)
	}
	node, plain := &keptLink{peer: coap.Peer{Link: "a", Via: coap.DTLSPSK}}, &keptLink{peer: coap.Peer{Link: "b", Via: coap.Plain}}
	first := register(node, "one", 0)
	if k.committed != 1 {
		t.Errorf("%d records were on disk when the registration was answered", k.committed)
	}
	register(node, "two", 0)
	register(plain, "three", 0)
	register(node, "two", 1)
	k.full = true
	if r := register(node, "four", 0); !r.Options.Has(coap.ObserveOption) {
		t.Error("a full disk refuses an observation")
	}
	s.Publish("topic", coap.Notification{Version: 4, Confirm: true, Body: &coap.Response{Code: coap.Content}})
	if len(node.sent) != 2 {
		t.Fatalf("%d notifications", len(node.sent))
	}
	for _, from := range []string{"log", "snapshot"} {
		t.Run(from, func(t *testing.T) {
			if from == "snapshot" {
				k = &keeping{}
				s.Keep(k)
				s.Dump(k.Append)
			}
			r := k.recover(t)
			again := New(handler, Config{})
			node := &keptLink{peer: node.peer}
			if topics := again.Restore(r, node); len(topics) != 1 || topics[0] != "topic" {
				t.Fatalf("topics %v", topics)
			}
			if again.Restore(r, plain) != nil {
				t.Error("observations of a peer that proved nothing were kept")
			}
			again.Publish("topic", coap.Notification{Version: 4, Body: &coap.Response{Code: coap.Content}})
			if len(node.sent) != 0 {
				t.Error("what was shown is shown again")
			}
			again.Publish("topic", coap.Notification{Version: 5, Body: &coap.Response{Code: coap.Content}})
			sent := map[string]*coap.Message{} // in no order
			for _, m := range node.sent {
				sent[string(m.Token)] = m
			}
			if len(node.sent) != 2 || sent["one"] == nil || sent["four"] == nil {
				t.Fatalf("sent %v", node.sent)
			}
			was, _ := first.Options.Uint(coap.ObserveOption)
			is, _ := sent["one"].Options.Uint(coap.ObserveOption)
			if !newer(is, was) {
				t.Errorf("number %d after %d", is, was)
			}
		})
	}
	// What ends once it is frozen goes on after the next start.
	n := len(k.recs)
	s.Freeze()
	s.Closed("a")
	if len(k.recs) != n {
		t.Error("the end of the process is written as that of observations")
	}
}

// TestNumbersAfterQuickStarts: processes that die before they have written what they
// sent use numbers of notifications that are newer from one to the next: a client
// takes no notification whose number is not (RFC 7641, Section 3.4).
func TestNumbersAfterQuickStarts(t *testing.T) {
	const onDisk = 77
	kept := (&registration{link: "0011", token: "t", topic: "gm/g", szx: 6, seq: onDisk, shown: 5, heard: time.Now().Unix()}).append(nil)
	node := coap.Peer{Link: "0011", Via: coap.DTLSPSK}
	last := uint32(onDisk)
	for start := uint32(70); start < 80; start++ {
		r := &Recovery{Start: start}
		if err := r.Apply(kept); err != nil {
			t.Fatal(err)
		}
		s, l := New(coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) { return nil, nil }), Config{}), &keptLink{peer: node}
		s.Restore(r, l)
		for v := range uint64(3) {
			s.Publish("gm/g", coap.Notification{Version: 6 + v, Body: &coap.Response{Code: coap.Content}})
		}
		if len(l.sent) != 3 {
			t.Fatalf("start %d: %d notifications", start, len(l.sent))
		}
		for _, m := range l.sent {
			is, _ := m.Options.Uint(coap.ObserveOption)
			if !newer(is, last) {
				t.Fatalf("start %d: number %d after %d", start, is, last)
			}
			last = is
		}
	}
}

// TestNumbersOfNotifications: they begin with the clock, and are newer than all
// before.
func TestNumbersOfNotifications(t *testing.T) {
	clock := uint32(time.Now().Unix()) & seqMask
	if first := (&observation{}).nextSeq(time.Now()); newer(clock, first) {
		t.Errorf("begins with %d at %d", first, clock)
	}
	ahead := &observation{seq: (clock + 1000) & seqMask} // the clock was set back
	if next := ahead.nextSeq(time.Now()); next != (clock+1001)&seqMask {
		t.Errorf("%d after %d", next, clock+1000)
	}
	for _, c := range [][2]uint32{{1, 0}, {0, seqMask}, {1 << 22, seqMask - 5}} {
		if !newer(c[0], c[1]) || newer(c[1], c[0]) || newer(c[0], c[0]) {
			t.Errorf("%v", c)
		}
	}
}

// keptLink acknowledges everything at once.
type keptLink struct {
	peer coap.Peer
	sent []*coap.Message
}

func (l *keptLink) Peer() coap.Peer { return l.peer }
func (l *keptLink) Send(m *coap.Message, done func(error)) {
	l.sent = append(l.sent, m.Clone())
	done(nil)
}
