package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
)

type metrics struct {
	requests  *prometheus.CounterVec
	cache     *prometheus.CounterVec
	cacheSize prometheus.GaugeFunc
	upstream  *prometheus.HistogramVec
	refused   *prometheus.CounterVec
	relays    *prometheus.GaugeVec
	dials     *prometheus.CounterVec
	breaker   prometheus.Counter
	waiting   prometheus.Gauge
	responses prometheus.Counter
}

func newMetrics(r prometheus.Registerer, p *Proxy) *metrics {
	if r == nil {
		r = prometheus.NewRegistry()
	}
	const ns, sub = "groupgate", "proxy"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("requests_total", "Requests that the proxy answered, by kind of rule and class of the code.", "kind", "code"),
		cache:    counter("cache_total", "What the cache did: hit, miss, validated, stored, evicted, invalidated.", "result"),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "upstream_seconds",
			Help: "Time until an upstream answered.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 30, 90}}, []string{"scheme"}),
		refused: counter("refused_total", "Requests that were not forwarded, by reason.", "reason"),
		relays: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "relays",
			Help: "Observations at upstreams: merged ones and protected ones."}, []string{"kind"}),
		dials: counter("dials_total", "Associations opened with upstreams, by scheme and result.", "scheme", "result"),
		breaker: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "breaker_total",
			Help: "Times that a silent upstream was left alone."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "waiting",
			Help: "Requests that wait for an upstream."}),
		responses: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "group_responses_total",
			Help: "Responses of groups' members that were relayed."}),
		cacheSize: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "cache_bytes",
			Help: "Memory of the cache in use."}, func() float64 { return float64(p.cache.bytes()) }),
	}
	r.MustRegister(m.requests, m.cache, m.upstream, m.refused, m.relays, m.dials, m.breaker, m.waiting, m.responses, m.cacheSize)
	return m
}

// answered counts a request.
func (m *metrics) answered(kind string, code coap.Code) {
	class := [...]string{"none", "1", "2.xx", "3", "4.xx", "5.xx", "6", "7"}[code.Class()]
	m.requests.WithLabelValues(kind, class).Inc()
}
