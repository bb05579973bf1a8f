package node

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Limits and times of the MQTT channel.
const (
	maxMQTT        = 64 << 10 // bytes of one message, as of a CoAP body
	maxTopic       = 512
	mqttKeepAlive  = 30 * time.Second
	mqttTimeout    = 10 * time.Second
	mqttRetry      = 2 * time.Second
	mqttDisconnect = 250 // milliseconds for what is under way
	mqttPatience   = 2 * time.Second
)

// ackState says which versions were seen over MQTT and acknowledged there.
type ackState struct {
	seen, sent groupcomm.Version
	any        bool // seen is set
	done       bool // sent is set
}

// readMgt reads and checks the coordinates of the MQTT channel.
func readMgt(b []byte) (*groupcomm.MgtKeyMaterial, error) {
	const op = "mgt_key_material"
	g, err := groupcomm.DecodeMgtKeyMaterial(b)
	if err != nil {
		return nil, badAnswer(op, "%v", err)
	}
	for _, topic := range []string{g.Topic, g.AckTopic} {
		if !usableTopic(topic) {
			return nil, badAnswer(op, "unusable topic %q", printable(topic))
		}
	}
	u, err := url.Parse(g.Broker)
	if err != nil || u.Host == "" {
		return nil, badAnswer(op, "unusable broker %q", printable(g.Broker))
	}
	switch u.Scheme {
	case "mqtt", "tcp", "mqtts", "ssl", "tls":
		return g, nil
	}
	return nil, fmt.Errorf("%w: %s: broker %q", ErrUnsupported, op, printable(g.Broker))
}

// learnChannel takes what a GET says of the MQTT channel of this membership: the
// broker may be elsewhere by now. The keys are those of the Join Response.
func (m *Member) learnChannel(b []byte, num groupcomm.Version) {
	m.mu.Lock()
	old, tree := m.mgt, m.tree != nil
	m.mu.Unlock()
	if old == nil || b == nil {
		return
	}
	if tree {
		m.learnBranch(b, num)
		return
	}
	g, err := readMgt(b)
	if err != nil || !bytes.Equal(g.KID, old.KID) || subtle.ConstantTimeCompare(g.Key, old.Key) != 1 {
		return // of another join; the follower asks again, or joins
	}
	if g.Broker == old.Broker && g.Topic == old.Topic && g.AckTopic == old.AckTopic && g.User == old.User && g.Password == old.Password {
		return
	}
	next := *old
	next.Broker, next.Topic, next.AckTopic, next.User, next.Password = g.Broker, g.Topic, g.AckTopic, g.User, g.Password
	m.mu.Lock()
	if m.mgt == old {
		m.mgt = &next
	}
	m.mu.Unlock()
	m.signal()
}

// usableTopic: MQTT 3.1.1, Section 4.7.1: a filter would subscribe to more than
// one's own.
func usableTopic(topic string) bool {
	return topic != "" && len(topic) <= maxTopic && !strings.ContainsAny(topic, "+#\x00") && !strings.HasPrefix(topic, "$")
}

// presenceTopic is where the node, and its last will, tell whether it is
// connected: the acknowledgement topic with another last level. "": nowhere.
func presenceTopic(g *groupcomm.MgtKeyMaterial) string {
	base, ok := strings.CutSuffix(g.AckTopic, "/ack")
	if !ok {
		return ""
	}
	return base + "/presence"
}

// clientID names the node's session at the broker. The user does not: members
// may share one, and a broker ends the session of another with the same name.
func clientID(g *groupcomm.MgtKeyMaterial) string {
	base, ok := strings.CutSuffix(g.AckTopic, "/ack")
	if !ok {
		return g.User
	}
	return base[strings.LastIndexByte(base, '/')+1:]
}

// Payloads of the presence topic.
const (
	presentHere = "1"
	presentGone = "0"
)

// courier reads the key that countersigns rekeys in a group that uses the
// pairwise mode only, where the Group Manager's credential cannot sign
// (docs/protocol.md, Section 5). It came over the node's own association, and its
// owner has proven possession over the N_C of the join.
func courier(g *groupcomm.MgtKeyMaterial, nc []byte) (*cose.Key, error) {
	const op = "mgt_key_material"
	if n := len(g.KDCNonce); n < minNonce || n > maxNonce {
		return nil, badAnswer(op, "kdc_nonce of %d bytes", n)
	}
	key, err := cose.DecodeCCS(g.KDCCred)
	if err != nil {
		return nil, badAnswer(op, "signing credential: %v", err)
	}
	if key.Verify(groupcomm.KDCPoPInput(nc, g.KDCNonce), g.KDCCredVerify) != nil {
		return nil, fmt.Errorf("%w: %s", ErrProof, op)
	}
	return key, nil
}

