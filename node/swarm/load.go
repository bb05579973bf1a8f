package swarm

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/record"
)

// Load is a number of requests in a closed loop: a node that got its response
// makes way for the next.
type Load struct {
	// Requests is how many there are in all. 0 means one for each node.
	Requests int
	// AtOnce is how many nodes have one under way. 0 means 64.
	AtOnce int
	// Message is the request of a node.
	Message func(node int) *coap.Message
	// Latencies are measured when this is set.
	Latencies bool
}

// Outcome is what became of a [Load].
type Outcome struct {
	Answered int // with a success code
	Refused  int // with another
	Failed   int // not at all
	Elapsed  time.Duration
	// Latencies are those of the answered requests, in order of size.
	Latencies []time.Duration
	// LastCode is that of a request that was refused, and First the first such answer.
	LastCode coap.Code
	First    *coap.Message
}

// Load runs a load to its end. Nodes take turns; those that are not open count as
// failed.
func (s *Swarm) Load(ctx context.Context, l Load) (Outcome, error) {
	if l.Requests <= 0 {
		l.Requests = len(s.nodes)
	}
	if l.AtOnce <= 0 {
		l.AtOnce = 64
	}
	var out Outcome
	begun, under := 0, 0
	free := make([]int, len(s.nodes)) // whose turn it is next
	for i := range free {
		free[i] = i
	}
	over := make(chan struct{})
	start := time.Now()
	var next func()
	next = func() { // with mu held
		for begun < l.Requests && len(free) > 0 && ctx.Err() == nil {
			i := free[0]
			free = free[1:]
			begun++
			began := time.Now()
			err := s.begin(i, l.Message(i), nil, func(m *coap.Message, err error) {
				under--
				free = append(free, i)
				switch {
				case err != nil:
					out.Failed++
				case !m.Code.IsSuccess():
					out.Refused++
					out.LastCode = m.Code
					if out.First == nil {
						first := *m
						first.Payload = slices.Clone(m.Payload)
						out.First = &first
					}
				default:
					out.Answered++
					if l.Latencies {
						out.Latencies = append(out.Latencies, time.Since(began))
					}
				}
				next()
			})
			if err == nil {
				under++
				return
			}
			out.Failed++ // it has no association, or is busy elsewhere
		}
		if under == 0 {
			select {
			case <-over:
			default:
				close(over)
			}
		}
	}
	s.mu.Lock()
	for range min(l.AtOnce, len(s.nodes)) {
		next()
		if len(s.out) >= 32 {
			s.flush()
			s.mu.Lock()
		}
	}
	s.flush()
	select {
	case <-over:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Elapsed = time.Since(start)
	out.Failed += l.Requests - begun // nobody is left for them
	slices.Sort(out.Latencies)
	result := out
	result.Latencies = slices.Clone(out.Latencies)
	return result, ctx.Err()
}

// Flood sends ClientHellos without a cookie from invented addresses, rate per
// second, until ctx ends, and returns how many. Only at a gateway on loopback:
// elsewhere it would be an attack.
func (s *Swarm) Flood(ctx context.Context, rate int) (sent int, err error) {
	if s.lone {
		return 0, errNotHere
	}
	const tick = 5 * time.Millisecond
	t := time.NewTicker(tick)
	defer t.Stop()
	begin := time.Now()
	for {
		select {
		case <-ctx.Done():
			return sent, nil
		case <-t.C:
		}
		due := int(time.Since(begin).Seconds() * float64(rate))
		for sent < due {
			s.mu.Lock()
			for range min(32, due-sent) {
				d := s.outgoing(0, 0, append(s.buffer(), clientHello()...))
				d.Local = inventedAddress(sent)
				s.out = append(s.out, d)
				sent++
				s.stats.Flooded++
			}
			s.flush()
		}
	}
}

// clientHello is the first ClientHello of a handshake with a pre-shared key and
// TLS_PSK_WITH_AES_128_CCM_8 (RFC 6347, Section 4.2.1; RFC 5246, Section 7.4.1.2).
func clientHello() []byte {
	var body []byte
	body = append(body, 0xfe, 0xfd)
	body = append(body, randomBytes(32)...)
	body = append(body, 0, 0)                              // no session, no cookie
	body = append(body, 0, 2, 0xc0, 0xa8, 1, 0)            // one suite, no compression
	body = append(body, 0, 9, 0, 23, 0, 0, 0, 54, 0, 1, 0) // extended_master_secret, connection_id
	msg := []byte{1, 0, byte(len(body) >> 8), byte(len(body)), 0, 0, 0, 0, 0, 0, byte(len(body) >> 8), byte(len(body))}
	return record.AppendPlain(nil, record.Handshake, 0, append(msg, body...))
}

// inventedAddress is the n-th address of a flood, apart from those of nodes.
func inventedAddress(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n)*2654435761) // all over the place
	return netip.AddrFrom4([4]byte{127, 1 + b[1]%63, b[2], b[3]})
}
