package endpoint

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/journal"
	"github.com/seed4911071e/groupgate/record"
)

// nowhere is a socket that nothing comes from.
type nowhere struct{ *port }

// BenchmarkIdle measures what an idle observer costs: bytes of heap for each of
// 100,000 sessions, and with an observation each.
func BenchmarkIdle(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		core := serve.New(coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) { return nil, nil }), serve.Config{})
		core.Keep(blackHole{})
		e := New(nowhere{newWire(1).open("")}, Config{Server: front{&world{core: core}}, Keys: front{&world{}}})
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		var observers serve.Recovery
		for i := range n {
			if err := observers.Apply(kept1(coap.LinkID(fmt.Sprintf("%016x", i)))); err != nil {
				b.Fatal(err)
			}
		}
		empty := heap()
		var peers Recovery
		for i := range n {
			if err := peers.Apply(one(i)); err != nil {
				b.Fatal(err)
			}
		}
		all := e.Restore(blackHole{}, 1, &peers)
		e.Keep()
		e.dirty = nil
		sessions := heap()
		for _, p := range all {
			core.Restore(&observers, p)
		}
		both := heap()
		b.ReportMetric(float64(int64(sessions)-int64(empty))/n, "B/session")
		b.ReportMetric(float64(both-sessions)/n, "B/observation")
		runtime.KeepAlive(e)
		runtime.KeepAlive(core)
		runtime.KeepAlive(observers)
	}
}

func one(i int) []byte {
	m := image{via: coap.DTLSPSK, suite: record.PSKCCM8, cid: uint64(i) + 1, peerCID: "12345678",
		subject: coap.Subject{Kind: coap.SubjectPoP, ID: fmt.Sprintf("%032d", i)}, began: time.Now().Unix(),
		mark: mark{edge: 5, heard: time.Now().Unix(), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(i >> 16), byte(i >> 8), byte(i)}), 5684)}}
	binary.BigEndian.PutUint64(m.id[:], uint64(i))
	return m.append(nil)
}

// blackHole is a journal that keeps nothing.
type blackHole struct{}

func (blackHole) Append([]byte)                {}
func (blackHole) Commit(context.Context) error { return nil }
func (blackHole) Keeps(string) bool            { return true }

func kept1(id coap.LinkID) []byte {
	s := func(b []byte, v string) []byte { return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...) }
	b := []byte{'O'}
	b = s(b, string(id))
	b = s(b, "token123")
	b = s(b, "gm/sensors")
	b = append(b, make([]byte, 32+2+4+8)...)
	return binary.BigEndian.AppendUint64(b, uint64(time.Now().Unix()))
}

// BenchmarkRestart measures how long it takes to bring back 100,000 sessions with
// an observation each from a journal on disk, and how large that is for each.
func BenchmarkRestart(b *testing.B) {
	const n = 100_000
	key := make([]byte, journal.KeySize)
	dir := b.TempDir()
	j, _, err := journal.Open(journal.Options{Dir: dir, Key: key}, func(byte, []byte) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		j.Append('e', one(i))
		j.Append('s', kept1(coap.LinkID(fmt.Sprintf("%016x", i))))
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(dir, "log.1"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		core := serve.New(coap.HandlerFunc(func(context.Context, *coap.Request) (*coap.Response, error) { return nil, nil }), serve.Config{})
		e := New(nowhere{newWire(1).open("")}, Config{Server: front{&world{core: core}}, Keys: front{&world{}}})
		var peers Recovery
		var observers serve.Recovery
		j, _, err := journal.Open(journal.Options{Dir: dir, Key: key}, func(kind byte, rec []byte) error {
			if kind == 'e' {
				return peers.Apply(rec)
			}
			return observers.Apply(rec)
		})
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range e.Restore(blackHole{}, j.Boot(), &peers) {
			core.Restore(&observers, p)
		}
		if err := j.Close(); err != nil || len(e.sessions) != n {
			b.Fatal(err, len(e.sessions))
		}
	}
	b.ReportMetric(float64(fi.Size())/n, "B/session")
}
