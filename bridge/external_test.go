package bridge

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/test/certs"
	"github.com/seed4911071e/groupgate/test/mqttd"
)

// accounts admits users by password, to all topics.
type accounts struct {
	mqttd.Open
	byUser map[string]string
}

func (a *accounts) OnConnectAuthenticate(_ *mqtt.Client, pk packets.Packet) bool {
	want, ok := a.byUser[string(pk.Connect.Username)]
	return ok && want == string(pk.Connect.Password)
}

// operatorBroker is a broker that is none of ours: accounts in its own ledger,
// no rules of ours, nothing kept over a restart.
func operatorBroker(t testing.TB, l net.Listener) (stop func()) {
	t.Helper()
	_, stop = mqttd.Start(t, l, &accounts{byUser: map[string]string{"gateway": "gateway secret", "members": "members secret"}})
	return stop
}

func external(c *Config, uri string) {
	for _, l := range c.Listeners {
		_ = l.Close()
	}
	c.Listeners = nil
	c.Broker = uri
	c.User, c.Password = "gateway", "gateway secret"
	c.MemberUser, c.MemberPassword = "members", "members secret"
}

// reluctant refuses the first subscriptions to acknowledgements.
type reluctant struct {
	mqttd.Open
	refusals, connects atomic.Int32
}

func (r *reluctant) OnConnectAuthenticate(_ *mqtt.Client, pk packets.Packet) bool {
	if string(pk.Connect.Username) == "gateway" {
		r.connects.Add(1)
	}
	return true
}

func (r *reluctant) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	return write || !strings.HasSuffix(topic, "/+/ack") || r.refusals.Add(-1) < 0
}

// TestRefusedAtFirst: a broker whose library takes the identifiers of its own
// messages for the gateway's refuses to subscribe it until those are acknowledged,
// for which the session has to live.
func TestRefusedAtFirst(t *testing.T) {
	m, l, broker := newManager(t), loopbackListener(t, "127.0.0.1:0"), new(reluctant)
	broker.refusals.Store(2)
	mqttd.Start(t, l, broker)
	b, _ := running(t, open(t), m, nil, func(c *Config) { external(c, "mqtt://"+l.Addr().String()) })
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	num := m.rekey(t, b)
	d.next()
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	eventually(t, "confirmed", func() bool { return entry(t, b, "n1").Confirmed == num })
	if n := broker.connects.Load(); n != 1 {
		t.Errorf("the gateway connected %d times, want once", n)
	}
}

// TestBrokerRefuses: a wrong password is told from a broker that is not there.
func TestBrokerRefuses(t *testing.T) {
	l := loopbackListener(t, "127.0.0.1:0")
	addr := l.Addr().String()
	stop := operatorBroker(t, l)
	b := New(func() (c Config) { external(&c, "mqtt://"+addr); c.Password = "another"; return c }(), Deps{Store: open(t), Source: newManager(t), Hub: nobody{}})
	if err := b.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.publisher.dial(t.Context()); !refusedByBroker(err) {
		t.Errorf("a wrong password: %v", err)
	}
	stop()
	if _, err := b.publisher.dial(t.Context()); err == nil || refusedByBroker(err) {
		t.Errorf("no broker: %v", err)
	}
}