// receiveMQTT takes one message from the broker, which is trusted with nothing:
// the message must be encrypted under this membership's key and countersigned
// by the Group Manager.
//
// RFC 9594, Section 6.2.1.
func (m *Member) receiveMQTT(payload []byte) {
	if len(payload) == 0 {
		return // a retained message was deleted
	}
	if err := m.openMQTT(payload); err != nil {
		m.emit(Event{Kind: Refused, Via: ViaMQTT, Err: err})
	}
}

func (m *Member) openMQTT(payload []byte) error {
	const op = "rekey over MQTT"
	if len(payload) > maxMQTT {
		return badAnswer(op, "%d bytes", len(payload))
	}
	m.mu.Lock()
	mgt, kdc, tree := m.mgt, m.kdc, m.tree != nil
	m.mu.Unlock()
	if mgt == nil {
		return nil // left meanwhile
	}
	if tree {
		return m.openBranch(payload, ViaMQTT)
	}
	plain, num, err := cose.OpenRekey(mgt.Key, mgt.BaseIV, mgt.KID, mgt.Alg, kdc, payload)
	if err != nil {
		return badAnswer(op, "%v", err)
	}
	o, err := offerRekey(plain, ViaMQTT)
	if err != nil {
		return err
	}
	if o.num != num {
		return badAnswer(op, "version %d inside, %d outside", o.num, num)
	}
	m.mu.Lock()
	if m.mgt == mgt && (!m.acked.any || num > m.acked.seen) {
		m.acked.seen, m.acked.any = num, true
	}
	m.mu.Unlock()
	m.take(o)
	m.signalAck()
	return nil
}

// dueAck gives the acknowledgement that should be published now, nil when none
// is. It gives each version once: the message shows that the version is
// installed, so it waits for that.
func (m *Member) dueAck(mgt *groupcomm.MgtKeyMaterial) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := &m.acked
	if m.mgt != mgt || m.state == nil || !m.state.Installed || !a.any || a.seen != m.state.Version || a.done && a.sent >= a.seen {
		return nil
	}
	msg, err := cose.SealAck(mgt.Key, a.seen)
	if err != nil {
		m.log.Error("acknowledgement cannot be made", "err", err)
		return nil
	}
	a.sent, a.done = a.seen, true
	return msg
}

// signalAck says that an acknowledgement may be due.
func (m *Member) signalAck() {
	select {
	case m.ackWake <- struct{}{}:
	default:
	}
}

