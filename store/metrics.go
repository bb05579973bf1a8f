package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg prometheus.Registerer

	reads    prometheus.Counter
	commits  prometheus.Counter
	failures prometheus.Counter
	updates  *prometheus.CounterVec
	batch    prometheus.Histogram
	seconds  prometheus.Histogram

	done, failed, cancelled prometheus.Counter // of updates, resolved once
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		reg: reg,
		reads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_store_reads_total", Help: "Transactions that only read."}),
		commits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_store_commits_total", Help: "Transactions committed to disk; each may hold many updates."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_store_write_failures_total", Help: "Transactions lost because the disk or the database failed."}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_store_updates_total", Help: "Updates by result."}, []string{"result"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "groupgate_store_batch_updates", Help: "Updates per commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 9)}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "groupgate_store_commit_seconds", Help: "Time to commit a transaction to disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12)}),
	}
	m.done, m.failed, m.cancelled = m.updates.WithLabelValues("done"), m.updates.WithLabelValues("failed"), m.updates.WithLabelValues("cancelled")
	var errs []error
	for _, c := range m.all() {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.reads, m.commits, m.failures, m.updates, m.batch, m.seconds}
}

func (m *metrics) unregister() {
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}
