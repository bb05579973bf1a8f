//go:build ignore

// Command readme runs the commands of a README, and of pages after it, as a reader would. Each block
// marked sh is one terminal, from top to bottom. A block that starts a gateway
// or a node stays: once it said something and fell silent the next block's turn
// comes, and at the end it gets Ctrl-C. Every block must end with status 0.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	silence  = 2 * time.Second  // said something, then silent: it waits for us
	patience = 5 * time.Minute  // for a first word; go run compiles first
	goodbye  = 20 * time.Second // from Ctrl-C to the end
	poll     = 50 * time.Millisecond
)

// stays matches blocks that do not end by themselves.
var stays = regexp.MustCompile(`gateway (run|node join|node serve)\b`)

// elsewhere matches blocks that .ci/run does in a step of its own.
var elsewhere = regexp.MustCompile(`\Ago test \./\.\.\.\n\z`)

var block = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "readme:", err)
		os.Exit(1)
	}
}

// run takes the files one after the other, as one who reads on.
func run(files []string) error {
	var blocks [][][]byte
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		found := block.FindAllSubmatch(text, -1)
		if len(found) == 0 {
			return fmt.Errorf("%s: no blocks marked sh", name)
		}
		blocks = append(blocks, found...)
	}
	return runAll(blocks)
}

func runAll(blocks [][][]byte) (err error) {
	var running []*terminal
	defer func() {
		slices.Reverse(running)
		for _, t := range running {
			err = errors.Join(err, t.interrupt())
		}
	}()
	for _, b := range blocks {
		fmt.Printf("--- %s", b[1])
		if elsewhere.Match(b[1]) {
			fmt.Println("(a step of its own)")
			continue
		}
		t, err := open(string(b[1]))
		if err != nil {
			return err
		}
		waiting, err := t.settle(stays.Match(b[1]))
		if waiting {
			running = append(running, t)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// terminal is one block that runs in a process group of its own, as in a shell.
type terminal struct {
	cmd  *exec.Cmd
	out  output
	done chan error
	end  error
}

func open(script string) (*terminal, error) {
	t := &terminal{cmd: exec.Command("bash", "-euo", "pipefail", "-c", script), done: make(chan error, 1)}
	t.cmd.Stdout, t.cmd.Stderr = &t.out, &t.out
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { t.done <- t.cmd.Wait() }()
	return t, nil
}

// settle waits until the block ended or, if it stays, waits for something itself.
func (t *terminal) settle(stays bool) (waiting bool, err error) {
	limit := time.Now().Add(patience)
	for {
		select {
		case err := <-t.done:
			return false, t.failed(err)
		case <-time.After(poll):
		}
		if last, ok := t.out.last(); ok && stays && time.Since(last) > silence {
			return true, nil
		}
		if time.Now().After(limit) {
			return true, fmt.Errorf("not done after %v", patience)
		}
	}
}

// interrupt is Ctrl-C: the signal goes to the whole group.
func (t *terminal) interrupt() error {
	select {
	case err := <-t.done:
		return t.failed(fmt.Errorf("ended too early: %w", err))
	default:
	}
	if err := syscall.Kill(-t.cmd.Process.Pid, syscall.SIGINT); err != nil {
		return err
	}
	select {
	case err := <-t.done:
		return t.failed(t.interrupted(err))
	case <-time.After(goodbye):
		_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL)
		return t.failed(fmt.Errorf("did not end %v after Ctrl-C", goodbye))
	}
}

// interrupted forgives the status of `go run`: after Ctrl-C it is 1 however the
// program ended, but when the program failed go run says so.
func (t *terminal) interrupted(err error) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if ok && exit.ExitCode() == 1 && strings.Contains(t.cmd.Args[len(t.cmd.Args)-1], "go run ") && !strings.Contains(t.out.text(), "exit status") {
		return nil
	}
	return err
}

func (t *terminal) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%q: %w\n%s", t.cmd.Args[len(t.cmd.Args)-1], err, t.out.text())
}

// output shows and keeps what a block says, and when it last spoke.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	when time.Time
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.when = time.Now()
	_, _ = os.Stdout.Write(p)
	return o.buf.Write(p)
}

func (o *output) last() (time.Time, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.when, !o.when.IsZero()
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
