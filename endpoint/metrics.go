package endpoint

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	sessions, halfOpen   prometheus.Gauge
	handshakes           *prometheus.CounterVec
	refused, handovers   prometheus.Counter
	cookies              prometheus.Counter
	gathered             *prometheus.CounterVec
	evicted, turned      *prometheus.CounterVec
	handed               prometheus.Counter
	held                 prometheus.Gauge
	moves, withheld      prometheus.Counter
	dropped              *prometheus.CounterVec
	duplicates           prometheus.Counter
	retransmissions      prometheus.Counter
	timeouts, unsent     prometheus.Counter
	restored, challenges prometheus.Counter
	hibernated           prometheus.Gauge
	exhausted            prometheus.Counter
}

// kindPSK is the kind of handshakes that pion does; others: dtls12.Config.Kind.
const kindPSK = "psk"

// newMetrics registers with r; endpoints that share r share the metrics.
func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return register(r, prometheus.NewCounter(prometheus.CounterOpts{Name: "groupgate_endpoint_" + name, Help: help}))
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(r, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "groupgate_endpoint_" + name, Help: help}, labels))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return register(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupgate_endpoint_" + name, Help: help}))
	}
	return &metrics{
		sessions:        gauge("sessions", "Peers known now: DTLS associations and addresses on plain UDP."),
		halfOpen:        gauge("handshakes", "DTLS handshakes under way."),
		handshakes:      vec("handshakes_total", "DTLS handshakes by kind of key (psk, raw for raw public keys, cert for certificates) and result: done, unknown, failed, timeout, given-up.", "kind", "result"),
		cookies:         counter("cookies_total", "ClientHellos without cookie that were answered without keeping anything."),
		gathered:        vec("fragmented_hellos_total", "ClientHellos in fragments whose first had its cookie, by result: whole, timeout, given-up.", "result"),
		refused:         counter("handshakes_refused_total", "ClientHellos that began no handshake, because too many were under way."),
		handovers:       counter("handovers_total", "Sessions taken over at the first application record."),
		evicted:         vec("evicted_total", "What was given up for want of room: handshakes (half-open), associations of strangers and guests.", "standing"),
		turned:          vec("turned_away_total", "Newcomers for whom there was no room, because only members were left.", "standing"),
		handed:          counter("cross_shard_total", "Datagrams that came to one shard and were for another."),
		held:            gauge("held_bytes", "What peers are reckoned to take: associations, handshakes, remembered answers, unacknowledged messages, observations, bodies."),
		moves:           counter("address_changes_total", "Sessions that came from a new address."),
		withheld:        counter("withheld_total", "Messages held back from an address that has not shown that it receives."),
		dropped:         vec("dropped_total", "Datagrams, records and messages that were not taken, by reason.", "reason"),
		duplicates:      counter("duplicates_total", "Requests that came again and were answered as before."),
		retransmissions: counter("retransmissions_total", "Confirmable messages sent again."),
		timeouts:        counter("timeouts_total", "Confirmable messages that nobody acknowledged."),
		hibernated:      gauge("hibernated", "Sessions that are compacted now, until they are heard or sent to."),
		restored:        counter("restored_total", "Sessions that outlived a restart."),
		challenges:      counter("challenges_total", "Requests on restored sessions that were asked to show that they are fresh."),
		exhausted:       counter("exhausted_total", "Sessions ended because they had used up the record numbers of this start."),
		unsent:          counter("unsent_total", "Datagrams that the system did not take."),
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
		panic("endpoint: internal error: " + err.Error()) // another metric has the name
	}
	return c
}
