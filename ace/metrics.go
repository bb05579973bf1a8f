package ace

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	posts     *prometheus.CounterVec // code
	lookups   *prometheus.CounterVec // kind, result
	issues    *prometheus.CounterVec // result
	ended     *prometheus.CounterVec // reason
	asked     *prometheus.CounterVec // result
	stored    prometheus.Gauge
	nodes     prometheus.Gauge
	trl       *prometheus.CounterVec // result
	trlServed *prometheus.CounterVec // kind
	trlSeen   *prometheus.GaugeVec   // issuer
	trlSize   *prometheus.GaugeVec   // issuer
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	m := &metrics{
		posts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_token_posts_total", Help: "Token posts to /authz-info, by response code.",
		}, []string{"code"}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_psk_lookups_total", Help: "Pre-shared keys asked for by handshakes, by kind of identity and result.",
		}, []string{"kind", "result"}),
		issues: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_tokens_issued_total", Help: "Token requests to the embedded Authorization Server, by result.",
		}, []string{"result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_tokens_ended_total", Help: "Stored tokens that ended, by reason.",
		}, []string{"reason"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_introspections_total", Help: "Tokens asked about at an Authorization Server, by result.",
		}, []string{"result"}),
		trl: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_trl_updates_total", Help: "Token Revocation Lists received or missed, by result (applied, refused, away).",
		}, []string{"result"}),
		trlServed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "groupgate_ace_trl_queries_total", Help: "Queries of the Token Revocation List of the embedded Authorization Server, by kind (full, diff, refused).",
		}, []string{"kind"}),
		trlSeen: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "groupgate_ace_trl_seen_timestamp_seconds", Help: "When a Token Revocation List was last applied.",
		}, []string{"issuer"}),
		trlSize: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "groupgate_ace_trl_hashes", Help: "Token hashes in the newest Token Revocation List.",
		}, []string{"issuer"}),
		stored: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_ace_stored_keys", Help: "Keys of proof that are stored with their tokens.",
		}),
		nodes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "groupgate_ace_enrolled_nodes", Help: "Nodes that are enrolled as clients of the embedded Authorization Server.",
		}),
	}
	reg.MustRegister(m.posts, m.lookups, m.issues, m.ended, m.asked, m.stored, m.nodes, m.trl, m.trlServed, m.trlSeen, m.trlSize)
	return m
}
