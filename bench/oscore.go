package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/oscore"
)

// oscorePayloads are in bytes.
var oscorePayloads = []int{64, 1024}

// How figures come about: ours and the floor take turns in slices of a tenth of a
// millisecond, and the upper quartiles of their rates are compared: what else the
// machine does hits both alike, and only ever makes a slice slower.
const (
	oscoreRounds = 9
	oscoreSlices = 2000
)

// oscoreMode is one way to protect messages.
type oscoreMode struct {
	name  string // begins the names of the metrics, but of those of OSCORE itself
	floor string // what the floors are
	part  int    // of the messages asked for, one in this many is measured
	setup func(ctx context.Context, payload int) (*oscoreCase, error)
}

// oscoreCase is the work on one message. The floors are what cannot be done
// without.
type oscoreCase struct {
	protect, unprotect           func() error
	floorProtect, floorUnprotect func() error
}

var oscoreModes = []oscoreMode{
	{name: "", floor: "AES-CCM-16-64-128", part: 1, setup: oscorePair},
	{name: "group", floor: "Ed25519", part: 20, setup: oscoreGroup},
	{name: "pairwise", floor: "AES-CCM-16-64-128", part: 1, setup: oscorePairwise},
}

// OSCORE measures how many messages with payloads of 64 and 1,024 bytes one core
// protects and unprotects per second, each n times in nine rounds, beside the bare
// cryptography over the same bytes. progress may be nil.
func OSCORE(ctx context.Context, n int, progress func(string)) ([]Result, error) {
	if n <= 0 {
		return nil, fmt.Errorf("bench: %d messages make no benchmark", n)
	}
	if progress == nil {
		progress = func(string) {}
	}
	var out []Result
	for _, mode := range oscoreModes {
		n := max(1, n/mode.part)
		prefix := mode.name
		if prefix != "" {
			prefix += "_"
		}
		for _, size := range oscorePayloads {
			c, err := mode.setup(ctx, size)
			if err != nil {
				return nil, err
			}
			progress(fmt.Sprintf("%sprotect and unprotect, %d bytes", prefix, size))
			for _, m := range []struct {
				name        string
				ours, floor func() error
			}{
				{"protect", c.protect, c.floorProtect},
				{"unprotect", c.unprotect, c.floorUnprotect},
			} {
				ours, floor, err := takeTurns(ctx, n, m.ours, m.floor)
				if err != nil {
					return nil, err
				}
				r := Result{Bench: "oscore", Metric: fmt.Sprintf("%s%s_%d", prefix, m.name, size), Unit: "1/s", N: n, Ours: ours}
				out = append(out, r.against(mode.floor, floor))
			}
		}
	}
	return out, nil
}

// takeTurns runs a and b n times each in every round, by turns, and returns the upper
// quartiles of their rates.
func takeTurns(ctx context.Context, n int, a, b func() error) (perA, perB float64, err error) {
	count := min(oscoreSlices, n*oscoreRounds)
	slice := n * oscoreRounds / count
	work, rates := [2]func() error{a, b}, [2][]float64{}
	for turn := -count / 10; turn < count; turn++ { // the first ones warm up
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		for i := range work {
			i ^= turn & 1 // a b, b a, a b, …
			begin := time.Now()
			for range slice {
				if err := work[i](); err != nil {
					return 0, 0, err
				}
			}
			if turn >= 0 {
				rates[i] = append(rates[i], float64(slice)/time.Since(begin).Seconds())
			}
		}
	}
	for i := range rates {
		slices.Sort(rates[i])
	}
	return rates[0][count*3/4], rates[1][count*3/4], nil
}

// oscoreMessage is a request as sensors make them.
func oscoreMessage(payload int) *coap.Message {
	m := &coap.Message{Type: coap.NonConfirmable, Code: coap.POST, ID: 1, Token: []byte{1, 2}, Payload: make([]byte, payload)}
	m.Options.SetPath("sensors", "temperature")
	return m
}

// oscorePair is OSCORE between two endpoints with its default algorithm.
func oscorePair(ctx context.Context, payload int) (*oscoreCase, error) {
	p := oscore.Params{
		MasterSecret: cose.NewSecret([]byte("benchmark secret")), SenderID: []byte{1}, RecipientID: []byte{2},
		Sequence: oscore.SequenceConfig{Start: 1000},
	}
	client, err := oscore.New(p)
	if err != nil {
		return nil, err
	}
	p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	server, err := oscore.New(p)
	if err != nil {
		return nil, err
	}
	m := oscoreMessage(payload)
	protected, _, err := client.ProtectRequest(ctx, nil, m)
	if err != nil {
		return nil, err
	}
	aead, err := cose.NewAEAD(client.AEAD(), make([]byte, 16))
	if err != nil {
		return nil, err
	}
	// As long as what OSCORE has: 11 bytes of "Encrypt0", 1 of head, 10 of array.
	nonce, aad := make([]byte, aead.NonceSize()), make([]byte, 22)
	plain := make([]byte, len(protected.Payload)-aead.Overhead())
	sealed := aead.Seal(nil, nonce, plain, aad)
	var b1, b2 oscore.Buffer
	out, opened := make([]byte, 0, len(sealed)), make([]byte, 0, len(plain))
	return &oscoreCase{
		protect: func() error { _, _, err := client.ProtectRequest(ctx, &b1, m); return err },
		unprotect: func() error {
			server.Window().Reset() // it is the same message again and again
			_, _, err := server.UnprotectRequest(&b2, protected)
			return err
		},
		floorProtect:   func() error { out = aead.Seal(out[:0], nonce, plain, aad); return nil },
		floorUnprotect: func() error { opened, err = aead.Open(opened[:0], nonce, sealed, aad); return err },
	}, nil
}
