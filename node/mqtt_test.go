package node

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/test/mqttd"
	"github.com/seed4911071e/groupgate/test/ports"
)

func mgtOf(broker string) *groupcomm.MgtKeyMaterial {
	return &groupcomm.MgtKeyMaterial{
		KID: []byte("kid of m"), Key: []byte("K_m of a member."), Alg: cose.AlgAESCCM16_64_128, BaseIV: []byte("base iv of 13"),
		Broker: broker, Topic: "gg/4f2a/rekey", User: "u-4f2a", Password: "secret", AckTopic: "gg/4f2a/ack",
	}
}

// seal makes the MQTT message of a rekey, as the Group Manager does.
func (g *fakeGM) seal(num groupcomm.Version, plain []byte) []byte {
	g.t.Helper()
	msg, err := cose.SealRekey(cose.RekeySeal{
		Alg: g.mgt.Alg, Key: g.mgt.Key, BaseIV: g.mgt.BaseIV, KID: g.mgt.KID, Num: num, SignAlg: g.cfg.SignAlg, Sign: g.key.Sign,
	}, plain)
	if err != nil {
		g.t.Fatal(err)
	}
	return msg
}

func mqttMember(t testing.TB, broker string) (*fakeGM, *Member) {
	g := newFakeGM(t)
	g.mgt = mgtOf(broker)
	m, _ := joinedMember(t, g, func(c *Config) { c.MQTT = true })
	if m.mgt == nil {
		t.Fatal("no MQTT coordinates")
	}
	return g, m
}

// What a GET says of the channel is taken when it is that of the membership: the
// broker may be elsewhere, the keys stay those of the join.
func TestChannelTold(t *testing.T) {
	t.Parallel()
	g, m := mqttMember(t, "mqtt://127.0.0.1:1")
	told := func(mgt []byte) {
		t.Helper()
		kd := g.full(5)
		kd.MgtKeyMaterial = mgt
		o, err := offerFull(kd.Encode(), ViaPoll)
		if err != nil {
			t.Fatal(err)
		}
		m.take(o)
	}
	before := m.mgt
	stranger, otherKey, unusable := mgtOf("mqtt://127.0.0.1:2"), mgtOf("mqtt://127.0.0.1:2"), mgtOf("gopher://127.0.0.1:2")
	stranger.KID, otherKey.Key = []byte("other id"), []byte("K_m of another..")
	for name, mgt := range map[string][]byte{
		"nothing": nil, "no CBOR": {0xff}, "the same": g.mgt.Encode(),
		"another kid": stranger.Encode(), "another key": otherKey.Encode(), "unusable": unusable.Encode(),
	} {
		if told(mgt); m.mgt != before {
			t.Errorf("%s: the channel is another one", name)
		}
	}
	moved := mgtOf("mqtts://broker.example:8883")
	moved.Password, moved.KDCCred = "another", []byte{1}
	told(moved.Encode())
	if m.mgt.Broker != moved.Broker || m.mgt.Password != "another" || m.mgt.KDCCred != nil || m.mgt.Alg != before.Alg {
		t.Error("the broker that was told is not used")
	}
}

