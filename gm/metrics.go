package gm

import "github.com/prometheus/client_golang/prometheus"

// metrics never carry the name of a node; groups are few and named by the
// operator.
type metrics struct {
	joins     *prometheus.CounterVec // outcome: joined, rejoined, refused
	removals  *prometheus.CounterVec // kind: left, evicted
	lapses    prometheus.Counter
	renewals  prometheus.Counter
	newCreds  prometheus.Counter
	rekeys    *prometheus.CounterVec // group
	overtaken prometheus.Counter
	seconds   prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "groupgate", Subsystem: "gm", Name: name, Help: help}
	}
	m := &metrics{
		joins:     prometheus.NewCounterVec(counter("joins_total", "Join Requests by outcome."), []string{"outcome"}),
		removals:  prometheus.NewCounterVec(counter("removals_total", "Members that went, by kind."), []string{"kind"}),
		lapses:    prometheus.NewCounter(counter("lapses_total", "Memberships whose token expired.")),
		renewals:  prometheus.NewCounter(counter("renewals_total", "Sender IDs given out by key renewal.")),
		newCreds:  prometheus.NewCounter(counter("new_credentials_total", "Credentials that members replaced.")),
		rekeys:    prometheus.NewCounterVec(counter("rekeys_total", "Completed rekeys."), []string{"group"}),
		overtaken: prometheus.NewCounter(counter("rekeys_overtaken_total", "Attempts of a rekey that a change of the membership overtook.")),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "groupgate", Subsystem: "gm", Name: "rekey_seconds",
			Help:    "Time of a rekey from its start until it is on disk.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}),
	}
	reg.MustRegister(m.joins, m.removals, m.lapses, m.renewals, m.newCreds, m.rekeys, m.overtaken, m.seconds)
	return m
}
