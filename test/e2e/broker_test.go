package e2e

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/test/mqttd"
	"github.com/seed4911071e/groupgate/test/ports"
)

// tap is a hook into the operator's broker: everybody may do everything, and
// everything is kept.
type tap struct {
	mqttd.Open
	mu   sync.Mutex
	seen []packets.Packet
}

// Provides implements mqtt.Hook.
func (h *tap) Provides(b byte) bool { return b == mqtt.OnPublished || h.Open.Provides(b) }

func (h *tap) OnPublished(_ *mqtt.Client, pk packets.Packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, pk.Copy(true))
}

// messages are those with content from the nth on.
func (h *tap) messages(n int) (out []packets.Packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, pk := range h.seen[n:] {
		if len(pk.Payload) > 0 { // an empty one deletes what is retained
			out = append(out, pk)
		}
	}
	return out
}

func (h *tap) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen)
}

// operatorBroker is a broker that is none of ours, and that keeps nothing over
// a restart.
func operatorBroker(t testing.TB, addr string, hook mqtt.Hook) (at string, stop func()) {
	t.Helper()
	var l net.Listener
	eventually(t, "the broker's port is free", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	_, stop = mqttd.Start(t, l, hook)
	return l.Addr().String(), stop
}

func external(addr string) func(*config.Config) {
	return func(c *config.Config) { c.Listen.MQTT, c.MQTT.Broker = "", "mqtt://"+addr }
}

// keys is what opens messages of one membership.
type keys struct {
	*groupcomm.MgtKeyMaterial
	gm *cose.Key
}

// mgt are the keys that the node was given at its nth join.
func (m *member) mgt(n int) keys {
	m.t.Helper()
	k, err := groupcomm.DecodeMgtKeyMaterial(m.wire.joins[n].MgtKeyMaterial)
	if err != nil {
		m.t.Fatal(err)
	}
	gm, err := cose.DecodeCCS(m.wire.joins[n].KDCCred)
	if err != nil {
		m.t.Fatal(err)
	}
	return keys{k, gm}
}

func (k keys) open(msg []byte) (*groupcomm.RekeyMessage, error) {
	plain, num, err := cose.OpenRekey(k.Key, k.BaseIV, k.KID, k.Alg, k.gm, msg)
	if err != nil {
		return nil, err
	}
	r, err := groupcomm.DecodeRekeyMessage(plain)
	if err == nil && r.Num != num {
		err = errors.New("the version inside is another")
	}
	return r, err
}

// device listens to the broker as a node does that has nothing but MQTT.
type device struct {
	t    testing.TB
	keys keys
	paho paho.Client
	got  chan []byte
}

func listen(t testing.TB, k keys) *device {
	t.Helper()
	d := &device{t: t, keys: k, got: make(chan []byte, 64)}
	o := paho.NewClientOptions().AddBroker(k.Broker).SetClientID(k.User).SetUsername(k.User).SetPassword(k.Password).
		SetProtocolVersion(4).SetAutoReconnect(false)
	d.paho = paho.NewClient(o)
	done := func(tok paho.Token) {
		t.Helper()
		if !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("broker: %v", tok.Error())
		}
	}
	done(d.paho.Connect())
	t.Cleanup(func() { d.paho.Disconnect(0) })
	done(d.paho.Subscribe(k.Topic, 1, func(_ paho.Client, m paho.Message) { d.got <- bytes.Clone(m.Payload()) }))
	return d
}

// next opens the next message.
func (d *device) next() *groupcomm.RekeyMessage {
	d.t.Helper()
	for {
		select {
		case msg := <-d.got:
			if len(msg) == 0 {
				continue
			}
			r, err := d.keys.open(msg)
			if err != nil {
				d.t.Fatal(err)
			}
			return r
		case <-time.After(patience):
			d.t.Fatal("no message")
		}
	}
}

func (d *device) confirm(v groupcomm.Version) {
	d.t.Helper()
	msg, err := cose.SealAck(d.keys.Key, v)
	if err != nil {
		d.t.Fatal(err)
	}
	if tok := d.paho.Publish(d.keys.AckTopic, 1, false, msg); !tok.WaitTimeout(patience) || tok.Error() != nil {
		d.t.Fatalf("acknowledgement: %v", tok.Error())
	}
}

func (g *gateway) confirmed(what, node string, v groupcomm.Version) {
	g.t.Helper()
	eventually(g.t, what, func() bool {
		m := row(g.show(), node)
		return m != nil && m.State == "current" && m.Version == v && m.Channel == "mqtt"
	})
}

