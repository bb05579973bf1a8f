package bridge

import (
	"crypto/sha256"
	"crypto/subtle"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/seed4911071e/groupgate/cose"
)

// Sensor is a peer that publishes to one topic and does nothing else. At a broker of
// the operator it has an account there.
type Sensor struct {
	User     string
	Password cose.Secret // at the embedded broker
	Topic    string
}

// sensors knows them by user and by topic.
type sensors struct {
	byUser  map[string]*Sensor
	byTopic map[string]bool
	reading func(topic string, payload []byte)
}

func newSensors(list []Sensor, reading func(topic string, payload []byte)) *sensors {
	s := &sensors{byUser: map[string]*Sensor{}, byTopic: map[string]bool{}, reading: reading}
	for i := range list {
		s.byUser[list[i].User] = &list[i]
		s.byTopic[list[i].Topic] = true
	}
	return s
}

// of finds the sensor with a user name; nil: none.
func (s *sensors) of(user string) *Sensor { return s.byUser[user] }

// took takes a message, if its topic is one of a sensor.
func (s *sensors) took(topic string, payload []byte) bool {
	if !s.byTopic[topic] {
		return false
	}
	s.reading(topic, payload)
	return true
}

// sensorMayConnect checks the password of a sensor, in constant time. It has no will,
// and no session that outlives its connection.
func (g *gate) sensorMayConnect(cl *mqtt.Client, pk packets.Packet, s *Sensor) bool {
	given, want := sha256.Sum256(pk.Connect.Password), sha256.Sum256(s.Password.Bytes())
	if subtle.ConstantTimeCompare(given[:], want[:]) != 1 || s.Password.IsZero() || pk.Connect.WillFlag {
		return false
	}
	cl.ID = "sensor-" + s.User
	cl.Properties.Clean = true
	cl.Properties.Props.SessionExpiryInterval = 0
	return true
}
