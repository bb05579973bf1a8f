package bridge

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the room. Labels are bounded: groups are few and configured,
// nodes never appear.
type metrics struct {
	notifications *prometheus.CounterVec
	confirmations *prometheus.CounterVec
	published     *prometheus.CounterVec
	badAcks       prometheus.Counter
	connected     prometheus.Gauge
	control       *prometheus.CounterVec
	sentMessages  *prometheus.CounterVec
	sentBytes     *prometheus.CounterVec
	activations   *prometheus.CounterVec
}

// sent counts a rekey that was handed to the network or the broker.
func (m *metrics) sent(channel string, bytes int) {
	m.sentMessages.WithLabelValues(channel).Inc()
	m.sentBytes.WithLabelValues(channel).Add(float64(bytes))
}

func newMetrics(reg prometheus.Registerer, b *Bridge) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		notifications: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_bridge_notifications_total",
			Help: "Rekey notifications to observers by outcome: acknowledged, relayed (acknowledged on the way), failed, refused.",
		}, []string{"outcome"}),
		confirmations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_bridge_confirmations_total",
			Help: "Members known to hold a version, by the channel that showed it.",
		}, []string{"channel"}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_bridge_mqtt_published_total",
			Help: "Rekey messages handed to the MQTT broker by outcome: relayed, failed.",
		}, []string{"outcome"}),
		badAcks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_bridge_mqtt_refused_acks_total",
			Help: "Acknowledgements over MQTT that did not verify.",
		}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_bridge_broker_connected",
			Help: "1 while the gateway is connected to its MQTT broker.",
		}),
	}
	m.control = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_bridge_control_requests_total",
		Help: "Requests to the control_uri of members by kind (rekey, delete, deleted: of the group) and outcome: acknowledged, failed, overtaken (given up for a newer rekey).",
	}, []string{"kind", "outcome"})
	m.sentMessages = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_bridge_sent_messages_total",
		Help: "Rekeys that were sent by channel: observe, control, mqtt; without retransmissions.",
	}, []string{"channel"})
	m.sentBytes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_bridge_sent_bytes_total",
		Help: "Bytes of the rekeys in these messages, without the headers of CoAP, DTLS and MQTT.",
	}, []string{"channel"})
	m.activations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_bridge_activations_total",
		Help: "Scheduled rekeys told in order, by what opened the last wave: confirmed (by those waited for), spread (the time was up), overtaken (by another rekey).",
	}, []string{"ended"})
	reg.MustRegister(m.activations, m.sentMessages, m.sentBytes, m.control, m.notifications, m.confirmations, m.published, m.badAcks, m.connected, pendingCollector{b})
	return m
}

// pendingCollector counts members that lack their group's version when it is
// asked, because nothing keeps such a count.
type pendingCollector struct{ b *Bridge }

var pendingDesc = prometheus.NewDesc("groupgate_bridge_members",
	"Members of a group by delivery state.", []string{"group", "state"}, nil)

var heldDesc = prometheus.NewDesc("groupgate_bridge_held_members",
	"Members that wait for their turn to be told of a scheduled rekey.", []string{"group"}, nil)

var (
	sinceDesc = prometheus.NewDesc("groupgate_bridge_rekey_since_timestamp_seconds",
		"When the newest rekey of a group became due.", []string{"group"}, nil)
	doneDesc = prometheus.NewDesc("groupgate_bridge_rekey_delivered_ratio",
		"Part of the group's members that confirmed the newest rekey; lapsed ones are not counted.", []string{"group"}, nil)
)

// Of groups with a key tree.
var (
	treeMembersDesc = prometheus.NewDesc("groupgate_bridge_tree_members",
		"Members with a place in the key tree of a group.", []string{"group"}, nil)
	treeHeightDesc = prometheus.NewDesc("groupgate_bridge_tree_height",
		"Levels of the key tree of a group above its leaves.", []string{"group"}, nil)
	treeOutDesc = prometheus.NewDesc("groupgate_bridge_tree_leaves_out",
		"Leaves taken out of the key tree of a group since its newest rekey.", []string{"group"}, nil)
	treeMessagesDesc = prometheus.NewDesc("groupgate_bridge_tree_messages",
		"Messages of the newest rekey by the key tree of a group.", []string{"group"}, nil)
)

func (c pendingCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- pendingDesc
	ch <- sinceDesc
	ch <- doneDesc
	ch <- heldDesc
	ch <- treeMembersDesc
	ch <- treeHeightDesc
	ch <- treeOutDesc
	ch <- treeMessagesDesc
}

func (c pendingCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	c.b.mu.Lock()
	groups := make([]string, 0, len(c.b.groups))
	for g := range c.b.groups {
		groups = append(groups, g)
	}
	c.b.mu.Unlock()
	for _, g := range groups {
		if t, err := c.b.Tree(ctx, g); err == nil && t != nil {
			for desc, n := range map[*prometheus.Desc]int64{
				treeMembersDesc: t.Leaves, treeHeightDesc: int64(t.Height), treeOutDesc: t.Out, treeMessagesDesc: t.Messages,
			} {
				ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), g)
			}
		}
		p, err := c.b.tallied(ctx, g)
		if err != nil {
			continue // a group that is gone, or a store in trouble that reports itself
		}
		if !p.Since.IsZero() {
			ch <- prometheus.MustNewConstMetric(sinceDesc, prometheus.GaugeValue, float64(p.Since.Unix()), g)
		}
		ch <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(p.Held), g)
		ch <- prometheus.MustNewConstMetric(doneDesc, prometheus.GaugeValue, p.Percent()/100, g)
		for state, n := range map[string]int{
			StateCurrent: p.Delivered, StatePending: p.Pending, StateAsleep: p.Asleep, StateUnreachable: p.Unreachable, StateLapsed: p.Lapsed,
		} {
			ch <- prometheus.MustNewConstMetric(pendingDesc, prometheus.GaugeValue, float64(n), g, state)
		}
	}
}
