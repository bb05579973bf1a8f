package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/node/swarm"
)

// rekeyRound is one rekey.
type rekeyRound struct {
	took  time.Duration
	begun int // newcomers that began to join
	joins []time.Duration
}

// rekey renews the group's keys, because the node out is evicted or, if that is "",
// for no reason, and waits until every member confirmed them, while newcomers join
// elsewhere.
func (b *rekeyBench) rekey(ctx context.Context, out string, newcomers []*node.Member) (r rekeyRound, err error) {
	ctx, cancel := context.WithTimeout(ctx, rekeyTime)
	defer cancel()
	over, end := context.WithCancel(ctx)
	defer end()
	var g errgroup.Group
	start := time.Now()
	g.Go(func() error {
		for _, m := range newcomers {
			if over.Err() != nil {
				return nil // what joins now does not join meanwhile
			}
			began := time.Now()
			r.begun++
			if err := m.Join(ctx); err != nil {
				return fmt.Errorf("bench: joining meanwhile: %w", err)
			}
			r.joins = append(r.joins, time.Since(began))
			wait(over, rekeyJoinGap-time.Since(began))
		}
		return nil
	})
	version, err := b.renew(ctx, out)
	if err == nil {
		r.took, err = b.confirmed(ctx, start, version)
	}
	end()
	return r, errors.Join(err, g.Wait())
}

// renew has the group rekeyed and returns its version then.
func (b *rekeyBench) renew(ctx context.Context, out string) (uint64, error) {
	if out != "" {
		if _, err := b.g.api.Evict(ctx, b.kind.group, []string{out}, nil); err != nil {
			return 0, err
		}
	}
	done, err := b.g.api.Rekey(ctx, b.kind.group, "benchmark") // the one that the eviction made due, if any
	if err != nil {
		return 0, err
	}
	return done.Version, nil
}

// confirmed waits until the gateway has every confirmation of a version on disk,
// and says how long after start that was.
func (b *rekeyBench) confirmed(ctx context.Context, start time.Time, version uint64) (time.Duration, error) {
	told := false
	for {
		if err := b.watch.err(); err != nil {
			return 0, err
		}
		// Looking at a ledger of a hundred thousand takes the gateway's time: not
		// before the nodes know that they have it all.
		if b.kind.mqtt || b.watch.reached(version) >= b.kind.n {
			if b.kind.n >= rekeyMany && !told {
				told = true // what comes last is on its way to the disk
				wait(ctx, time.Duration(b.kind.n)*3*time.Microsecond)
			}
			began := time.Now()
			d, err := b.g.api.Delivery(ctx, b.kind.group, false)
			if err != nil {
				return 0, err
			}
			if d.Version >= version && d.Delivered == d.Members {
				if d.Members != b.kind.n && !b.kind.leave {
					return 0, fmt.Errorf("bench: the gateway knows %d members of %d", d.Members, b.kind.n)
				}
				if d.Done != nil && d.Done.After(start) {
					return d.Done.Sub(start), nil
				}
				return time.Since(start), nil
			}
			wait(ctx, 10*time.Since(began)) // it tells later when that was
		}
		if !wait(ctx, rekeyLook) {
			d, err := b.g.api.Delivery(context.WithoutCancel(ctx), b.kind.group, false)
			if err != nil {
				d = &admin.DeliveryInfo{}
			}
			return 0, fmt.Errorf("bench: %d of %d members confirmed, %d nodes were told: %w", d.Delivered, d.Members, b.watch.reached(version), ctx.Err())
		}
	}
}

