package e2e

import (
	"regexp"
	"strconv"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
)

// TestSeveralChannels: a node that is on MQTT, gave a control_uri and observes the
// group shows every version once, over whichever channel was first; over the others
// nothing is counted, and the ledger says which it was.
func TestSeveralChannels(t *testing.T) {
	t.Parallel()
	g := serve(t)
	m := g.join(viaMQTT, seldom, func(c *node.Config) { c.ControlURI = "coap://node.example/grp-rek" })
	m.follow()
	got := make(chan []byte, 64) // more than come
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", group)
	if _, err := m.wire.Observe(soon(t), req, func(r *coap.Response) { got <- r.Payload }); err != nil {
		t.Fatal(err)
	}
	<-got // the whole material
	entry := func() admin.DeliveryMember {
		t.Helper()
		d, err := g.admin.Delivery(soon(t), group, true)
		if err != nil || len(d.Ledger) != 1 {
			t.Fatal(d, err)
		}
		return d.Ledger[0]
	}
	counter := regexp.MustCompile(`groupgate_bridge_confirmations_total\{channel="(\w+)"\} (\d+)`)
	counted := func() (sum int, by map[string]int) {
		by = map[string]int{}
		for _, f := range counter.FindAllStringSubmatch(scrape(t, "http://"+g.at.HTTP+"/metrics"), -1) {
			n, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatal(err)
			}
			by[f[1]] = n
			sum += n
		}
		return sum, by
	}
	// Whoever follows shows the version of its join by asking once. What is on disk is
	// counted a moment later.
	eventually(t, "the node shows the version of its join", func() bool {
		e := entry()
		sum, _ := counted()
		return e.Version != nil && e.State == "current" && sum == 1
	})
	const before = 1
	const rekeys = 8
	first := map[string]int{}
	for n := 1; n <= rekeys; n++ {
		v := g.rekey()
		m.reaches(v)
		var e admin.DeliveryMember
		eventually(t, "the ledger has the version", func() bool {
			e = entry()
			return e.State == "current" && *e.Version == v
		})
		first[e.By]++
		eventually(t, "the confirmation is counted", func() bool {
			sum, by := counted()
			if sum-before > n {
				t.Fatalf("after %d rekeys %d confirmations were counted: %v", n, sum-before, by)
			}
			return sum-before == n
		})
	}
	eventually(t, "both channels showed a version", func() bool {
		shown := 0
		for _, c := range entry().Channels {
			if c.Result == "confirmed" && (c.Channel == "mqtt" || c.Channel == "observe") {
				shown++
			}
		}
		return shown == 2
	})
	sum, by := counted()
	if sum-before != rekeys {
		t.Errorf("in the end %d confirmations were counted: %v", sum-before, by)
	}
	for channel, n := range first {
		if channel == "" || by[channel] < n {
			t.Errorf("the ledger says that %q was first %d times, counted are %v", channel, n, by)
		}
	}
	t.Logf("first were %v", first)
}
