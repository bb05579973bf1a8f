//go:build interop

package broker

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// TestSensor: a sensor that speaks MQTT only, to a broker that is not the
// gateway's, is a member of an OSCORE group: another member reads what it published
// last, also after the broker was killed; what it is not allowed to publish is not read.
func TestSensor(t *testing.T) { each(t, sensor) }

func sensor(t *testing.T, broker *server) {
	g := newGateway(t, broker, func(c *config.Config) {
		c.Delegates = []config.Delegate{{
			Name: "t7", MQTTTopic: "plant/t7", RPS: 1000, Awake: time.Second, Hold: time.Second,
			Groups: []config.DelegateGroup{{Name: group, Roles: []string{"responder"}, Resources: []config.Resource{{Path: "/t", Methods: []string{"GET"}}}}},
		}}
	})
	var where string
	eventually(t, "the gateway joined for the sensor", func() bool {
		list, err := g.api.Delegates(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		where = list[0].Listen
		return list[0].State == "joined"
	})
	m, _ := g.join(0)
	traffic, err := node.NewTraffic(m, node.TrafficConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := traffic.Sync(); err != nil {
		t.Fatal(err)
	}
	client, err := node.DialGroup(t.Context(), traffic, "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	read := func() (got string) {
		t.Helper()
		req := &coap.Message{Code: coap.GET}
		req.Options.SetPath("t")
		err := client.Send(t.Context(), netip.MustParseAddrPort(where), nil, req, patience, func(a node.Answer) {
			if a.Err != nil {
				t.Fatal(a.Err)
			}
			got = a.Message.Code.String() + " " + string(a.Message.Payload)
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	measure := func(topic, value string) {
		t.Helper()
		c := broker.client(sensorID)
		defer c.Disconnect(1000)
		publish(t, c, topic, value)
	}
	measure("plant/t7", "21.5")
	eventually(t, "the value is read in the group", func() bool { return read() == "2.05 21.5" })
	stray := broker.client(sensorID)
	stray.Publish("plant/t8", 1, true, "another topic").WaitTimeout(time.Second) // refused as the broker pleases
	stray.Disconnect(100)
	broker.kill()
	if got := read(); got != "2.05 21.5" {
		t.Errorf("without the broker: %q", got)
	}
	broker.start()
	eventually(t, "the newest value is read after the broker came back", func() bool {
		measure("plant/t7", "22.0")
		return read() == "2.05 22.0"
	})
}