// RFC 9594, Section 6.2.1: only what is encrypted for this membership and
// countersigned by the Group Manager is taken.
func TestMQTTMessage(t *testing.T) {
	t.Parallel()
	g, m := mqttMember(t, "mqtt://127.0.0.1:1")
	other := newFakeGM(t)
	other.mgt = g.mgt
	foreign := newFakeGM(t)
	foreign.key, foreign.mgt = g.key, mgtOf("")
	foreign.mgt.Key = []byte("K_m of another..")
	good := g.seal(6, rekeyOf(6))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, msg := range map[string][]byte{
		"countersigned by another": other.seal(6, rekeyOf(6)),
		"key of another member":    foreign.seal(6, rekeyOf(6)),
		"flipped bit":              flipped,
		"truncated":                good[:len(good)-1],
		"trailing byte":            append(bytes.Clone(good), 0),
		"another version inside":   g.seal(6, rekeyOf(7)),
		"no rekey message":         g.seal(6, []byte{0xa0}),
		"plain rekey message":      rekeyOf(6),
		"huge":                     make([]byte, maxMQTT+1),
	} {
		if err := m.openMQTT(msg); err == nil {
			t.Errorf("%s: taken", name)
		}
		if s := state(t, m); s.Version != 5 {
			t.Fatalf("%s: version %d", name, s.Version)
		}
	}
	if m.dueAck(m.mgt) != nil {
		t.Error("acknowledged")
	}
	if err := m.openMQTT(good); err != nil {
		t.Fatal(err)
	}
	if s := state(t, m); s.Version != 6 {
		t.Errorf("version %d", s.Version)
	}
	if num, err := cose.OpenAck(g.mgt.Key, m.dueAck(m.mgt)); err != nil || num != 6 {
		t.Errorf("acknowledgement of %d: %v", num, err)
	}
	// Once per version: a retained message comes again at each connect.
	if err := m.openMQTT(good); err != nil {
		t.Fatal(err)
	}
	if m.dueAck(m.mgt) != nil {
		t.Error("acknowledged twice")
	}
}

// What is missed is not acknowledged before it is installed.
func TestMQTTMissed(t *testing.T) {
	t.Parallel()
	g, m := mqttMember(t, "mqtt://127.0.0.1:1")
	g.num = 9
	if err := m.openMQTT(g.seal(9, rekeyOf(9))); err != nil {
		t.Fatal(err)
	}
	if m.dueAck(m.mgt) != nil {
		t.Error("acknowledged before it was installed")
	}
	if err := m.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.dueAck(m.mgt) == nil {
		t.Error("not acknowledged")
	}
}

// The message of the vectors opens in the reading of the countersignature that
// this project takes, and in no other.
func TestMQTTVector(t *testing.T) {
	t.Parallel()
	var v struct {
		Key    string `json:"key"`
		KID    string `json:"kid"`
		BaseIV string `json:"base_iv"`
		Seed   string `json:"gm_seed"`
		V      struct {
			C struct {
				Message string `json:"cose_encrypt0"`
			} `json:"five_elem_alg_in_sign_protected"`
			B struct {
				Message string `json:"cose_encrypt0"`
			} `json:"five_elem_empty_sign_protected"`
		} `json:"variants"`
	}
	readJSON(t, "one-to-many-rekey.json", &v)
	var p struct {
		Ed struct {
			KDC string `json:"kdc_cred_ccs"`
		} `json:"group_mode_ed25519"`
	}
	readJSON(t, "pop.json", &p)
	kdc, err := cose.DecodeCCS(unhex(t, p.Ed.KDC))
	if err != nil {
		t.Fatal(err)
	}
	_, m := mqttMember(t, "mqtt://127.0.0.1:1")
	m.kdc = kdc
	m.mgt = &groupcomm.MgtKeyMaterial{Key: unhex(t, v.Key), KID: unhex(t, v.KID), BaseIV: unhex(t, v.BaseIV), Alg: 10}
	if err := m.openMQTT(unhex(t, v.V.B.Message)); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("reading (b): %v", err)
	}
	if err := m.openMQTT(unhex(t, v.V.C.Message)); err != nil {
		t.Errorf("reading (c): %v", err)
	}
	if s := state(t, m); s.Version != 6 || s.Gid.String() != "b100000006" {
		t.Errorf("state %+v", s)
	}
}

