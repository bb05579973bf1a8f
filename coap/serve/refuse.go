package serve

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/rarely"
)

// Why a request is not looked at: values of the label reason.
const (
	overRate    = "rate"        // Config.PerPeerRPS
	overWorking = "outstanding" // Config.MaxPeerRequests
	overPeers   = "peers"       // maxPeers
	overBodies  = "bodies"      // maxAssembly
)

// refusals counts requests that a bound kept out, and says so once in a while: that
// a limit is too low shows nowhere else, and peers can make any number of them.
type refusals struct {
	total map[string]prometheus.Counter // by reason; read only

	mu   sync.Mutex
	line rarely.Line
}

func newRefusals(r prometheus.Registerer) *refusals {
	vec := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "groupgate_serve_refused_total",
		Help: "Requests refused before anybody looked at them, by the bound: rate (requests per second of a peer), outstanding (requests of a peer under way), peers (addresses that are known), bodies (memory for bodies in blocks).",
	}, []string{"reason"}))
	f := &refusals{total: map[string]prometheus.Counter{}}
	for _, reason := range []string{overRate, overWorking, overPeers, overBodies} {
		f.total[reason] = vec.WithLabelValues(reason)
	}
	return f
}

// beyond answers a request that is beyond a bound.
func (s *Server) beyond(ctx context.Context, peer coap.Peer, reason string) *coap.Response {
	f := s.refusals
	f.total[reason].Inc()
	f.mu.Lock()
	n := f.line.Event(time.Now())
	f.mu.Unlock()
	if n > 0 {
		s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "requests are refused: a peer asks more than it may",
			slog.String("reason", reason), slog.String("peer", peer.Addr.String()), slog.Int("n", n), slog.Float64("per_second", s.cfg.PerPeerRPS))
	}
	if reason == overRate || reason == overWorking {
		return busy(coap.TooManyRequests)
	}
	return busy(coap.ServiceUnavailable)
}
