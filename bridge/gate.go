package bridge

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/store"
)

// gate decides at the embedded broker who may connect, and what they may read
// and write.
type gate struct {
	mqtt.HookBase
	prefix string
	hooks  brokerHooks
	log    *slog.Logger
	secret []byte // of the gateway's own client
	server *mqtt.Server

	ctx context.Context // of the broker's run: the library's calls carry none

	mu       sync.Mutex
	bad      map[string]int     // refused acknowledgements per connected member
	branches map[string]*branch // of connected members in key trees
}

func newGate(prefix string, hooks brokerHooks, log *slog.Logger) *gate {
	return &gate{prefix: prefix, hooks: hooks, log: log, secret: random(32), bad: map[string]int{}, branches: map[string]*branch{}}
}

func (g *gate) start(ctx context.Context) { g.ctx = ctx }

// ID implements mqtt.Hook.
func (*gate) ID() string { return "gate" }

// OnConnect refuses all but MQTT 3.1.1, which is what members speak
// (docs/protocol.md, Section 5). Decoders of MQTT 5 stay out of a stranger's reach:
// a SUBSCRIBE that ends early is a slice bounds panic there.
func (g *gate) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if cl.Properties.ProtocolVersion == mqttVersion {
		return nil
	}
	_ = g.server.SendConnack(cl, packets.ErrUnsupportedProtocolVersion, false, nil) // whoever left does not miss it
	return packets.ErrUnsupportedProtocolVersion
}

// OnConnectAuthenticate checks a credential against the store, in constant
// time, whether the user is known or not.
func (g *gate) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	user, password := string(pk.Connect.Username), pk.Connect.Password
	if cl.Net.Listener == internalListener {
		want := []byte(base64.RawURLEncoding.EncodeToString(g.secret))
		return user == internalUser && subtle.ConstantTimeCompare(password, want) == 1
	}
	if s := g.hooks.sensors.of(user); s != nil {
		return g.sensorMayConnect(cl, pk, s)
	}
	if len(user) > 2*ridLen {
		return false
	}
	if pk.Connect.WillFlag {
		// The server publishes a will to any topic, whoever may write there. A
		// session that ends says as much here: it is let through, and not kept.
		if pk.Connect.WillTopic != presenceTopic(g.prefix, user) {
			return false
		}
		cl.Properties.Will = mqtt.Will{}
	}
	ctx, cancel := context.WithTimeout(g.ctx, lookupTimeout)
	defer cancel()
	want, err := g.hooks.secretHash(ctx, user)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) && g.ctx.Err() == nil {
			g.log.ErrorContext(ctx, "cannot check a credential", "err", err)
		}
		want = make([]byte, sha256.Size) // no password is known that hashes to it
	}
	if subtle.ConstantTimeCompare(hashSecret(user, string(password)), want) != 1 || err != nil {
		return false
	}
	cl.ID = memberID(user)
	// No session outlives its connection: a queue of old rekeys is of no use
	// to a member, the newest is retained.
	cl.Properties.Clean = true
	cl.Properties.Props.SessionExpiryInterval = 0
	return true
}

// OnSessionEstablished looks again: the credential may have been revoked
// between the check and the moment from which a revocation finds the session.
func (g *gate) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	if cl.Net.Listener == internalListener || g.hooks.sensors.of(string(cl.Properties.Username)) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, lookupTimeout)
	defer cancel()
	user := string(cl.Properties.Username)
	if _, err := g.hooks.secretHash(ctx, user); err != nil {
		cl.Stop(packets.ErrNotAuthorized)
		return
	}
	g.hooks.present(ctx, user, true)
}

// OnACLCheck lets a member read its rekey topic and write its acknowledgement
// topic; the gateway may do everything.
func (g *gate) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if cl.Net.Listener == internalListener {
		return true
	}
	user := string(cl.Properties.Username)
	if s := g.hooks.sensors.of(user); s != nil {
		return write && topic == s.Topic
	}
	if write {
		return topic == ackTopic(g.prefix, user) || topic == presenceTopic(g.prefix, user)
	}
	return topic == rekeyTopic(g.prefix, user) || g.onBranch(user, topic)
}

// onBranch says whether a topic is that of a node above a member's leaf. The
// place of a connected member is looked up once, and again when it seems to have
// changed.
func (g *gate) onBranch(user, topic string) bool {
	tid, id, ok := parseTreeTopic(g.prefix, topic)
	if !ok {
		return false
	}
	g.mu.Lock()
	at := g.branches[user]
	g.mu.Unlock()
	if at.has(tid, id) {
		return true
	}
	ctx, cancel := context.WithTimeout(g.ctx, lookupTimeout)
	defer cancel()
	at, err := g.hooks.branch(ctx, user)
	if err != nil {
		if g.ctx.Err() == nil {
			g.log.ErrorContext(ctx, "cannot look up a place in a key tree", "err", err)
		}
		return false
	}
	g.mu.Lock()
	if at != nil {
		g.branches[user] = at
	} else {
		delete(g.branches, user)
	}
	g.mu.Unlock()
	return at.has(tid, id)
}

// OnPublish takes the acknowledgements of members out of the broker's hands,
// where a full queue would drop them, and lets the PUBACK wait until the
// confirmation is on disk.
func (g *gate) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Listener == internalListener {
		return pk, nil
	}
	if s := g.hooks.sensors.of(string(cl.Properties.Username)); s != nil {
		g.hooks.sensors.took(pk.TopicName, pk.Payload)
		return pk, packets.CodeSuccessIgnore // nobody subscribes to it, and nothing is kept
	}
	if pk.TopicName == presenceTopic(g.prefix, string(cl.Properties.Username)) {
		// The session tells already; nobody reads it here, and nothing is kept.
		return pk, packets.CodeSuccessIgnore
	}
	ctx, cancel := context.WithTimeout(g.ctx, tokenTimeout)
	defer cancel()
	answer := make(chan bool, 1)
	if !g.hooks.ack(ctx, pk.TopicName, pk.Payload, func(ok bool) { answer <- ok }) {
		return g.again(cl, pk)
	}
	select {
	case ok := <-answer:
		if !ok && g.refused(string(cl.Properties.Username)) {
			cl.Stop(packets.ErrQuotaExceeded)
			return pk, packets.ErrRejectPacket
		}
		// Acknowledged, neither retained nor passed on.
		return pk, packets.CodeSuccessIgnore
	case <-ctx.Done():
		return g.again(cl, pk)
	}
}

// again leaves a message without PUBACK and ends the connection: a member
// sends it again after the next connect, and only then (MQTT 3.1.1, Section
// 4.4).
func (g *gate) again(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	cl.Stop(packets.ErrServerBusy)
	return pk, packets.ErrRejectPacket
}

// refused counts a refused acknowledgement and says whether these are too many
// for one connection.
func (g *gate) refused(user string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bad[user]++
	return g.bad[user] >= maxBadAcks
}

// OnDisconnect forgets what was counted.
func (g *gate) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	user := string(cl.Properties.Username)
	g.mu.Lock()
	delete(g.bad, user)
	if !cl.IsTakenOver() {
		delete(g.branches, user)
	}
	g.mu.Unlock()
	if cl.ID == memberID(user) && !cl.IsTakenOver() {
		g.hooks.present(g.ctx, user, false)
	}
}
