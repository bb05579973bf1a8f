package bridge

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// rekeyIn decodes the rekey message in the newest response.
func rekeyIn(t *testing.T, b []byte) *groupcomm.RekeyMessage {
	t.Helper()
	r, err := groupcomm.DecodeRekeyMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// phased makes a member that asked for two phases.
func (m *manager) phased(node string) {
	m.change(node, func(v *groupcomm.Member) { v.Phased, v.Roles = true, groupcomm.Requester|groupcomm.Responder })
}

// A scheduled rekey in a mixed group: who asked for two phases has the keys before all
// others and does not begin; then the responders; then the others are told, and those
// begin. A leave is told once, to all, in one form.
func TestTwoPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		watching, _ := h.control("watching", "", coap.Changed)
		h.m.phased("watching")
		phased := h.observe(watching, "/ace-group/sensors")
		node := h.observe(watching, "/ace-group/sensors/nodes/watching")
		slow, _ := h.control("slow", "", coap.Changed)
		h.m.phased("slow")
		h.observe(slow, "/ace-group/sensors")
		_, posts := h.control("posted", "coap://n/x", coap.Changed)
		h.m.phased("posted")
		answers, _ := h.control("answers", "", coap.Changed)
		h.m.with("answers", groupcomm.Responder)
		standard := h.observe(answers, "/ace-group/sensors")
		asks, _ := h.control("asks", "", coap.Changed)
		h.m.with("asks", groupcomm.Requester)
		other := h.observe(asks, "/ace-group/sensors")

		// One that has two phases does not answer: all others wait.
		slow.Cut(true, true)
		h.m.how = ordered
		version := h.m.rekey(t, h.b)
		settle(time.Second)
		if r := rekeyIn(t, phased.last().Payload); r.ActivateIn != steps || r.Num != version {
			t.Errorf("the first phase: %+v", r)
		}
		if all := posts.requests(); len(all) != 1 || rekeyIn(t, all[0].Payload).ActivateIn != steps {
			t.Errorf("%d requests to the control_uri", len(all))
		}
		if e := h.entry("watching"); e.State != StateCurrent || !e.HeldUntil.IsZero() {
			t.Errorf("it has the keys: %+v", e)
		}
		if len(standard.responses()) != 1 || len(other.responses()) != 1 || len(node.responses()) != 1 {
			t.Error("others are told before all with two phases have it")
		}
		if left := h.b.Dormant(testGroup, "watching", version); left == 0 || left > steps || h.b.Dormant(testGroup, "answers", version) != 0 || h.b.Dormant(testGroup, "watching", version-1) != 0 {
			t.Errorf("begins in %d s", left)
		}
		// It answers now: the responder has its turn, its answer opens the rest.
		slow.Cut(false, false)
		answers.Cut(true, true)
		settle(10 * time.Second) // a retransmission is due in that time
		if e := h.entry("slow"); e.State != StateCurrent {
			t.Fatalf("%+v", e)
		}
		if len(phased.responses()) != 2 || len(other.responses()) != 1 {
			t.Error("they begin before the responder has it")
		}
		answers.Cut(false, false)
		settle(10 * time.Second)
		if e := h.entry("answers"); e.State != StateCurrent {
			t.Fatalf("%+v", e)
		}
		if got := phased.responses(); len(got) != 3 || rekeyIn(t, got[2].Payload).ActivateIn != 0 || string(got[2].Payload) != string(standard.last().Payload) {
			t.Errorf("%d responses: it is not told to begin", len(got))
		}
		if all := posts.requests(); len(all) != 2 || rekeyIn(t, all[1].Payload).ActivateIn != 0 {
			t.Errorf("%d requests to the control_uri", len(all))
		}
		if got := node.responses(); len(got) != 2 || rekeyIn(t, got[1].Payload).ActivateIn != 0 {
			t.Errorf("%d responses of the node resource", len(got))
		}
		if left := h.b.Dormant(testGroup, "watching", version); left != 0 {
			t.Errorf("still begins in %d s", left)
		}
		settle(spread)
		if e := h.entry("asks"); e.State != StateCurrent {
			t.Errorf("%+v", e)
		}

		h.m.how = groupcomm.Activation{}
		h.m.rekey(t, h.b)
		settle(time.Second)
		if got := phased.responses(); len(got) != 4 || rekeyIn(t, got[3].Payload).ActivateIn != 0 {
			t.Error("a leave in phases")
		}
		if len(standard.responses()) != 3 || len(other.responses()) != 3 || len(posts.requests()) != 3 {
			t.Error("a leave is held up")
		}
	})
}

// Over MQTT the two messages of a version are rendered in its transaction, with nonces
// of their own, and each is retained in its time. One that asked for phases and gets
// a rekey that is not scheduled has one.
func TestTwoPhasesMQTT(t *testing.T) {
	m := newManager(t)
	s := open(t)
	b, stop := running(t, s, m, nil, nil)
	mgt := m.join(t, b, "phased", &groupcomm.Delivery{Channel: "mqtt", Phased: true})
	m.phased("phased")
	m.join(t, b, "answers", nil)
	m.with("answers", groupcomm.Responder)
	d := connect(t, mgt)
	m.how = groupcomm.Activation{RespondersFirst: true, Spread: time.Hour}
	version := m.rekey(t, b)
	first := d.next()
	if r, num := d.open(m.key, first); r.ActivateIn != 3600 || num != version {
		t.Errorf("first message: %+v", r)
	}
	if err := d.ack(version); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has the keys", func() bool { return entry(t, b, "phased").State == StateCurrent })
	// A restart between the phases.
	stop()
	b, _ = running(t, s, m, nil, nil)
	mgt.Broker = b.BrokerURI()
	d = connect(t, mgt)
	if got := d.next(); string(got) != string(first) {
		t.Error("after a restart another message than the one that was rendered")
	}
	b.Held(t.Context(), testGroup, "answers", version)
	second := d.after(first)
	if r, num := d.open(m.key, second); r.ActivateIn != 0 || num != version {
		t.Errorf("second message: %+v", r)
	}
	m.how = groupcomm.Activation{}
	m.rekey(t, b)
	if r, _ := d.open(m.key, d.after(second)); r.ActivateIn != 0 || r.Num != version+1 {
		t.Errorf("a leave: %+v", r)
	}
	// RFC 9594, Section 6.2.1: COUNT grows, so that no nonce is used twice.
	for count, msg := range [][]byte{first, second} {
		e, err := cose.DecodeEncrypt0(msg)
		if err != nil || int(binary.BigEndian.Uint16(e.Unprotected.PartialIV)) != count {
			t.Errorf("message %d: %+v, %v", count, e, err)
		}
	}
}
