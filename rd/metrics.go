package rd

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	registered prometheus.Gauge
	requests   *prometheus.CounterVec // operation, result
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		registered: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_rd_registered", Help: "1 while a registration at the Resource Directory is in force.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_rd_requests_total", Help: "Requests to the Resource Directory, by operation and result (ok, refused, lost).",
		}, []string{"operation", "result"}),
	}
	reg.MustRegister(m.registered, m.requests)
	return m
}