func TestReadMgt(t *testing.T) {
	t.Parallel()
	if _, err := readMgt(mgtOf("mqtts://broker.example:8883").Encode()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*groupcomm.MgtKeyMaterial){
		"wildcard":         func(g *groupcomm.MgtKeyMaterial) { g.Topic = "gg/+/rekey" },
		"everything":       func(g *groupcomm.MgtKeyMaterial) { g.Topic = "#" },
		"system topic":     func(g *groupcomm.MgtKeyMaterial) { g.Topic = "$SYS/broker" },
		"ack wildcard":     func(g *groupcomm.MgtKeyMaterial) { g.AckTopic = "a/#" },
		"no ack topic":     func(g *groupcomm.MgtKeyMaterial) { g.AckTopic = "" },
		"long topic":       func(g *groupcomm.MgtKeyMaterial) { g.Topic = string(make([]byte, maxTopic+1)) },
		"web socket":       func(g *groupcomm.MgtKeyMaterial) { g.Broker = "ws://127.0.0.1" },
		"file":             func(g *groupcomm.MgtKeyMaterial) { g.Broker = "unix:///run/x" },
		"no broker":        func(g *groupcomm.MgtKeyMaterial) { g.Broker = "" },
		"malformed broker": func(g *groupcomm.MgtKeyMaterial) { g.Broker = "mqtt://a b:x" },
		"short key":        func(g *groupcomm.MgtKeyMaterial) { g.Key = g.Key[:15] },
		"other algorithm":  func(g *groupcomm.MgtKeyMaterial) { g.Alg = 30000 },
	} {
		g := mgtOf("mqtt://127.0.0.1:1883")
		change(g)
		if _, err := readMgt(g.Encode()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// broker is a real broker on loopback that tells what is published to it.
func broker(t *testing.T, addr string) (b *mochi.Server, stop func(), published chan packets.Packet) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b, stop = mqttd.Start(t, l, new(mqttd.Open))
	published = make(chan packets.Packet, 16)
	if err := b.Subscribe("gg/4f2a/ack", 1, func(_ *mochi.Client, _ packets.Subscription, pk packets.Packet) { published <- pk }); err != nil {
		t.Fatal(err)
	}
	return b, stop, published
}

// A rekey over a real broker: retained before the node connects, live, and
// after the broker was away; each acknowledged once.
func TestFollowMQTT(t *testing.T) {
	t.Parallel()
	addr := ports.Addr(t)
	b, stop, acks := broker(t, addr)
	g, m := mqttMember(t, "mqtt://"+addr)
	acked := func(want groupcomm.Version) {
		t.Helper()
		select {
		case pk := <-acks:
			if num, err := cose.OpenAck(g.mgt.Key, pk.Payload); err != nil || num != want {
				t.Errorf("acknowledgement of %d, want %d: %v", num, want, err)
			}
			if pk.FixedHeader.Retain {
				t.Error("the acknowledgement is retained")
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no acknowledgement of %d", want)
		}
		if s := state(t, m); s.Version != want {
			t.Errorf("version %d, want %d", s.Version, want)
		}
	}
	if err := b.Publish(g.mgt.Topic, g.seal(6, rekeyOf(6)), true, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Follow(ctx) }()
	acked(6)
	if err := b.Publish(g.mgt.Topic, g.seal(7, rekeyOf(7)), true, 1); err != nil {
		t.Fatal(err)
	}
	acked(7)

	stop()
	var l net.Listener
	waitFor(t, "the port of the broker to be free", func() (ok bool) {
		var err error
		if l, err = net.Listen("tcp", addr); err == nil {
			l.Close()
		}
		return err == nil
	})
	b2, _, acks2 := broker(t, addr)
	acks = acks2
	if err := b2.Publish(g.mgt.Topic, g.seal(8, rekeyOf(8)), true, 1); err != nil {
		t.Fatal(err)
	}
	acked(8)
	// A re-join brings a new key and new topics.
	g.mu.Lock()
	g.mgt = mgtOf("mqtt://" + addr)
	g.mgt.Key, g.mgt.Topic, g.num = []byte("K_m after rejoin"), "gg/77aa/rekey", 9
	g.mu.Unlock()
	if err := m.Rejoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b2.Publish(g.mgt.Topic, g.seal(10, rekeyOf(10)), true, 1); err != nil {
		t.Fatal(err)
	}
	acked(10)
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow: %v", err)
	}
}

// A broker that is away stops nothing: the rekey comes by Observe.
func TestFollowBrokerAway(t *testing.T) {
	t.Parallel()
	g, m := mqttMember(t, "mqtt://127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Follow(ctx) }()
	<-g.want
	g.rekey(6)
	if s := state(t, m); s.Version != 6 {
		t.Errorf("version %d", s.Version)
	}
	cancel()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Error("Follow does not end while the broker is away")
	}
}

// Coordinates that cannot be used cost the channel, not the membership.
func TestJoinBadMgt(t *testing.T) {
	t.Parallel()
	g := newFakeGM(t)
	g.mgt = mgtOf("gopher://x")
	m, events := joinedMember(t, g, func(c *Config) { c.MQTT = true })
	if m.mgt != nil || len(*events) != 2 || (*events)[0].Kind != Refused || (*events)[1].Kind != Joined {
		t.Errorf("events %+v", *events)
	}
}

func FuzzNotification(f *testing.F) {
	g := newFakeGM(f)
	g.peer(0x52, groupcomm.Requester)
	f.Add(rekeyOf(6, groupcomm.SenderID{0x52}), true)
	f.Add(g.full(7).Encode(), false)
	f.Add([]byte{0xa0}, true)
	m, _ := joinedMember(f, g, nil)
	start := m.state
	f.Fuzz(func(t *testing.T, body []byte, rekey bool) {
		m.state, m.missed = start, nil
		failed := false
		r := reply(coap.Content, coap.ACEGroupcomm, body)
		r.Options.SetUint(coap.ObserveOption, 2)
		m.onGroup(r, !rekey, func(error) { failed = true })
		s, ok := m.State()
		switch {
		case !ok:
			t.Fatal("the membership ended")
		case failed && (s.Version != 5 || m.missed != nil):
			t.Fatal("a refused notification changed the state")
		case s.Version != 5 && (s.Version != 6 || len(s.MasterSecret.Bytes()) < minSecret || len(s.Gid) == 0):
			t.Fatalf("installed version %d", s.Version)
		}
	})
}

func FuzzMQTT(f *testing.F) {
	g, m := mqttMember(f, "mqtt://127.0.0.1:1")
	f.Add(g.seal(5, rekeyOf(5)))
	f.Add(rekeyOf(6))
	start := m.state
	f.Fuzz(func(t *testing.T, payload []byte) {
		_ = m.openMQTT(payload)
		if m.state != start || m.missed != nil {
			t.Fatal("a message that nobody signed changed the state")
		}
	})
}

func FuzzJoinResponse(f *testing.F) {
	g := newFakeGM(f)
	f.Add(g.full(5).Encode())
	nc := []byte("nonce of client")
	kd := g.full(5)
	kd.Key.SenderID, kd.KDCCred, kd.KDCNonce = groupcomm.SenderID{1}, g.cred, []byte("nonce of kdc")
	kd.KDCCredVerify, _ = g.key.Sign(groupcomm.KDCPoPInput(nc, kd.KDCNonce))
	f.Add(kd.Encode())
	f.Fuzz(func(t *testing.T, body []byte) {
		r := reply(coap.Created, coap.ACEGroupcomm, body)
		relocate(r, "ace-group", "g1", "nodes", "n")
		s, _, kdc, err := readJoin(r, &expected{
			group: "g1", roles: groupcomm.Requester, params: g.params(t), nc: nc, pinned: g.cred,
		})
		if err == nil && (kdc == nil || !s.Installed || s.SenderID == nil) {
			t.Fatal("accepted an incomplete Join Response")
		}
	})
}

// Refusals of any shape give an error with bounded, printable text.
func FuzzRefused(f *testing.F) {
	f.Add(uint16(coap.ProblemDetails), (&coap.ProblemBody{ID: 3, Detail: "x"}).Encode())
	f.Add(uint16(coap.ACE), cose.MustMarshal(map[int64]any{30: 6, 31: "x"}))
	f.Add(uint16(coap.ACE), cose.MustMarshal(map[int64]any{1: "coaps://as"}))
	f.Add(uint16(coap.TextPlain), []byte("text\n"))
	f.Fuzz(func(t *testing.T, format uint16, body []byte) {
		e := refused("x", reply(coap.BadRequest, coap.Format(format), body))
		if len(e.Detail) > 4*maxDetail+64 || bytes.ContainsAny([]byte(e.Error()), "\n\x1b\x00") {
			t.Fatalf("%q", e.Error())
		}
	})
}
