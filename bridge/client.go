package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// token is the library's promise of an answer.
type token = paho.Token

// client is one connection to a broker. It never reconnects: the library's own
// queue and its endless waits are avoided, the store is the queue.
type client struct {
	paho paho.Client
	lost chan error // one slot
	end  context.CancelFunc
}

// dial connects and, unless acknowledgements come from inside the embedded
// broker, subscribes to them.
func (p *publisher) dial(ctx context.Context) (*client, error) {
	b := p.b
	session, end := context.WithCancel(ctx)
	c := &client{lost: make(chan error, 1), end: end}
	o := paho.NewClientOptions().
		SetProtocolVersion(mqttVersion).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(writeTimeout).
		SetKeepAlive(keepAlive).
		SetPingTimeout(pingTimeout).
		// An acknowledgement is acknowledged to the broker after it is on disk.
		SetAutoAckDisabled(true).
		SetConnectionLostHandler(func(_ paho.Client, err error) {
			select {
			case c.lost <- err:
			default:
			}
		})
	if b.broker != nil {
		o.AddBroker("tcp://embedded").
			SetClientID(internalUser).
			SetUsername(internalUser).
			SetPassword(b.broker.secret()).
			SetCleanSession(true).
			SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
				return b.broker.dial(session)
			})
	} else {
		tlsConfig, err := b.cfg.clientTLS()
		if err != nil {
			end()
			return nil, err
		}
		o.AddBroker(b.cfg.Broker).
			SetClientID(p.clientID).
			SetUsername(b.cfg.User).
			SetPassword(b.cfg.Password).
			SetTLSConfig(tlsConfig).
			SetDialer(&net.Dialer{Timeout: connectTimeout}).
			// The broker keeps acknowledgements while the gateway is away.
			SetCleanSession(false).
			SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
				if b.sensors.took(m.Topic(), m.Payload()) {
					m.Ack()
					return
				}
				if rid, ok := parseMemberTopic(b.cfg.Prefix, m.Topic(), "presence"); ok {
					if here := string(m.Payload()) == "1"; m.Retained() {
						b.wasPresent(session, rid, here) // no sign of life: it is of the past
					} else {
						b.present(session, rid, here)
					}
					m.Ack()
					return
				}
				payload := append([]byte(nil), m.Payload()...)
				// Refused ones are settled too: they would come again.
				b.takeAck(session, m.Topic(), payload, func(bool) { m.Ack() })
			})
	}
	c.paho = paho.NewClient(o)
	if err := c.wait(ctx, c.paho.Connect()); err != nil {
		c.close()
		return nil, fmt.Errorf("bridge: connect to the broker: %w", err)
	}
	if b.broker != nil {
		return c, nil
	}
	if err := c.insist(ctx, ackTopic(b.cfg.Prefix, "+")); err != nil {
		c.close()
		return nil, fmt.Errorf("bridge: subscribe to acknowledgements: %w", err)
	}
	for _, s := range b.cfg.Sensors {
		if err := c.subscribe(ctx, s.Topic); err != nil {
			c.close()
			return nil, fmt.Errorf("bridge: subscribe to the topic of a sensor: %w", err)
		}
	}
	if err := c.subscribe(ctx, presenceTopic(b.cfg.Prefix, "+")); err != nil {
		if ctx.Err() != nil || !errors.Is(err, errSubscription) {
			c.close()
			return nil, fmt.Errorf("bridge: subscribe to presence: %w", err)
		}
		b.log.WarnContext(ctx, "the mqtt broker does not let the gateway see who is connected", "topic", presenceTopic(b.cfg.Prefix, "+"))
	}
	return c, nil
}

var errSubscription = errors.New("bridge: subscription refused")

// insist subscribes, and again where that is refused: a broker that confuses packet
// identifiers (see package packetid) does so until the acknowledgements that it
// kept for us are settled, and they are settled in a session only.
func (c *client) insist(ctx context.Context, filter string) error {
	delay := backoffMin
	for {
		err := c.subscribe(ctx, filter)
		if !errors.Is(err, errSubscription) || delay > insistence {
			return err
		}
		pause(ctx, delay)
		delay *= 2
	}
}

func (c *client) subscribe(ctx context.Context, filter string) error {
	t := c.paho.Subscribe(filter, qos, nil)
	err := c.wait(ctx, t)
	if s, ok := t.(*paho.SubscribeToken); ok && s.Result()[filter] > 2 {
		err = errSubscription
	}
	return err
}

// publish sends a retained message; an empty one deletes what is retained.
func (c *client) publish(topic string, body []byte) token {
	if body == nil {
		body = []byte{}
	}
	return c.paho.Publish(topic, qos, true, body)
}

// wait waits for an answer, never without a limit.
func (c *client) wait(ctx context.Context, t token) error {
	limit := time.NewTimer(tokenTimeout)
	defer limit.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	case err := <-c.lost:
		// The session is over for everybody who waits.
		select {
		case c.lost <- err:
		default:
		}
		return err
	case <-limit.C:
		return errToken
	}
}

func (c *client) close() {
	c.end() // first, so that no handler holds up the goodbye
	c.paho.Disconnect(quiesce)
}

// refusedByBroker says whether the broker was there and turned the gateway's account
// away (MQTT 3.1.1, Section 3.2.2.3).
func refusedByBroker(err error) bool {
	return errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedNotAuthorised)
}