// subscription is the connection to the broker of one mgt_key_material.
type subscription struct {
	up      atomic.Bool   // the broker has our subscription
	topics  atomic.Int32  // how many topics it was asked for in this connection
	sure    atomic.Int32  // of how many of them nothing was missed: the Group Manager was asked since
	changed chan struct{} // one slot: up changed

	mgt    *groupcomm.MgtKeyMaterial
	client mqtt.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// newSubscription has no broker yet.
func newSubscription() *subscription { return &subscription{changed: make(chan struct{}, 1)} }

// isUp says whether rekeys arrive over MQTT now.
func (s *subscription) isUp() bool { return s.up.Load() }

func (s *subscription) set(up bool) {
	if s.up.Swap(up) != up {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// awaitUp gives the broker a moment, so that a member on MQTT does not observe
// first and stop again.
func (s *subscription) awaitUp(ctx context.Context) {
	if s.client == nil || s.isUp() {
		return
	}
	patience := time.NewTimer(mqttPatience)
	defer patience.Stop()
	select {
	case <-ctx.Done():
	case <-s.changed:
	case <-patience.C:
	}
}

// follow makes the subscription that of the membership now.
func (s *subscription) follow(m *Member) {
	m.mu.Lock()
	mgt := m.mgt
	m.mu.Unlock()
	if mgt == s.mgt {
		return
	}
	s.stop()
	if mgt != nil && mgt.Broker != "" {
		s.start(m, mgt)
	}
	s.mgt = mgt
}

func (s *subscription) start(m *Member, mgt *groupcomm.MgtKeyMaterial) {
	ctx, cancel := context.WithCancel(context.Background())
	log := m.log.With("broker", mgt.Broker)
	tlsConfig := m.cfg.BrokerTLS
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	o := mqtt.NewClientOptions().
		AddBroker(mgt.Broker).
		SetClientID(clientID(mgt)).
		SetUsername(mgt.User).
		SetPassword(mgt.Password).
		SetProtocolVersion(4). // MQTT 3.1.1
		SetTLSConfig(tlsConfig).
		// The newest rekey is retained, so a session in the broker would only
		// add older ones.
		SetCleanSession(true).
		SetStore(newOutbox()).
		SetKeepAlive(mqttKeepAlive).
		SetConnectTimeout(mqttTimeout).
		SetWriteTimeout(mqttTimeout).
		SetAutoReconnect(true).
		SetMaxReconnectInterval(backoffMost).
		SetConnectRetry(true).
		SetConnectRetryInterval(mqttRetry).
		SetConnectionLostHandler(func(c mqtt.Client, err error) {
			log.Info("broker lost", "err", err)
			if ctx.Err() == nil && !c.IsConnectionOpen() { // a goroutine of its own, too: it may be there again
				s.set(false)
			}
		}).
		SetOnConnectHandler(func(c mqtt.Client) { // paho gives this handler a goroutine of its own
			s.topics.Store(0)
			if err := s.subscribe(ctx, c, m.topics(mgt)); err != nil {
				log.Warn("subscription refused", "err", err)
				if ctx.Err() != nil {
					return
				}
				s.set(false)
				if topic := presenceTopic(mgt); topic != "" {
					c.Publish(topic, 1, true, presentGone) // what was retained of an earlier connection
				}
				return
			}
			s.sure.Store(s.topics.Load()) // the follower asks now
			s.set(true)
			m.signalAck() // the tree may have grown before the answer was there
			if topic := presenceTopic(mgt); topic != "" {
				c.Publish(topic, 1, true, presentHere) // a hint: not waited for
			}
		})
	if topic := presenceTopic(mgt); topic != "" {
		o.SetWill(topic, presentGone, 1, true)
	}
	s.mgt, s.cancel = mgt, cancel
	// Whatever comes: a broker that sends what was not asked for is not believed.
	o.SetDefaultPublishHandler(func(_ mqtt.Client, msg mqtt.Message) {
		if ctx.Err() == nil && slices.Contains(m.topics(mgt), msg.Topic()) {
			m.receiveMQTT(msg.Payload())
		}
	})
	s.client = mqtt.NewClient(o)
	s.client.Connect() // goes on by itself until Disconnect
	client := s.client
	s.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-m.ackWake:
			}
			if topics := m.topics(mgt); s.isUp() && len(topics) > int(s.topics.Load()) {
				// The tree grew. A broker may refuse while it delivers: mochi-mqtt takes
				// the identifiers of both directions for the same ones.
				if err := s.subscribe(ctx, client, topics); err != nil && ctx.Err() == nil {
					log.Info("subscription refused, trying again", "err", err)
					time.AfterFunc(mqttRetry, m.signalAck)
				}
			}
			if s.isUp() && m.pathLen(mgt) > int(s.sure.Load()) {
				// Some brokers retain a message a moment after they gave it to who had
				// subscribed (NATS; clusters): who subscribed in between gets it neither way.
				s.sure.Store(s.topics.Load())
				signalOne(m.show)
			}
			if msg := m.dueAck(mgt); msg != nil {
				// Not waited for: with QoS 1 paho keeps it until the broker has it,
				// and the Group Manager learns the version from the next poll, too.
				client.Publish(mgt.AckTopic, 1, false, msg)
			}
		}
	})
}

// subscribe asks for topics that the broker does not have yet; the default handler
// takes what comes.
func (s *subscription) subscribe(ctx context.Context, c mqtt.Client, topics []string) error {
	filters := map[string]byte{}
	for _, topic := range topics[min(int(s.topics.Load()), len(topics)):] {
		filters[topic] = 1
	}
	t := c.SubscribeMultiple(filters, nil)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.Done():
	}
	if err := t.Error(); err != nil {
		return err
	}
	if r, ok := t.(*mqtt.SubscribeToken); ok {
		for topic, code := range r.Result() {
			if code > 2 {
				return fmt.Errorf("node: the broker refuses %q", topic)
			}
		}
	}
	s.topics.Store(int32(len(topics)))
	return nil
}

// stop disconnects and waits for what it started.
func (s *subscription) stop() {
	if s.client == nil {
		s.mgt = nil
		return
	}
	s.cancel()
	if topic := presenceTopic(s.mgt); topic != "" && s.client.IsConnectionOpen() {
		// An orderly end has no will.
		s.client.Publish(topic, 1, true, presentGone).WaitTimeout(mqttDisconnect * time.Millisecond)
	}
	s.client.Disconnect(mqttDisconnect)
	s.wg.Wait()
	s.set(false)
	s.mgt, s.client, s.cancel = nil, nil, nil
}
