package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/seed4911071e/groupgate/bench/peer"
)

// child is a server that is measured, as one talks to it: a line in, a line of JSON
// out.
type child struct {
	kind string
	in   io.WriteCloser
	out  io.ReadCloser
	dec  *json.Decoder
}

// begin starts a server, also in the place of one that ended.
func (c *child) begin(ctx context.Context, start Start, dir string) (err error) {
	if c.in, c.out, err = start(ctx, c.kind, dir); err != nil {
		return fmt.Errorf("bench: starting the server %s: %w", c.kind, err)
	}
	c.dec = json.NewDecoder(bufio.NewReader(c.out))
	return nil
}

// ask sends one line and reads what the server has used; "collect": after a
// collection.
func (c *child) ask(line string) (u peer.Usage, err error) {
	if _, err = io.WriteString(c.in, line+"\n"); err == nil {
		err = c.dec.Decode(&u)
	}
	if err != nil {
		err = fmt.Errorf("bench: the server %s: %w", c.kind, err)
	}
	return u, err
}

// collected is what the server uses after a collection.
func (c *child) collected() (u peer.Usage, err error) {
	if u, err = c.ask("collect"); err == nil {
		u, err = c.ask("collect") // what finalizers let go
	}
	return u, err
}

// kill ends the server as a crash would.
func (c *child) kill() error {
	p, ok := c.out.(*process)
	if !ok {
		return errors.New("bench: only a process of its own can be killed")
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = c.end() // it was killed
	return nil
}

// end has the server end, and waits for that.
func (c *child) end() error {
	if c.in == nil {
		return nil
	}
	return errors.Join(c.in.Close(), c.out.Close())
}

// process is waited for when its output is closed.
type process struct {
	io.ReadCloser
	cmd *exec.Cmd
}

func (p *process) Close() error {
	_, _ = io.Copy(io.Discard, p.ReadCloser) // until it ends: its input is closed
	return p.cmd.Wait()
}
