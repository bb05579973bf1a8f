package gm

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// BenchmarkJoin measures a complete join at the handler, with the proof of
// possession verified, the membership on disk and the response signed. The
// requests are made before the clock starts. cpu-µs/join is user and system
// time of the whole process, the database's included.
func BenchmarkJoin(b *testing.B) {
	for _, alg := range []int64{cose.AlgEdDSA, cose.AlgES256} {
		b.Run(groupcomm.AlgName(alg), func(b *testing.B) {
			c := groupConfig("g1")
			if c.SignAlg = alg; alg == cose.AlgES256 {
				c.ECDHCrv = cose.CrvP256
			}
			f := newFixture(b, c)
			reqs := make([]*coap.Request, b.N)
			for i := range reqs {
				j := f.joinerWith(fmt.Sprintf("node-%d", i), alg, groupcomm.Scope{{Group: "g1", Roles: both}}, time.Time{})
				msg, err := j.JoinMessage("g1", both)
				if err != nil {
					b.Fatal(err)
				}
				reqs[i] = j.Request(coap.POST, msg.Encode(), "ace-group", "g1")
			}
			var next atomic.Int64
			b.SetParallelism(32) // joins meet in one commit
			b.ReportAllocs()
			cpu := cpuTime(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r := gmtest.Serve(b.Context(), f.m, reqs[next.Add(1)-1])
					if r.Code != coap.Created {
						b.Errorf("code %v", r.Code)
						return
					}
				}
			})
			b.StopTimer()
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/join")
		})
	}
}

func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFloor is the cryptography that no join can do without: one signature
// verified, one made.
func BenchmarkFloor(b *testing.B) {
	key, err := cose.GenerateKey(cose.AlgEdDSA)
	if err != nil {
		b.Fatal(err)
	}
	sign, msg := key.Signer(), make([]byte, 32)
	sig, err := sign(msg)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if key.Verify(msg, sig) != nil {
			b.Fatal("wrong signature")
		}
		if _, err := sign(msg); err != nil {
			b.Fatal(err)
		}
	}
}
