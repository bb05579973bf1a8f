package secure

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/oscore"
)

type metrics struct {
	requests  *prometheus.CounterVec
	contexts  prometheus.Gauge
	answering prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_oscore_requests_total",
			Help: "Requests protected with OSCORE by result: served, challenged (asked for freshness), unknown (no context), replayed, undecryptable, malformed, failed.",
		}, []string{"result"}),
		contexts: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_oscore_contexts",
			Help: "Security Contexts of OSCORE in memory.",
		}),
		answering: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_oscore_answering",
			Help: "Requests protected with OSCORE that responses after the first may follow: those to groups, through the proxy.",
		}),
	}
	r.MustRegister(m.requests, m.contexts, m.answering)
	return m
}

func (m *metrics) count(result string) { m.requests.WithLabelValues(result).Inc() }

func resultOf(err error) string {
	switch {
	case errors.Is(err, oscore.ErrContext), errors.Is(err, ErrNone), errors.Is(err, ErrTaken):
		return "unknown"
	case errors.Is(err, oscore.ErrReplay):
		return "replayed"
	case errors.Is(err, oscore.ErrDecrypt):
		return "undecryptable"
	case errors.Is(err, oscore.ErrOption), errors.Is(err, oscore.ErrInner):
		return "malformed"
	}
	return "failed"
}
