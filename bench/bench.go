// Package bench measures the gateway. Every benchmark runs what it is compared
// with in the same process run and reports the ratio, because figures of
// different runs or machines say little about each other. docs/performance.md
// says what each figure means.
package bench

import (
	"math"
	"slices"
	"syscall"
	"time"
)

// Result is one figure.
type Result struct {
	Bench    string   `json:"bench"`
	Metric   string   `json:"metric"`
	Unit     string   `json:"unit"`
	N        int      `json:"n"`
	Ours     float64  `json:"ours"`
	Peer     *float64 `json:"peer"`      // measured in the same run; null: none
	PeerName string   `json:"peer_name"` // "floor" for the computed floor
	Ratio    *float64 `json:"ratio"`     // above 1 where we are better; null: no peer
}

// against adds a peer that is better when it is larger.
func (r Result) against(name string, peer float64) Result {
	return r.beside(name, peer, r.Ours/peer)
}

// below adds a peer that is better when it is smaller.
func (r Result) below(name string, peer float64) Result {
	return r.beside(name, peer, peer/r.Ours)
}

// beside adds a peer, and the ratio where that is a number.
func (r Result) beside(name string, peer, ratio float64) Result {
	r.Peer, r.PeerName = &peer, name
	if !math.IsNaN(ratio) && !math.IsInf(ratio, 0) {
		r.Ratio = &ratio
	}
	return r
}

// cpuTime is the processor time of this process so far, user and system.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// percentile returns the value below which p per cent of the samples lie. It
// sorts them.
func percentile(samples []time.Duration, p float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return samples[min(len(samples)-1, int(float64(len(samples))*p/100))]
}

// withPeer adds a peer for comparison where a ratio says nothing: ours may be 0.
func (r Result) withPeer(name string, peer float64) Result {
	if r.Ours <= 0 {
		r.Peer, r.PeerName = &peer, name
		return r
	}
	return r.below(name, peer)
}
