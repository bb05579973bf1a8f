package plugin

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/config"
)

// expiresSoon is when the log begins to ask for a new certificate.
const expiresSoon = 30 * 24 * time.Hour

// noteExpiry tells until when nodes accept the gateway's certificate.
func (g *Gateway) noteExpiry(ctx context.Context, leaf *x509.Certificate) {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "groupgate_certificate_expires_seconds", Help: "When the certificate of listen.coaps expires, in seconds since 1970.",
	})
	gauge.Set(float64(leaf.NotAfter.Unix()))
	_ = g.registry.Register(gauge) // it is there when Run was called before
	if left := time.Until(leaf.NotAfter); left < expiresSoon {
		g.log.WarnContext(ctx, "certificate of listen.coaps_cert_file expires, nodes will refuse it: replace it and start anew",
			"not_after", leaf.NotAfter, "expired", left <= 0)
	}
}

// proxyPins are the public keys in proxy peers, "cert:SHA256": who shows one may
// have an association.
func proxyPins(p *config.Proxy) map[string]bool {
	pins := map[string]bool{}
	pin := func(peers []string) {
		for _, who := range peers {
			if h, ok := strings.CutPrefix(who, "cert:"); ok {
				if sum, err := hex.DecodeString(h); err == nil { // it was validated
					pins[string(sum)] = true
				}
			}
		}
	}
	for i := range p.Allow {
		pin(p.Allow[i].Peers)
	}
	for i := range p.Hosts {
		pin(p.Hosts[i].Peers)
	}
	for i := range p.Reverse {
		pin(p.Reverse[i].Peers)
	}
	return pins
}
