package bridge

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

const testGroup = "sensors"

// manager is a small Group Manager: one group, its members and its versions.
// It drives the bridge in the order that the contract asks for.
type manager struct {
	key *cose.Key

	mu      sync.Mutex
	version uint64
	body    []byte
	members map[string]groupcomm.Member
	broken  bool // it cannot tell its version
	deleted bool // there is no group
	how     groupcomm.Activation
}

func newManager(t testing.TB) *manager {
	t.Helper()
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return &manager{key: key, version: 1, members: map[string]groupcomm.Member{}}
}

func (m *manager) RekeyMessage(_ context.Context, group string) (uint64, []byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if group != testGroup || m.deleted {
		return 0, nil, store.ErrNotFound
	}
	if m.broken {
		return 0, nil, errors.New("the disk is full")
	}
	return m.version, m.body, nil
}

func (m *manager) MemberOf(_ context.Context, group string, s coap.Subject) (*groupcomm.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.members {
		if group == testGroup && v.Subject == s {
			return &v, nil
		}
	}
	return nil, groupcomm.ErrNotMember
}

func (m *manager) Members(_ context.Context, group string) ([]groupcomm.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []groupcomm.Member
	for _, v := range m.members {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b groupcomm.Member) int { return slices.Compare([]byte(a.Node), []byte(b.Node)) })
	return out, nil
}

func (m *manager) Count(ctx context.Context, group string) (members, lapsed int, err error) {
	all, err := m.Members(ctx, group)
	for _, v := range all {
		if v.Lapsed {
			lapsed++
		}
	}
	return len(all), lapsed, err
}

func (m *manager) Memberships(_ context.Context, s coap.Subject) ([]groupcomm.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []groupcomm.Member
	for _, v := range m.members {
		if v.Subject == s {
			out = append(out, v)
		}
	}
	return out, nil
}

// change gives fn the membership of a node.
func (m *manager) change(node string, fn func(*groupcomm.Member)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.members[node]
	fn(&v)
	m.members[node] = v
}

func subject(node string) coap.Subject { return coap.Subject{Kind: coap.SubjectPoP, ID: node} }

// join admits a node; want nil is a member without MQTT.
func (m *manager) join(t testing.TB, b *Bridge, node string, want *groupcomm.Delivery) *groupcomm.MgtKeyMaterial {
	t.Helper()
	mgt, commit, err := b.Enroll(t.Context(), testGroup, node, want)
	if err != nil {
		t.Fatalf("enroll: %v", err)
	}
	if err := b.store.Update(t.Context(), commit); err != nil {
		t.Fatalf("commit enrolment: %v", err)
	}
	m.mu.Lock()
	m.members[node] = groupcomm.Member{Group: testGroup, Node: node, Subject: subject(node), JoinedAt: m.version}
	m.mu.Unlock()
	if mgt == nil {
		return nil
	}
	k, err := groupcomm.DecodeMgtKeyMaterial(mgt())
	if err != nil {
		t.Fatalf("decode mgt_key_material: %v", err)
	}
	return k
}