// TestBrokerAway: joins, rekeys and leaves go on without a broker; when it is
// back, empty, every member has the newest keys there and no older ones.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	hook := &tap{}
	addr, stop := operatorBroker(t, ports.Addr(t), hook)
	g := serve(t, external(addr))
	anna, ben := g.join(viaMQTT), g.join(viaMQTT)
	phone := listen(t, anna.mgt(0))
	v := g.rekey()
	if got := phone.next(); got.Num != v || len(got.MasterSecret) == 0 {
		t.Fatalf("version %d, want %d", got.Num, v)
	}
	phone.confirm(v)
	g.confirmed("anna confirmed while the broker was there", anna.state().Node, v)

	stop()
	eventually(t, "anna lost the broker", func() bool { return !phone.paho.IsConnected() })
	g.rekey()
	cleo := g.join(viaMQTT)
	g.rekey()
	if err := ben.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leave rekeys", func() bool { return g.show().Version == v+3 })
	v += 3
	if m := row(g.show(), anna.state().Node); m.Version != v-3 || m.State == "current" {
		t.Errorf("without a broker anna is shown as %+v", m)
	}

	before := hook.count()
	operatorBroker(t, addr, hook)
	for _, m := range []*member{anna, cleo} {
		d := listen(t, m.mgt(0))
		got := d.next()
		if got.Num != v {
			t.Errorf("after the outage version %d is sent, the newest is %d", got.Num, v)
		}
		d.confirm(v)
		g.confirmed("confirmed after the outage", m.state().Node, v)
	}
	for _, pk := range hook.messages(before) {
		for _, m := range []*member{anna, cleo} {
			if r, err := m.mgt(0).open(pk.Payload); err == nil && r.Num != v {
				t.Errorf("version %d is published after the outage", r.Num)
			}
		}
		if pk.TopicName == ben.mgt(0).Topic {
			t.Error("a message for one who left is published")
		}
	}
	// Both kinds of members are told of the next.
	anna.follow()
	v = g.rekey()
	anna.reaches(v)
	g.confirmed("anna's own client", anna.state().Node, v)
}

// TestLeaverReadsNothing: one who left is given every key it ever held and all
// that passes the broker, and opens nothing that is newer.
func TestLeaverReadsNothing(t *testing.T) {
	t.Parallel()
	hook := &tap{}
	addr, _ := operatorBroker(t, anyPort, hook)
	g := serve(t, external(addr))
	stays := g.join(viaMQTT)
	leaver, evicted := g.join(viaMQTT), g.join(viaMQTT)
	var secrets [][]byte // everything that they held and that could be a key
	remember := func() {
		for _, m := range []*member{leaver, evicted} {
			s := m.state()
			secrets = append(secrets, s.MasterSecret.Bytes(), m.access.Key.Bytes())
		}
	}
	update := func() groupcomm.Version {
		t.Helper()
		v := g.rekey()
		for _, m := range []*member{leaver, evicted, stays} {
			if err := m.Poll(soon(t)); err != nil {
				t.Fatal(err)
			}
		}
		remember()
		return v
	}
	remember()
	update()
	if err := leaver.Rejoin(soon(t)); err != nil { // a second key for the same member
		t.Fatal(err)
	}
	v := update()
	newest := func(k keys, from int) (v groupcomm.Version) {
		for _, pk := range hook.messages(from) {
			if r, err := k.open(pk.Payload); err == nil {
				v = max(v, r.Num)
			}
		}
		return v
	}
	own := []keys{leaver.mgt(0), leaver.mgt(1), evicted.mgt(0)}
	eventually(t, "the broker has the last rekey for both", func() bool {
		return newest(own[1], 0) == v && newest(own[2], 0) == v
	})
	if newest(own[0], 0) >= v {
		t.Error("the key of before the re-join opens what came after it")
	}

	from := hook.count()
	if err := leaver.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leave rekeys", func() bool { return g.show().Version == v+1 })
	if _, err := g.admin.Evict(soon(t), group, []string{evicted.state().Node}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the eviction rekeys", func() bool { return g.show().Version == v+2 })
	v = g.rekey()
	eventually(t, "the broker has the last rekey", func() bool { return newest(stays.mgt(0), from) == v })

	// The evicted was a member until the eviction: the leave's rekey was for it.
	for _, pk := range hook.messages(from) {
		for i, k := range own {
			r, err := k.open(pk.Payload)
			if err == nil && (i < 2 || r.Num > v-2) {
				t.Errorf("key %d of a former member opens version %d", i, r.Num)
			}
			secrets = append(secrets, k.Key)
		}
		for _, secret := range secrets {
			for _, alg := range []int64{cose.AlgAESCCM16_64_128, 30, 1} {
				for _, aad := range [][]byte{nil, {}} {
					if plain, err := cose.OpenEncrypt0(alg, secret, pk.Payload, aad); err == nil {
						if r, err := groupcomm.DecodeRekeyMessage(plain); err != nil || r.Num > v-2 {
							t.Errorf("an old secret opens %d bytes", len(plain))
						}
					}
				}
			}
		}
	}
	if err := stays.Poll(soon(t)); err != nil {
		t.Fatal(err)
	}
	secret := stays.state().MasterSecret
	for _, old := range secrets {
		if bytes.Equal(old, secret.Bytes()) {
			t.Error("a former member holds the newest Master Secret")
		}
	}
	// docs/protocol.md, Section 5: the broker learns topics, sizes and times, never
	// content or names.
	names := []string{group, stays.state().Node}
	for _, pk := range hook.messages(0) {
		for _, name := range names {
			if strings.Contains(pk.TopicName, name) || bytes.Contains(pk.Payload, []byte(name)) {
				t.Errorf("the broker learns %q", name)
			}
		}
		if bytes.Contains(pk.Payload, secret.Bytes()) {
			t.Error("a Master Secret is sent in clear")
		}
	}
	for _, m := range []*member{leaver, evicted} {
		if _, err := m.Num(soon(t)); err == nil {
			t.Error("a former member is told the version")
		}
	}
}
