//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/coap/serve"
	"github.com/seed4911071e/groupgate/node"
)

var _, _, _ node.Transport = (*toldNode)(nil), (*pipedNode)(nil), (*libcoapNode)(nil)

// launch starts a peer that lives until the test is over.
func launch(t *testing.T, cmd *exec.Cmd) (in io.WriteCloser, out io.Reader) {
	t.Helper()
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", cmd, &complaints)
		}
	})
	return in, out
}

// toldNode is a peer with a CoAP stack of its own, NodePeer.java or aiocoap_node.py.
type toldNode struct {
	in     io.Writer
	answer chan toldMessage

	mu     sync.Mutex
	notify func(*coap.Response) // of the one observation
}

type toldMessage struct{ Step, Code, Options, Payload string }

func newToldNode(t *testing.T, cmd *exec.Cmd) *toldNode {
	in, out := launch(t, cmd)
	n := &toldNode{in: in, answer: make(chan toldMessage)}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	go func() {
		defer close(n.answer)
		for lines.Scan() {
			var m toldMessage
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				m = toldMessage{Step: "failed", Payload: hex.EncodeToString(lines.Bytes())}
			}
			if m.Step != "notified" {
				n.answer <- m
				continue
			}
			if r, err := m.response(); err == nil {
				n.mu.Lock()
				n.notify(r)
				n.mu.Unlock()
			}
		}
	}()
	return n
}

func (m *toldMessage) response() (*coap.Response, error) {
	payload, err := hex.DecodeString(m.Payload)
	var class, detail uint8
	if _, err2 := fmt.Sscanf(m.Code, "%d.%d", &class, &detail); err != nil || err2 != nil {
		return nil, fmt.Errorf("the peer: %s %q", m.Step, payload)
	}
	r := &coap.Response{Code: coap.Code(class<<5 | detail), Payload: payload}
	for o := range strings.SplitSeq(m.Options, ",") {
		if number, value, ok := strings.Cut(o, ":"); ok {
			id, err1 := strconv.Atoi(number)
			b, err2 := hex.DecodeString(value)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			r.Options.Add(coap.OptionID(id), b)
		}
	}
	return r, nil
}

func (n *toldNode) tell(what string, req *coap.Request) (*coap.Response, error) {
	options := make([]string, len(req.Options))
	for i, o := range req.Options {
		options[i] = fmt.Sprintf("%d:%x", o.ID, o.Value)
	}
	if _, err := fmt.Fprintln(n.in, what, req.Code, cmp.Or(strings.Join(options, ","), "-"), orDash(req.Payload)); err != nil {
		return nil, err
	}
	m, ok := <-n.answer
	if !ok {
		return nil, errors.New("the peer ended")
	}
	return m.response()
}

func (n *toldNode) Do(_ context.Context, req *coap.Request) (*coap.Response, error) {
	return fresh(req, func(req *coap.Request) (*coap.Response, error) { return n.tell("request", req) })
}

func (n *toldNode) Observe(_ context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	n.mu.Lock()
	n.notify = fn
	n.mu.Unlock()
	r, err := n.tell("observe", req)
	if err != nil {
		return nil, err
	}
	fn(r)
	return stay, nil
}

func (n *toldNode) Close() error { return nil }

// stay is the end of an observation that goes on.
func stay(context.Context) error { return nil }

// fresh makes a request, once more with Echo when it is asked for that (RFC 9175,
// Section 2.3): by a gateway that was started anew.
func fresh(req *coap.Request, do func(*coap.Request) (*coap.Response, error)) (*coap.Response, error) {
	r, err := do(req)
	if err != nil || r.Code != coap.Unauthorized || !r.Options.Has(coap.Echo) {
		return r, err
	}
	echo, _ := r.Options.Get(coap.Echo)
	req = req.Clone()
	req.Options.Set(coap.Echo, echo)
	return do(req)
}

// pipedNode is a peer that is DTLS alone, and carries what it reads and prints; the
// CoAP is here. What it prints has no bounds between messages: ours are told by
// their tokens.
type pipedNode struct {
	in io.Writer

	mu    sync.Mutex
	mid   uint16
	waits map[string]func(*coap.Message) // by token
}

const pipedToken = 8

func newPipedNode(t *testing.T, cmd *exec.Cmd) *pipedNode {
	in, out := launch(t, cmd)
	n := &pipedNode{in: in, waits: map[string]func(*coap.Message){}}
	go func() {
		var got []byte
		b := make([]byte, 1<<16)
		for {
			size, err := out.Read(b)
			got = n.take(append(got, b[:size]...))
			if err != nil {
				return
			}
		}
	}()
	return n
}

// take finds the messages in what was read, and returns what is no whole one yet.
func (n *pipedNode) take(b []byte) (rest []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := []int{}
	for token := range maps.Keys(n.waits) {
		for i := 4; i+pipedToken <= len(b); i++ {
			if b[i-4]&0xcf == 0x40|pipedToken && string(b[i:i+pipedToken]) == token {
				at = append(at, i-4)
			}
		}
	}
	slices.Sort(at)
	for i, from := range at {
		to := len(b)
		if i+1 < len(at) {
			to = at[i+1]
		}
		m, err := coap.DecodeMessage(b[from:to])
		if err == nil && len(m.Payload) > 0 && !m.Options.Has(coap.Block2) {
			var whole cbor.RawMessage // as all is that is asked for here
			if _, err = cbor.UnmarshalFirst(m.Payload, &whole); err == nil {
				m.Payload = whole
			}
		}
		if err != nil {
			if to == len(b) {
				return bytes.Clone(b[from:])
			}
			continue
		}
		if m.Type == coap.Confirmable {
			ack, _ := (&coap.Message{Type: coap.Acknowledgement, ID: m.ID}).MarshalBinary()
			_, _ = n.in.Write(ack) // the peer may have ended
		}
		n.waits[string(m.Token)](m)
	}
	return nil
}

