package journal

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	commits     prometheus.Histogram
	bytes       prometheus.Gauge
	failed      prometheus.Gauge
	lost        prometheus.Counter
	compactions prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	return &metrics{
		commits: register(r, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "groupgate_journal_commit_seconds",
			Help: "Time to write sessions and observations that changed to disk.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 7)})),
		bytes:       register(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupgate_journal_bytes", Help: "Size of the newest snapshot and its log."})),
		failed:      register(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupgate_journal_failed", Help: "1 while sessions cannot be written to disk."})),
		lost:        register(r, prometheus.NewCounter(prometheus.CounterOpts{Name: "groupgate_journal_lost_total", Help: "Changes not written because the disk failed; a later snapshot makes them good."})),
		compactions: register(r, prometheus.NewCounter(prometheus.CounterOpts{Name: "groupgate_journal_snapshots_total", Help: "Snapshots of all sessions and observations."})),
	}
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	err := r.Register(c)
	if have, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if c, ok := have.ExistingCollector.(C); ok {
			return c
		}
	}
	if err != nil {
		panic("journal: internal error: " + err.Error()) // another metric has the name
	}
	return c
}