// wait is false when ctx ended before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// prepare has newcomers shake hands until there are enough for a rekey.
func (b *rekeyBench) prepare(ctx context.Context) error {
	need := rekeyJoins - len(b.newcomers)
	first := b.next
	b.next += need
	var mu sync.Mutex
	failed, err := swarm.Each(ctx, first, first+need, openAtOnce, nil, func(ctx context.Context, i int) error {
		m, err := b.node(ctx, b.strangers, newcomerGroup, i, false)
		if err != nil {
			return err
		}
		// The gateway keeps a handshake at hand until the first request.
		first := &coap.Message{Code: coap.GET}
		first.Options.SetPath("ace-group", newcomerGroup, "num")
		if resp, err := b.strangers.Do(ctx, i, first); err != nil || resp.Code != coap.Forbidden {
			return fmt.Errorf("bench: a stranger's first request: %v, %w", resp, err)
		}
		mu.Lock()
		b.newcomers = append(b.newcomers, m)
		mu.Unlock()
		return nil
	})
	if failed > 0 {
		return fmt.Errorf("bench: preparing the newcomers: %w", err)
	}
	return err
}

// watch is what the members that observe were told.
type watch struct {
	mu       sync.Mutex
	payload  []byte // the newest that came
	num      atomic.Uint64
	versions []atomic.Uint64 // by node: what it has, plus one
	have     atomic.Int64    // nodes that have num
	bad      atomic.Int64    // messages that were no rekey message, or an older one
	worst    string          // the first of them
}

func newWatch(n int) *watch { return &watch{versions: make([]atomic.Uint64, n)} }

// took is [swarm.Config.Notified]: the messages to all are the same bytes, so one
// of them is read.
func (w *watch) took(i int, m *coap.Message) {
	if i >= len(w.versions) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	num := w.num.Load()
	if !bytes.Equal(m.Payload, w.payload) {
		msg, err := groupcomm.DecodeRekeyMessage(m.Payload)
		if err != nil || w.payload != nil && uint64(msg.Num) <= num {
			if w.bad.Add(1) == 1 && err != nil {
				w.worst = fmt.Sprintf("%v, %d bytes: %v", m.Code, len(m.Payload), err)
			} else if w.worst == "" {
				w.worst = fmt.Sprintf("version %d after %d", msg.Num, num)
			}
			return
		}
		w.payload = bytes.Clone(m.Payload)
		num = uint64(msg.Num)
		w.num.Store(num)
		w.have.Store(0)
	}
	if w.versions[i].Swap(num+1) != num+1 {
		w.have.Add(1)
	}
}

// err says whether somebody was told something else than the newest rekey.
func (w *watch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.worst == "" {
		return nil
	}
	return fmt.Errorf("bench: %d messages were not the newest rekey, the first: %s", w.bad.Load(), w.worst)
}

// reached counts the nodes that have a version or a newer one.
func (w *watch) reached(version uint64) int {
	if w.bad.Load() > 0 || w.num.Load() < version {
		return 0
	}
	return int(w.have.Load())
}

// observe registers node i with the group resource.
func (b *rekeyBench) observe(ctx context.Context, i int) error {
	m := &coap.Message{Code: coap.GET}
	m.Options.SetUint(coap.ObserveOption, 0)
	m.Options.SetPath("ace-group", b.kind.group)
	r, err := b.swarm.Do(ctx, i, m)
	if err == nil && (r.Code != coap.Content || !r.Options.Has(coap.ObserveOption)) {
		err = fmt.Errorf("bench: a member that wants to observe is answered %v, observing: %v", r.Code, r.Options.Has(coap.ObserveOption))
	}
	return err
}

// sent is what the gateway sent over a channel so far.
type sent struct{ messages, bytes, relayed float64 }

// sent reads the gateway's metrics.
func (b *rekeyBench) sent(ctx context.Context) (s sent, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.g.hello.At.HTTP+"/metrics", nil)
	if err != nil {
		return s, err
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	into := map[string]*float64{
		fmt.Sprintf("groupgate_bridge_sent_messages_total{channel=%q}", b.kind.channel): &s.messages,
		fmt.Sprintf("groupgate_bridge_sent_bytes_total{channel=%q}", b.kind.channel):    &s.bytes,
		`groupgate_bridge_mqtt_published_total{outcome="relayed"}`:                      &s.relayed,
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v := into[name]; v != nil {
			if *v, err = strconv.ParseFloat(value, 64); err != nil {
				return s, err
			}
		}
	}
	return s, lines.Err()
}
