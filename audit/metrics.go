package audit

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	records    *prometheus.CounterVec // kind
	suppressed prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_audit_records_total", Help: "Records written to the audit log, by kind.",
		}, []string{"kind"}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_audit_suppressed_total", Help: "Refused requests that the audit log counted and did not record one by one.",
		}),
	}
	reg.MustRegister(m.records, m.suppressed)
	return m
}
