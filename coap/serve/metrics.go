package serve

import (
	"errors"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
)

type metrics struct {
	requests      *prometheus.CounterVec
	counted       [coap.IPATCH + 2][8]atomic.Pointer[prometheus.Counter] // of requests, by method and class
	panics        prometheus.Counter
	observations  prometheus.Gauge
	notifications *prometheus.CounterVec
	lost          *prometheus.CounterVec
	notified      map[string]prometheus.Counter // by result; read only
	blockIn       prometheus.Counter
	blockOut      prometheus.Counter
}

// newMetrics registers with r; servers that share r share the metrics.
func newMetrics(r prometheus.Registerer) *metrics {
	bytes := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_serve_blockwise_bytes_total",
		Help: "Bytes of bodies carried in blocks.",
	}, []string{"direction"}))
	m := &metrics{
		requests: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_serve_requests_total",
			Help: "CoAP requests by method and class of the response code.",
		}, []string{"method", "class"})),
		panics: register(r, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "groupgate_serve_panics_total",
			Help: "Handlers that panicked.",
		})),
		observations: register(r, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_serve_observations",
			Help: "Observations registered now.",
		})),
		notifications: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_serve_notifications_total",
			Help: "Notifications by result: acknowledged, relayed (acknowledged on the way), sent (not confirmable), reset, timeout, overtaken (by a newer one, and not acknowledged), gone, refused, held (for the next sign of life).",
		}, []string{"result"})),
		lost: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_serve_observations_lost_total",
			Help: "Observations that ended without the peer's asking for it: reset (it rejected a notification), silent (it did not answer several), refused (it may not have it any more).",
		}, []string{"reason"})),
		blockIn:  bytes.WithLabelValues("in"),
		blockOut: bytes.WithLabelValues("out"),
	}
	m.notified = make(map[string]prometheus.Counter)
	for _, result := range []string{"gone", "acknowledged", "sent", "relayed", "reset", "timeout", "overtaken"} {
		m.notified[result] = m.notifications.WithLabelValues(result)
	}
	return m
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	err := r.Register(c)
	if have, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if c, ok := have.ExistingCollector.(C); ok {
			return c
		}
	}
	if err != nil {
		panic("serve: internal error: " + err.Error()) // another metric has the name
	}
	return c
}

func (m *metrics) request(method, code coap.Code) {
	name := "other" // methods are the peer's to choose; label values are not
	if method <= coap.IPATCH {
		name = method.String()
	}
	// Finding a counter by its labels takes longer than counting.
	at := &m.counted[min(method, coap.IPATCH+1)][code.Class()&7]
	c := at.Load()
	if c == nil {
		made := m.requests.WithLabelValues(name, strconv.Itoa(int(code.Class()))+".xx")
		c = &made
		at.Store(c)
	}
	(*c).Inc()
}

func (m *metrics) notification(confirmable bool, err error) {
	result := "gone"
	switch {
	case err == nil && confirmable:
		result = "acknowledged"
	case err == nil:
		result = "sent"
	case errors.Is(err, coap.ErrRelayed):
		result = "relayed"
	case errors.Is(err, coap.ErrReset):
		result = "reset"
	case errors.Is(err, coap.ErrTimeout):
		result = "timeout"
	case errors.Is(err, coap.ErrOvertaken):
		result = "overtaken"
	}
	if c := m.notified[result]; c != nil {
		c.Inc()
	}
}
