package oscore

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/durable"
)

var (
	crashRounds = flag.Int("crash.rounds", 0, "how often TestCrash kills the endpoint; 0: a hundred times, fewer under the race detector")
	crashSeed   = flag.Uint64("crash.seed", 0, "seed of the moments and choices; 0: a new one")
)

const crashDir = "GROUPGATE_OSCORE_CRASH_DIR" // makes the test binary the endpoint that is killed

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := crashChild(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func crashContext(child bool, change func(*Params)) (*Context, error) {
	p := Params{MasterSecret: cose.NewSecret(testSecret), SenderID: []byte{1}, RecipientID: []byte{2}}
	if child {
		p.SenderID, p.RecipientID = p.RecipientID, p.SenderID
	}
	if change != nil {
		change(&p)
	}
	return New(p)
}

// frames are messages on a pipe; an empty one asks for an orderly end.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) write(m *coap.Message) error {
	var b []byte
	var err error
	if m != nil {
		if b, err = m.MarshalBinary(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err = f.w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readFrame(r io.Reader) (*coap.Message, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(r, b); err != nil || len(b) == 0 {
		return nil, err
	}
	return coap.DecodeMessage(b)
}

// crashChild is the endpoint: it answers requests, notifies, and makes requests of
// its own, with its state in files.
func crashChild(dir string, in io.Reader, out io.Writer) error {
	file, err := OpenFile(filepath.Join(dir, "sequence"))
	if err != nil {
		return err
	}
	window, path := WindowState{}, filepath.Join(dir, "window")
	if b, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(b, &window); err != nil {
			return err
		}
		// A stored window is good for one start.
		if err := errors.Join(os.Remove(path), durable.SyncDir(dir)); err != nil {
			return err
		}
	}
	c, err := crashContext(true, func(p *Params) {
		p.Sequence = SequenceConfig{Start: file.Start(), Step: 1 + rand.Uint64N(12), Store: file}
		p.Window = &window
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	to := &frames{w: out}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range time.Tick(time.Millisecond) {
			if to.ask(ctx, c) != nil {
				return
			}
		}
	})
	for r := bufio.NewReader(in); ; {
		m, err := readFrame(r)
		if err != nil {
			return err
		}
		if m == nil {
			b, err := json.Marshal(c.Window().State())
			if err != nil {
				return err
			}
			return durable.Replace(path, b)
		}
		if err := to.answer(ctx, c, m); err != nil {
			return err
		}
	}
}

func (f *frames) ask(ctx context.Context, c *Context) error {
	p, _, err := c.ProtectRequest(ctx, nil, get("own"))
	if err != nil {
		return err
	}
	return f.write(p)
}

func (f *frames) answer(ctx context.Context, c *Context, m *coap.Message) error {
	_, ex, err := c.UnprotectRequest(nil, m)
	if err != nil {
		p, err := c.Refuse(ctx, nil, ex, err)
		if err != nil {
			return err
		}
		p.Token = m.Token
		return f.write(p)
	}
	for i := range 3 {
		p, err := c.ProtectResponse(ctx, nil, ex, observed(content(fmt.Sprint(i)), uint32(i)))
		if err != nil {
			return err
		}
		p.Token = m.Token
		if err := f.write(p); err != nil {
			return err
		}
	}
	return nil
}

// crashPeer is the other end, which lives on, and the judge.
type crashPeer struct {
	t      *testing.T
	c      *Context
	rng    *rand.Rand
	nonces map[string]string // what left the endpoint, under its one Sender Key
	served map[uint64]bool   // requests that were served, by Partial IV
	asked  map[uint64]*coap.Message
	echo   []byte
	counts struct{ kills, stops, requests, responses, plain, challenges, replays int }
}

// left notes a message that left the endpoint.
func (p *crashPeer) left(m *coap.Message) {
	option, err := received(m)
	if errors.Is(err, ErrUnprotected) {
		p.counts.replays++
		return
	}
	if err != nil {
		p.t.Fatal(err)
	}
	if option.KID != nil {
		if _, _, err := p.c.UnprotectRequest(nil, m); err != nil {
			p.t.Fatalf("request of the endpoint: %v", err)
		}
		p.counts.requests++
		p.note(p.c.recipientID, pivNumber(option.PIV), "request")
		return
	}
	n := binary.BigEndian.Uint64(m.Token)
	ex := newExchange(p.c.senderID, n, "")
	ex.client, ex.observe = true, true
	got, err := p.c.UnprotectResponse(nil, &ex, m)
	if err != nil {
		p.t.Fatalf("response to %d: %v", n, err)
	}
	if option.PIV == nil {
		p.counts.plain++
		p.note(p.c.senderID, n, "response")
	} else {
		p.note(p.c.recipientID, pivNumber(option.PIV), "response")
	}
	if echo, ok := got.Options.Get(coap.Echo); ok {
		p.echo = append([]byte{}, echo...)
		p.counts.challenges++
		return
	}
	p.counts.responses++
	if string(got.Payload) == "0" {
		if p.served[n] {
			p.t.Fatalf("request %d was served twice", n)
		}
		p.served[n] = true
	}
}

// note fails on a nonce that was used before.
func (p *crashPeer) note(id []byte, piv uint64, what string) {
	nonce := make([]byte, len(p.c.commonIV))
	setNonce(nonce, p.c.commonIV, id, piv)
	if before, used := p.nonces[string(nonce)]; used {
		p.t.Fatalf("the nonce %x of a %s was used before, for a %s", nonce, what, before)
	}
	p.nonces[string(nonce)] = what
}

// request makes the next request, or takes an old one again.
func (p *crashPeer) request() *coap.Message {
	if len(p.asked) > 0 && p.rng.IntN(3) == 0 {
		return p.asked[p.rng.Uint64N(uint64(len(p.asked)))]
	}
	m := observed(get("a"), 0)
	if p.echo != nil {
		m.Options.Add(coap.Echo, p.echo)
	}
	protected, ex, err := p.c.ProtectRequest(p.t.Context(), nil, m)
	if err != nil {
		p.t.Fatal(err)
	}
	protected.Token = binary.BigEndian.AppendUint64(nil, ex.PIV())
	p.asked[ex.PIV()] = protected
	return protected
}

// life runs the endpoint once, to a sudden end or, sometimes, an orderly one.
func (p *crashPeer) life(dir string) {
	cmd := exec.CommandContext(p.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	to, from := &frames{w: in}, bufio.NewReader(out)
	orderly := p.rng.IntN(5) == 0
	if !orderly && p.rng.IntN(2) == 0 {
		// At any moment, also before the first message.
		after := time.Duration(p.rng.IntN(60_000)) * time.Microsecond
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	limit := 20 + p.rng.IntN(60)
	for n := 0; ; n++ {
		// What the endpoint does not read any more is lost.
		if n%3 == 0 && n < limit {
			_ = to.write(p.request())
		}
		if n == limit {
			if orderly {
				_ = to.write(nil)
			} else {
				_ = cmd.Process.Kill()
			}
		}
		m, err := readFrame(from)
		if err != nil {
			break
		}
		p.left(m)
	}
	_ = in.Close()
	if err := cmd.Wait(); orderly && err != nil {
		p.t.Fatalf("the endpoint did not end by itself: %v", err)
	}
	if orderly {
		p.counts.stops++
	} else {
		p.counts.kills++
	}
}

// TestCrash: whenever the endpoint dies, no nonce leaves it twice under its key,
// and no request is served twice.
func TestCrash(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	rounds := *crashRounds
	if rounds == 0 {
		rounds = 100
		if raceDetector {
			rounds = 20
		}
	}
	t.Logf("seed %d (-crash.seed)", seed)
	p := &crashPeer{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)),
		nonces: map[string]string{}, served: map[uint64]bool{}, asked: map[uint64]*coap.Message{},
	}
	var err error
	if p.c, err = crashContext(false, func(p *Params) { p.WindowSize = maxWindow }); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range rounds {
		p.life(dir)
	}
	t.Logf("%+v, %d nonces", p.counts, len(p.nonces))
	if p.counts.requests == 0 || p.counts.plain == 0 || p.counts.challenges == 0 || p.counts.replays == 0 {
		t.Error("not everything happened")
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sequence")
	for _, upTo := range []uint64{0, 256, 512, 100, maxSequence} {
		f, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Reserve(t.Context(), upTo); err != nil {
			t.Fatal(err)
		}
		again, err := OpenFile(path)
		if err != nil || again.Start() != f.Start() || f.Start() < upTo {
			t.Errorf("%d: %d, %v", upTo, again.Start(), err)
		}
	}
	for _, content := range []string{"", "12", "x\n", "-1\n", "1099511627777\n", "1\n2\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenFile(path); err == nil {
			t.Errorf("%q is read as %d", content, f.Start())
		}
	}
	if f, err := OpenFile(filepath.Join(t.TempDir(), "none", "x")); err != nil {
		t.Error(err)
	} else if err := f.Reserve(t.Context(), 1); err == nil || f.Start() != 0 {
		t.Error("reserved in a folder that is not there")
	}
}
