package bridge

import (
	"bytes"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

func TestRekeyByMQTT(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	if len(d.mgt.KID) != 8 || len(d.mgt.Key) != 16 || len(d.mgt.BaseIV) != 13 || d.mgt.Alg != 10 {
		t.Fatal("mgt_key_material has the wrong shape")
	}
	if e := entry(t, b, "n1"); e.State != StatePending || e.Confirmed != 0 || e.Channel != "mqtt" {
		t.Fatalf("after the join: %+v; a join response is no confirmation", e)
	}

	num := m.rekey(t, b)
	msg, got := d.open(m.key.Public(), d.next())
	if got != num || msg.Num != num {
		t.Fatalf("message of version %d, %d inside, want %d", got, msg.Num, num)
	}
	eventually(t, "relayed", func() bool { return entry(t, b, "n1").Attempts == 1 })
	if e := entry(t, b, "n1"); e.State != StatePending {
		t.Fatalf("a PUBACK of the broker made %+v", e)
	}
	if err := d.ack(num); err != nil {
		t.Fatalf("acknowledge: %v", err)
	}
	// The PUBACK came after the commit.
	e := entry(t, b, "n1")
	if e.State != StateCurrent || e.Confirmed != num || e.LastHeard.IsZero() || e.Attempts != 0 {
		t.Fatalf("after the acknowledgement: %+v", e)
	}
	if err := d.ack(num); err != nil { // a repetition is harmless
		t.Fatal(err)
	}
}

func TestRetainedForLateSubscriber(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	mgt := m.join(t, b, "n1", wantMQTT)
	m.rekey(t, b)
	num := m.rekey(t, b)
	eventually(t, "relayed", func() bool {
		return b.broker.server.Topics.Retained.Len() > 0 && retainedNum(t, b, mgt, m.key.Public()) == num
	})
	d := connect(t, mgt)
	if _, got := d.open(m.key.Public(), d.next()); got != num {
		t.Fatalf("late subscriber got version %d, want the newest, %d", got, num)
	}
}

// retainedNum is the version of what the embedded broker retains for a member.
func retainedNum(t testing.TB, b *Bridge, mgt *groupcomm.MgtKeyMaterial, pub *cose.Key) uint64 {
	t.Helper()
	pk, ok := b.broker.server.Topics.Retained.Get(mgt.Topic)
	if !ok {
		return 0
	}
	_, num, err := cose.OpenRekey(mgt.Key, mgt.BaseIV, mgt.KID, mgt.Alg, pub, pk.Payload)
	if err != nil {
		return 0
	}
	return num
}

func TestRepublishedAfterRestart(t *testing.T) {
	m := newManager(t)
	s := open(t)
	addr := ""
	b, stop := running(t, s, m, nil, func(c *Config) { addr = c.Listeners[0].Addr().String() })
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	num := m.rekey(t, b)
	first := d.next()
	stop() // the broker's memory is gone with it

	b, _ = running(t, s, m, nil, func(c *Config) {
		_ = c.Listeners[0].Close()
		c.Listeners[0] = loopbackListener(t, addr)
	})
	d = connect(t, d.mgt)
	again := d.next()
	if !bytes.Equal(first, again) {
		t.Fatal("the message was rendered anew after a restart")
	}
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	if e := entry(t, b, "n1"); e.State != StateCurrent {
		t.Fatalf("ledger: %+v", e)
	}
}

func TestDeliveredAfterCrash(t *testing.T) {
	m := newManager(t)
	s := open(t)
	// A rekey is committed by a process that dies before it delivers.
	dead := New(Config{Broker: "tcp://127.0.0.1:1"}, Deps{Store: s, Source: m, Hub: nobody{}})
	if err := dead.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	mgt := m.join(t, dead, "n1", wantMQTT)
	num := m.rekey(t, dead)
	b, _ := running(t, storetest.Crash(t, s, Migrations()), m, nil, nil)
	mgt.Broker = b.BrokerURI()
	d := connect(t, mgt)
	if _, got := d.open(m.key.Public(), d.next()); got != num {
		t.Fatalf("got version %d, want %d", got, num)
	}
}

func TestEviction(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	out := connect(t, m.join(t, b, "out", wantMQTT))
	stay := connect(t, m.join(t, b, "stay", wantMQTT))
	m.rekey(t, b)
	out.next()
	stay.next()

	m.end(t, b, "out", groupcomm.EventEvicted)
	select {
	case <-out.lost:
	case <-time.After(15 * time.Second):
		t.Fatal("the session of the evicted member goes on")
	}
	if _, err := tryLogin(t, out.mgt.Broker, out.mgt.User, out.mgt.Password, nil); err == nil {
		t.Fatal("a revoked credential still opens the door")
	}
	eventually(t, "retained message deleted", func() bool {
		_, ok := b.broker.server.Topics.Retained.Get(out.mgt.Topic)
		return !ok
	})

	// With its old key and everything that passes the broker the former member
	// opens nothing newer.
	tap := b.tap(t, out.mgt.Topic, stay.mgt.Topic)
	num := m.rekey(t, b)
	msg := stay.next()
	stay.open(m.key.Public(), msg)
	eventually(t, "tap saw the message", func() bool { return tap.has(stay.mgt.Topic, msg) })
	for _, p := range tap.all() {
		for _, k := range [][]byte{out.mgt.KID, stay.mgt.KID} {
			_, n, err := cose.OpenRekey(out.mgt.Key, out.mgt.BaseIV, k, out.mgt.Alg, m.key.Public(), p)
			if err == nil && n >= num {
				t.Fatalf("the former member opened version %d", n)
			}
		}
	}
	eventually(t, "nothing is left to revoke", func() bool {
		rids, err := b.publisher.revokedPage(t.Context())
		return err == nil && len(rids) == 0
	})
}

func TestRejoinReplacesKey(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	old := connect(t, m.join(t, b, "n1", wantMQTT))
	m.rekey(t, b)
	old.next()
	fresh := m.join(t, b, "n1", wantMQTT)
	<-old.lost
	if bytes.Equal(fresh.Key, old.mgt.Key) || bytes.Equal(fresh.KID, old.mgt.KID) || fresh.Topic == old.mgt.Topic {
		t.Fatal("a re-join kept key, identifier or topic")
	}
	eventually(t, "old retained message deleted", func() bool {
		_, ok := b.broker.server.Topics.Retained.Get(old.mgt.Topic)
		return !ok
	})
	// Ending it: a re-join without the wish.
	if m.join(t, b, "n1", nil) != nil {
		t.Fatal("key material without the wish for it")
	}
	if _, err := tryLogin(t, fresh.Broker, fresh.User, fresh.Password, nil); err == nil {
		t.Fatal("an ended enrolment still logs in")
	}
}

func TestBrokerAdmission(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	one := m.join(t, b, "n1", wantMQTT)
	two := m.join(t, b, "n2", wantMQTT)
	will := func(o *paho.ClientOptions) { o.SetWill(two.Topic, "x", 1, true) }
	for name, c := range map[string]struct {
		user, password string
		more           func(*paho.ClientOptions)
	}{
		"no credential":         {"", "", nil},
		"wrong password":        {one.User, two.Password, nil},
		"unknown user":          {"nobody", one.Password, nil},
		"gateway's own account": {internalUser, b.broker.secret(), nil},
		"a will":                {one.User, one.Password, will},
	} {
		if _, err := tryLogin(t, one.Broker, c.user, c.password, c.more); err == nil {
			t.Errorf("%s: admitted", name)
		}
	}
}

func TestBrokerAccess(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	victim := connect(t, m.join(t, b, "n1", wantMQTT))
	mgt := m.join(t, b, "n2", wantMQTT)
	num := m.rekey(t, b)
	victim.next()

	for _, filter := range []string{victim.mgt.Topic, victim.mgt.AckTopic, "#", "groupgate/+/rekey", "groupgate/#", "$SYS/#", "$share/x/" + mgt.Topic, mgt.AckTopic} {
		// Another's client identifier must not inherit another's session.
		c := login(t, mgt.Broker, mgt.User, mgt.Password, func(o *paho.ClientOptions) {
			o.SetClientID(memberID(victim.mgt.User)).SetCleanSession(false)
		})
		tok := c.Subscribe(filter, 1, func(_ paho.Client, m paho.Message) { t.Errorf("read %q", m.Topic()) })
		if err := wait(tok); err == nil {
			for _, code := range tok.(*paho.SubscribeToken).Result() {
				if code < 0x80 {
					t.Errorf("subscribed to %q", filter)
				}
			}
		}
		c.Disconnect(50)
	}
	for _, topic := range []string{victim.mgt.Topic, victim.mgt.AckTopic, mgt.Topic, "groupgate/x", "$SYS/broker/version"} {
		c := login(t, mgt.Broker, mgt.User, mgt.Password, nil)
		// The broker answers a refusal by closing the connection, or not at all.
		if tok := c.Publish(topic, 1, true, "x"); tok.WaitTimeout(500*time.Millisecond) && tok.Error() == nil {
			t.Errorf("wrote to %q", topic)
		}
	}
	// None of this disturbed the victim.
	select {
	case <-victim.lost:
		t.Fatal("the victim was disconnected")
	default:
	}
	if got := retainedNum(t, b, victim.mgt, m.key.Public()); got != num {
		t.Fatalf("retained version of the victim is %d, want %d", got, num)
	}
}

func TestAckChecks(t *testing.T) {
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, nil)
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	num := m.rekey(t, b)
	d.next()
	if err := d.ack(num + 1); err != nil { // settled with the broker, but does not count
		t.Fatal(err)
	}
	if err := wait(d.paho.Publish(d.mgt.AckTopic, 1, true, bytes.Repeat([]byte{0x83}, 4096))); err != nil {
		t.Fatal(err)
	}
	foreign, err := cose.SealAck(random(16), num)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(d.paho.Publish(d.mgt.AckTopic, 1, true, foreign)); err != nil {
		t.Fatal(err)
	}
	if e := entry(t, b, "n1"); e.Confirmed != 0 {
		t.Fatalf("a bad acknowledgement counted: %+v", e)
	}
	if _, ok := b.broker.server.Topics.Retained.Get(d.mgt.AckTopic); ok {
		t.Fatal("an acknowledgement was retained")
	}
	for range maxBadAcks {
		if d.paho.Publish(d.mgt.AckTopic, 1, false, foreign).WaitTimeout(time.Second) {
			continue
		}
		break
	}
	select {
	case <-d.lost:
	case <-time.After(15 * time.Second):
		t.Fatal("a flood of bad acknowledgements is tolerated")
	}
}