// send sends a request until done is closed, and calls fn with each answer.
func (n *pipedNode) send(m *coap.Message, fn func(*coap.Message), done <-chan struct{}) error {
	m.Type, m.Token = coap.Confirmable, make([]byte, pipedToken)
	rand.Read(m.Token)
	n.mu.Lock()
	n.mid++
	m.ID = n.mid
	n.waits[string(m.Token)] = fn
	n.mu.Unlock()
	b, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	go func() {
		again := time.NewTicker(2 * time.Second) // ACK_TIMEOUT
		defer again.Stop()
		for {
			if _, err := n.in.Write(b); err != nil {
				return
			}
			select {
			case <-again.C:
			case <-done:
				return
			}
		}
	}()
	return nil
}

// one is one message and its answer.
func (n *pipedNode) one(ctx context.Context, m *coap.Message, fn func(*coap.Message)) (*coap.Message, error) {
	first, done := make(chan *coap.Message, 1), make(chan struct{})
	defer close(done)
	err := n.send(m, func(m *coap.Message) {
		select {
		case first <- m:
		default:
		}
		fn(m)
	}, done)
	if err != nil {
		return nil, err
	}
	select {
	case m := <-first:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// requester is the part of a node that blocks are sent by.
type requester func(context.Context, *coap.Message) (*coap.Message, error)

func (do requester) Do(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	return do(ctx, m)
}

func (n *pipedNode) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	return fresh(req, func(req *coap.Request) (*coap.Response, error) {
		return serve.RoundTrip(ctx, requester(func(ctx context.Context, m *coap.Message) (*coap.Message, error) {
			return n.one(ctx, m, func(*coap.Message) {})
		}), req, 512, 1<<16)
	})
}

func (n *pipedNode) Observe(ctx context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	_, err := n.one(ctx, &coap.Message{Code: req.Code, Options: req.Options, Payload: req.Payload}, func(m *coap.Message) {
		fn(&coap.Response{Code: m.Code, Options: m.Options, Payload: m.Payload})
	})
	return stay, err
}

func (n *pipedNode) Close() error { return nil }

// libcoapNode has coap-client make one request, or one observation, with an
// association for each.
type libcoapNode struct {
	t             *testing.T
	path, uri     string
	identity, key []byte
}

func (n *libcoapNode) command(ctx context.Context, req *coap.Request, more ...string) *exec.Cmd {
	args := append([]string{"-u", string(n.identity), "-k", string(n.key), "-m", strings.ToLower(req.Code.String())}, more...)
	if f, ok := req.Options.ContentFormat(); ok {
		args = append(args, "-t", fmt.Sprint(f))
	}
	if len(req.Payload) > 0 {
		file := filepath.Join(n.t.TempDir(), "request")
		if err := os.WriteFile(file, req.Payload, 0o600); err != nil {
			n.t.Error(err)
		}
		args = append(args, "-f", file)
	}
	return exec.CommandContext(ctx, n.path, append(args, n.uri+"/"+strings.Join(req.Options.Path(), "/"))...)
}

// libcoapResponse is a response in the log of libcoap, which has no payload that is
// not text.
var libcoapResponse = regexp.MustCompile(`(?m)^v:1 t:(?:ACK|CON|NON) c:([2-5])\.(\d\d) i:[0-9a-f]+ \{[0-9a-f]*\} \[(.*?)\]`)

func (n *libcoapNode) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	file := filepath.Join(n.t.TempDir(), "response")
	out, err := n.command(ctx, req, "-v", "7", "-B", "20", "-o", file).CombinedOutput()
	m := libcoapResponse.FindSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("coap-client: %v\n%s", err, out)
	}
	class, _ := strconv.Atoi(string(m[1])) // digits both
	detail, _ := strconv.Atoi(string(m[2]))
	r := &coap.Response{Code: coap.Code(class<<5 | detail)}
	for o := range strings.SplitSeq(string(m[3]), ",") {
		switch name, value, _ := strings.Cut(strings.TrimSpace(o), ":"); name {
		case "Content-Format":
			if f, err := strconv.Atoi(value); err == nil {
				r.Options.SetContentFormat(coap.Format(f))
			}
		case "Location-Path":
			r.Options.AddString(coap.LocationPath, value)
		}
	}
	if r.Payload, err = os.ReadFile(file); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return r, err
}

// Observe tells payloads alone: they are CBOR, one after the other.
func (n *libcoapNode) Observe(_ context.Context, req *coap.Request, fn func(*coap.Response)) (func(context.Context) error, error) {
	_, out := launch(n.t, n.command(n.t.Context(), req, "-s", "300"))
	first := make(chan struct{})
	go func() {
		begin := sync.OnceFunc(func() { close(first) })
		defer begin()
		d := cbor.NewDecoder(out)
		for {
			var item cbor.RawMessage
			if d.Decode(&item) != nil {
				return
			}
			fn(&coap.Response{Code: coap.Content, Payload: item})
			begin()
		}
	}()
	<-first
	return stay, nil
}

func (n *libcoapNode) Close() error { return nil }
