package delegate

import "github.com/prometheus/client_golang/prometheus"

// metrics of the room. Groups are configured, so their number is bounded; nodes are no
// labels.
type metrics struct {
	joins, tokens, failures   *prometheus.CounterVec
	messages                  *prometheus.CounterVec
	dropped, refused, limited *prometheus.CounterVec
	asleep, strangers         prometheus.Counter
	challenged                prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Room) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "groupgate_delegate_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	one := func(name, help string) prometheus.Counter { return vec(name, help).WithLabelValues() }
	m := &metrics{
		joins:      vec("joins_total", "Joins for legacy nodes.", "group"),
		tokens:     vec("tokens_total", "Access tokens gotten for legacy nodes.", "group"),
		failures:   vec("failures_total", "Tries to join or to stay that failed.", "group"),
		messages:   vec("messages_total", "Group OSCORE messages for legacy nodes: request or response, in or out, group or pairwise mode.", "group", "kind", "direction", "mode"),
		dropped:    vec("dropped_total", "Messages of group members that did not verify, or were not taken, and too large ones of sensors: request, response, reading.", "kind"),
		refused:    vec("refused_total", "Requests of group members that the configuration does not allow: path, method.", "reason"),
		limited:    vec("limited_total", "Messages beyond the rate of a legacy node: from it, to it.", "direction"),
		asleep:     one("asleep_total", "Requests answered 5.03 because the node did not wake in time."),
		challenged: one("challenged_total", "Requests of group members answered by a challenge, because it is not known what was received before."),
		strangers:  one("strangers_total", "Messages from addresses and topics that belong to no insecure node."),
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "groupgate_delegate_memberships", Help: "Memberships for legacy nodes that hold keys now.",
	}, func() float64 {
		n := 0
		for _, s := range r.List() {
			if s.State == StateJoined {
				n++
			}
		}
		return float64(n)
	}))
	return m
}

// count counts a message of the group.
func (m *membership) count(kind, direction string, pairwise bool) {
	mode := "group"
	if pairwise {
		mode = "pairwise"
	}
	m.r.metrics.messages.WithLabelValues(m.group.Name, kind, direction, mode).Inc()
}