// TestBrokerAway: rekeys, evictions and acknowledgements of the time without a
// broker are all there when it is back, empty and on the same address.
func TestBrokerAway(t *testing.T) {
	m := newManager(t)
	l := loopbackListener(t, "127.0.0.1:0")
	addr := l.Addr().String()
	stop := operatorBroker(t, l)
	b, _ := running(t, open(t), m, nil, func(c *Config) { external(c, "mqtt://"+addr) })
	one := connect(t, m.join(t, b, "n1", wantMQTT))
	if one.mgt.User != "members" || one.mgt.Broker != "mqtt://"+addr {
		t.Fatalf("member is told %q at %q", one.mgt.User, one.mgt.Broker)
	}
	num := m.rekey(t, b)
	one.open(m.key.Public(), one.next())
	if err := one.ack(num); err != nil {
		t.Fatal(err)
	}
	eventually(t, "confirmed", func() bool { return entry(t, b, "n1").Confirmed == num })

	stop()
	<-one.lost
	m.rekey(t, b)
	two := m.join(t, b, "n2", wantMQTT)
	gone := m.join(t, b, "n3", wantMQTT)
	num = m.rekey(t, b)
	m.end(t, b, "n3", groupcomm.EventEvicted)
	if e := entry(t, b, "n1"); e.State == StateCurrent {
		t.Fatalf("confirmed without a broker: %+v", e)
	}

	stop = operatorBroker(t, loopbackListener(t, addr))
	defer stop()
	for node, mgt := range map[string]*groupcomm.MgtKeyMaterial{"n1": one.mgt, "n2": two} {
		d := connectAs(t, mgt, "device-"+node)
		if _, got := d.open(m.key.Public(), d.next()); got != num {
			t.Fatalf("%s got version %d, want only the newest, %d", node, got, num)
		}
		if err := d.ack(num); err != nil {
			t.Fatal(err)
		}
		eventually(t, "confirmed", func() bool { return entry(t, b, node).State == StateCurrent })
	}
	d := connectAs(t, gone, "device-n3")
	eventually(t, "nothing left to revoke", func() bool {
		rids, err := b.publisher.revokedPage(t.Context())
		return err == nil && len(rids) == 0
	})
	select {
	case p := <-d.got:
		if len(p) > 0 {
			t.Fatal("an evicted member's message was published")
		}
	default:
	}
}

// connectAs logs in with a client identifier of its own, where members share an
// account.
func connectAs(t testing.TB, mgt *groupcomm.MgtKeyMaterial, id string) *device {
	t.Helper()
	d := &device{t: t, mgt: mgt, got: make(chan []byte, 64), lost: make(chan struct{})}
	d.paho = login(t, mgt.Broker, mgt.User, mgt.Password, func(o *paho.ClientOptions) { o.SetClientID(id) })
	if err := wait(d.paho.Subscribe(mgt.Topic, 1, func(_ paho.Client, m paho.Message) { d.got <- m.Payload() })); err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	return d
}

// TestAckWhileGatewayAway: the broker keeps acknowledgements for the gateway's
// lasting client identifier.
func TestAckWhileGatewayAway(t *testing.T) {
	m := newManager(t)
	l := loopbackListener(t, "127.0.0.1:0")
	uri := "tcp://" + l.Addr().String()
	operatorBroker(t, l)
	s := open(t)
	b, stop := running(t, s, m, nil, func(c *Config) { external(c, uri) })
	d := connect(t, m.join(t, b, "n1", wantMQTT))
	num := m.rekey(t, b)
	d.next()
	stop()
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	b, _ = running(t, s, m, nil, func(c *Config) { external(c, uri) })
	eventually(t, "confirmed", func() bool { return entry(t, b, "n1").Confirmed == num })
}

func TestTLSListener(t *testing.T) {
	ca := certs.New(t)
	certFile, keyFile := ca.WritePair(t.TempDir(), "broker")
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, func(c *Config) {
		c.ListenTLS, c.TLSCertFile, c.TLSKeyFile = "127.0.0.1:0", certFile, keyFile
	})
	mgt := m.join(t, b, "n1", wantMQTT)
	if len(mgt.Broker) < 8 || mgt.Broker[:8] != "mqtts://" {
		t.Fatalf("members are told %q, not the TLS listener", mgt.Broker)
	}
	num := m.rekey(t, b)
	got := make(chan []byte, 8)
	c := login(t, mgt.Broker, mgt.User, mgt.Password, func(o *paho.ClientOptions) { o.SetTLSConfig(&tls.Config{RootCAs: ca.Pool()}) })
	if err := wait(c.Subscribe(mgt.Topic, 1, func(_ paho.Client, m paho.Message) { got <- m.Payload() })); err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, mgt: mgt, got: got}
	if _, n := d.open(m.key.Public(), d.next()); n != num {
		t.Fatalf("version %d, want %d", n, num)
	}
}