// TestRenderedOnce: however often a rekey is prepared, committed, crashed and
// republished, one ciphertext per (kid, nonce) reaches the wire (docs/protocol.md,
// Section 4).
func TestRenderedOnce(t *testing.T) {
	m := newManager(t)
	s := open(t)
	b, stop := running(t, s, m, nil, nil)
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	tap := b.tap(t, d.mgt.Topic)

	plan := m.plan()
	first, err := b.Prepare(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	plan.Message = (&groupcomm.RekeyMessage{MasterSecret: random(16), ContextID: groupcomm.Gid{9}, Num: plan.Num}).Encode()
	second, err := b.Prepare(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	both := func(tx *store.Tx) error {
		if err := first(tx); err != nil {
			return err
		}
		return second(tx)
	}
	m.commit(t, s, plan, both)
	wire := d.next()
	eventually(t, "tap", func() bool { return tap.has(d.mgt.Topic, wire) })
	// Prepared and committed again, as after a retry of the whole rekey.
	third, err := b.Prepare(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	m.commit(t, s, plan, third)
	m.commit(t, s, plan, second)
	stop()

	crashed := storetest.Crash(t, s, Migrations())
	b, _ = running(t, crashed, m, nil, nil)
	m.commit(t, crashed, plan, second)
	d.mgt.Broker = b.BrokerURI()
	d = connect(t, d.mgt)
	tap2 := b.tap(t, d.mgt.Topic)
	again := d.next()
	seen := append(append(tap.all(), tap2.all()...), wire, again)
	for _, p := range seen {
		if !bytes.Equal(p, wire) {
			t.Fatal("two ciphertexts for one (kid, nonce) reached the wire")
		}
	}
}