// TestEnrolled: what a member got at its join is told again, also by a gateway
// that was restarted, until its next join without MQTT or its leave.
func TestEnrolled(t *testing.T) {
	s, m := storetest.Open(t, Migrations()), newManager(t)
	b, stop := running(t, s, m, nil, nil)
	first := m.join(t, b, "a", wantMQTT)
	m.join(t, b, "b", nil)
	stop()
	b, stop = running(t, s, m, nil, func(c *Config) { c.Prefix = "elsewhere" })
	defer stop()
	again := func(node string) *groupcomm.MgtKeyMaterial {
		t.Helper()
		mgt, err := b.Enrolled(t.Context(), testGroup, node)
		if err != nil {
			t.Fatal(err)
		}
		if mgt == nil {
			return nil
		}
		k, err := groupcomm.DecodeMgtKeyMaterial(mgt)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := again("a")
	if k == nil || k.Broker != b.BrokerURI() || !strings.HasPrefix(k.Topic, "elsewhere/") {
		t.Fatal("the broker of now is not told")
	}
	connect(t, k) // the password still opens the session
	k.Broker, k.Topic, k.AckTopic = first.Broker, first.Topic, first.AckTopic
	if !bytes.Equal(k.Encode(), first.Encode()) {
		t.Error("it is not what the member got")
	}
	if again("b") != nil || again("nobody") != nil {
		t.Error("a channel that nobody asked for")
	}
	// A row from before passwords were kept: the member has it, or joins again.
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE bridge_registration SET sealed_secret = NULL`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if again("a") != nil {
		t.Error("a channel without a password")
	}
	m.join(t, b, "a", wantMQTT)
	if k := again("a"); k == nil || bytes.Equal(k.Key, first.Key) {
		t.Error("not the channel of the newest join")
	}
	if m.join(t, b, "a", nil); again("a") != nil {
		t.Error("a channel after a join without one")
	}
}

var wantMQTT = &groupcomm.Delivery{Channel: "mqtt"}

// plan decides the next rekey, for the members that are entitled.
func (m *manager) plan() groupcomm.RekeyPlan {
	m.mu.Lock()
	defer m.mu.Unlock()
	num := m.version + 1
	p := groupcomm.RekeyPlan{
		Group: testGroup,
		Num:   num,
		Message: (&groupcomm.RekeyMessage{
			MasterSecret: random(16), ContextID: groupcomm.Gid{1, 2, 3, byte(num)}, Num: num, Exp: 1 << 32, Exi: 3600,
		}).Encode(),
		SignAlg: cose.AlgEdDSA,
		Sign:    m.key.Sign,

		Activation: m.how,
	}
	for _, v := range m.members {
		if v.Lapsed {
			p.Excluded = append(p.Excluded, v.Node)
		}
	}
	return p
}

// rekey runs a whole rekey and returns the new version.
func (m *manager) rekey(t testing.TB, b *Bridge) uint64 {
	t.Helper()
	p := m.plan()
	commit, err := b.Prepare(t.Context(), p)
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	m.commit(t, b.store, p, commit)
	return p.Num
}

func (m *manager) commit(t testing.TB, s *store.Store, p groupcomm.RekeyPlan, commit func(*store.Tx) error) {
	t.Helper()
	// Nobody sees the version before it is committed, nor the event before it.
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version, m.body = p.Num, p.Message
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		if err := commit(tx); err != nil {
			return err
		}
		return tx.Emit(groupcomm.EventRekeyed, testGroup, groupcomm.Event{Group: testGroup, Version: p.Num}.Encode())
	})
	if err != nil {
		t.Fatalf("commit rekey: %v", err)
	}
}

// remove says that the group was deleted; not gone: there is another of its name since.
func (m *manager) remove(t testing.TB, b *Bridge, gone bool) {
	t.Helper()
	m.mu.Lock()
	m.deleted = gone
	m.mu.Unlock()
	if err := b.store.Update(t.Context(), func(tx *store.Tx) error {
		return tx.Emit(groupcomm.EventDeleted, testGroup, groupcomm.Event{Group: testGroup}.Encode())
	}); err != nil {
		t.Fatal(err)
	}
}

// end removes a member, as evicted or left.
func (m *manager) end(t testing.TB, b *Bridge, node, kind string) {
	t.Helper()
	m.mu.Lock()
	delete(m.members, node)
	m.mu.Unlock()
	err := b.store.Update(t.Context(), func(tx *store.Tx) error {
		if err := b.Remove(tx, testGroup, node); err != nil {
			return err
		}
		return tx.Emit(kind, testGroup, groupcomm.Event{Group: testGroup, Node: node, Subject: subject(node)}.Encode())
	})
	if err != nil {
		t.Fatalf("remove %q: %v", node, err)
	}
}

// nobody is a hub without observers.
type nobody struct{}

func (nobody) Publish(string, coap.Notification)        {}
func (nobody) Drop(string, coap.LinkID, *coap.Response) {}
func (nobody) Do(context.Context, coap.LinkID, *coap.Request) (*coap.Response, error) {
	return nil, coap.ErrGone
}

func loopbackListener(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// running starts a bridge with the embedded broker on a port of its own. stop
// ends it and waits, as the end of the test does.
func running(t testing.TB, s *store.Store, m *manager, hub coap.Hub, change func(*Config)) (b *Bridge, stop func()) {
	t.Helper()
	cfg := Config{Listeners: []net.Listener{loopbackListener(t, "127.0.0.1:0")}}
	if change != nil {
		change(&cfg)
	}
	if hub == nil {
		hub = nobody{}
	}
	b = New(cfg, Deps{Store: s, Source: m, Hub: hub})
	if err := b.Setup(t.Context()); err != nil {
		t.Fatalf("setup: %v", err)
	}
	return b, run(t, b)
}

// run runs a bridge until stop or the end of the test.
func run(t testing.TB, b *Bridge) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("run does not return")
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually polls, for what crosses real sockets.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func entry(t testing.TB, b *Bridge, node string) LedgerEntry {
	t.Helper()
	entries, err := b.Ledger(t.Context(), testGroup)
	if err != nil {
		t.Fatalf("ledger: %v", err)
	}
	for _, e := range entries {
		if e.Node == node {
			return e
		}
	}
	return LedgerEntry{}
}

// device is a member's MQTT side.
type device struct {
	t    testing.TB
	mgt  *groupcomm.MgtKeyMaterial
	paho paho.Client
	got  chan []byte
	lost chan struct{}
}

// connect logs in with a member's coordinates and subscribes to its topic.
func connect(t testing.TB, mgt *groupcomm.MgtKeyMaterial) *device {
	t.Helper()
	d := &device{t: t, mgt: mgt, got: make(chan []byte, 64), lost: make(chan struct{})}
	d.paho = login(t, mgt.Broker, mgt.User, mgt.Password, func(o *paho.ClientOptions) {
		o.SetConnectionLostHandler(func(paho.Client, error) { close(d.lost) })
	})
	if err := wait(d.paho.Subscribe(mgt.Topic, 1, func(_ paho.Client, m paho.Message) { d.got <- m.Payload() })); err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	return d
}

func login(t testing.TB, broker, user, password string, more func(*paho.ClientOptions)) paho.Client {
	t.Helper()
	c, err := tryLogin(t, broker, user, password, more)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	return c
}

func tryLogin(t testing.TB, broker, user, password string, more func(*paho.ClientOptions)) (paho.Client, error) {
	t.Helper()
	o := paho.NewClientOptions().AddBroker(broker).SetClientID("device-" + user).SetUsername(user).SetPassword(password).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(5 * time.Second)
	if more != nil {
		more(o)
	}
	c := paho.NewClient(o)
	if err := wait(c.Connect()); err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Disconnect(50) })
	return c, nil
}

func wait(tok paho.Token) error {
	if !tok.WaitTimeout(10 * time.Second) {
		return errors.New("no answer in time")
	}
	return tok.Error()
}

// next returns the next message as it is on the wire.
func (d *device) next() []byte {
	d.t.Helper()
	select {
	case m := <-d.got:
		return m
	case <-time.After(15 * time.Second):
		d.t.Fatal("no rekey message in time")
		return nil
	}
}

// after is the next message that is another one: QoS 1 delivers at least once, and who
// subscribes while what is retained is published again gets both.
func (d *device) after(msg []byte) []byte {
	d.t.Helper()
	next := d.next()
	for bytes.Equal(next, msg) {
		next = d.next()
	}
	return next
}

// open reads a rekey message as the member does.
func (d *device) open(pub *cose.Key, msg []byte) (*groupcomm.RekeyMessage, uint64) {
	d.t.Helper()
	plain, num, err := cose.OpenRekey(d.mgt.Key, d.mgt.BaseIV, d.mgt.KID, d.mgt.Alg, pub, msg)
	if err != nil {
		d.t.Fatalf("open rekey message: %v", err)
	}
	m, err := groupcomm.DecodeRekeyMessage(plain)
	if err != nil {
		d.t.Fatalf("decode rekey message: %v", err)
	}
	return m, num
}

func (d *device) ack(num uint64) error {
	d.t.Helper()
	msg, err := cose.SealAck(d.mgt.Key, num)
	if err != nil {
		d.t.Fatal(err)
	}
	return wait(d.paho.Publish(d.mgt.AckTopic, 1, false, msg))
}

func open(t testing.TB) *store.Store { t.Helper(); return storetest.Open(t, Migrations()) }