func TestTLSToBroker(t *testing.T) {
	ca, dir := certs.New(t), t.TempDir()
	certFile, keyFile := ca.WritePair(dir, "broker")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	l := loopbackListener(t, "127.0.0.1:0")
	operatorBroker(t, tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequireAnyClientCert, // whose it is, mosquitto asks in test/broker
	}))
	m := newManager(t)
	b, _ := running(t, open(t), m, nil, func(c *Config) {
		external(c, "mqtts://"+l.Addr().String())
		c.CAFile, c.CertFile, c.KeyFile = ca.WriteRoots(dir), certFile, keyFile
	})
	m.join(t, b, "n1", wantMQTT)
	m.rekey(t, b)
	eventually(t, "relayed over TLS", func() bool { return entry(t, b, "n1").Attempts == 1 })
}

// TestQuietLog: whatever happens, no password and no key is logged.
func TestQuietLog(t *testing.T) {
	var out bytes.Buffer
	m := newManager(t)
	b := New(Config{Listeners: []net.Listener{loopbackListener(t, "127.0.0.1:0")}}, Deps{
		Store: open(t), Source: m, Hub: nobody{},
		Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err := b.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := run(t, b)
	mgt := m.join(t, b, "n1", wantMQTT)
	d := connect(t, mgt)
	num := m.rekey(t, b)
	d.next()
	if err := d.ack(num); err != nil {
		t.Fatal(err)
	}
	// The library logs whole packets when a client breaks the protocol: a
	// second CONNECT, password included.
	conn, err := net.Dial("tcp", mgt.Broker[len("mqtt://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	connectPacket := rawConnect(mgt.User, mgt.Password)
	if _, err := conn.Write(append(connectPacket, connectPacket...)); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.Copy(io.Discard, conn)
	stop()
	log := out.String()
	if !bytes.Contains(out.Bytes(), []byte("second connect packet")) && !bytes.Contains(out.Bytes(), []byte("error processing packet")) {
		t.Errorf("the broker's log was not passed on:\n%s", log)
	}
	for name, secret := range map[string][]byte{"password": []byte(mgt.Password), "key": mgt.Key, "gateway's credential": []byte(b.broker.secret())} {
		if bytes.Contains(out.Bytes(), secret) || bytes.Contains(out.Bytes(), []byte(slog.AnyValue(secret).String())) {
			t.Errorf("the log has the %s", name)
		}
	}
}

// rawConnect is a CONNECT packet of MQTT 3.1.1.
func rawConnect(user, password string) []byte {
	field := func(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }
	body := append(field("MQTT"), 4, 0xc2, 0, 60)
	body = append(body, field("raw")...)
	body = append(body, field(user)...)
	body = append(body, field(password)...)
	return append([]byte{0x10, byte(len(body))}, body...)
}

// TestResumesFromCursor: a rekey that was committed while nobody delivered goes
// to the observers that are there after the start.
func TestResumesFromCursor(t *testing.T) {
	m := newManager(t)
	s := open(t)
	before := &recorder{published: make(chan coap.Notification, 8)}
	b, stop := running(t, s, m, before, nil)
	m.join(t, b, "n1", nil)
	m.rekey(t, b)
	<-before.published
	stop()
	num := m.rekey(t, b) // committed, the process ends
	after := &recorder{published: make(chan coap.Notification, 8)}
	_, stop = running(t, s, m, after, nil)
	n := <-after.published
	if n.Version != num {
		t.Fatalf("published version %d, want %d", n.Version, num)
	}
	stop()
	again := &recorder{published: make(chan coap.Notification, 8)}
	_, stop = running(t, s, m, again, nil)
	stop()
	if len(again.published) != 0 {
		t.Fatal("an event that was handled came again after an orderly stop")
	}
}

// recorder is a hub that keeps what is published.
type recorder struct {
	nobody
	published chan coap.Notification
}

func (r *recorder) Publish(_ string, n coap.Notification) { r.published <- n }
