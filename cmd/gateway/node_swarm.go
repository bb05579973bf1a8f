package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/node/swarm"
	"github.com/seed4911071e/groupgate/rarely"
)

// nodeSwarmCmd plays a fleet.
type nodeSwarmCmd struct {
	Gateway   string `default:"127.0.0.1" help:"Host of the gateway, ours or any CoAP server over DTLS. On 127.0.0.1 each node has an address of its own and all share one socket; elsewhere each node needs a socket."`
	CoAPPort  int    `name:"coap-port" default:"5683" help:"Port of plain CoAP, for the token transfer of --join."`
	CoAPSPort int    `name:"coaps-port" default:"5684" help:"Port of CoAP over DTLS."`

	Nodes    int      `placeholder:"N" help:"How many nodes. Default: as many as --csv has."`
	CSV      []string `name:"csv" type:"existingfile" placeholder:"FILE" help:"Their credentials: files as node enroll reads and writes them, with keys."`
	Identity string   `default:"node-" help:"Without --csv: beginning of the identities; the number of the node follows."`
	KeyFile  string   `type:"existingfile" placeholder:"FILE" help:"Without --csv: the pre-shared key of all, hexadecimal."`
	NoCID    bool     `name:"no-cid" help:"Offer no Connection ID."`
	AtOnce   int      `default:"64" help:"Handshakes, and requests, under way at a time."`

	Path    string        `default:"/.well-known/core" help:"Resource that the nodes ask for."`
	Observe bool          `help:"Observe it, and acknowledge what is confirmable."`
	Join    string        `placeholder:"GROUP" help:"Join a group first: a token, its transfer, and the join, with the node's roles of --csv. With --observe the nodes follow its rekeys."`
	Every   time.Duration `placeholder:"DURATION" help:"Each node asks again so often. Default: once."`
	Move    time.Duration `placeholder:"DURATION" help:"After so long all nodes use another port, as behind a NAT that lost its bindings; only at 127.0.0.1."`
	Flood   int           `placeholder:"RATE" help:"Send so many ClientHellos per second from invented addresses meanwhile; only at 127.0.0.1."`
	For     time.Duration `default:"0s" help:"End after this long. 0: when all have asked, or with --observe, --every, --move or --flood when it is interrupted."`
	Report  time.Duration `default:"10s" help:"Tell so often what the nodes saw."`
	JSON    bool          `help:"Print one JSON object per report."`

	first    sync.Once
	known    *groupcomm.TokenTransferResponse // of the first to join; read only
	knownErr error
}

// Run plays the nodes until all is done.
func (c *nodeSwarmCmd) Run(e *env) error {
	nodes, err := c.credentials()
	if err != nil {
		return err
	}
	at, err := resolve(e.ctx, c.Gateway, c.CoAPSPort)
	if err != nil {
		return err
	}
	if ip := at.Addr(); (c.Move > 0 || c.Flood > 0) && !(ip.Is4() && ip.IsLoopback()) {
		return fmt.Errorf("--move and --flood: at a gateway on 127.0.0.1 only, not at %s", ip)
	}
	s, err := swarm.New(swarm.Config{Gateway: at, Nodes: len(nodes), NoCID: c.NoCID})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	wg.Go(func() { _ = s.Run(ctx) }) // ends with ctx
	if c.For > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, c.For)
		defer stop()
	}
	if c.Flood > 0 {
		wg.Go(func() { _, _ = s.Flood(ctx, c.Flood) })
	}
	wg.Go(func() { c.reports(ctx, e, s) })

	begin := time.Now()
	out := &turned{w: e.stderr, one: "did not get in", many: "did not get in", at: at.String()}
	lost := &turned{w: e.stderr, one: "follows the group no more", many: "follow the group no more", at: at.String()}
	var in atomic.Int64
	_, _ = swarm.Each(ctx, 0, len(nodes), c.AtOnce, nil, func(ctx context.Context, i int) error {
		err := c.enter(ctx, s, &wg, lost, i, nodes[i])
		switch {
		case err == nil:
			in.Add(1)
		case ctx.Err() == nil:
			out.add(nodes[i].Identity, err)
		}
		return nil
	})
	if err := out.all(len(nodes)); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stderr, "%s in after %.1f s\n", count(int(in.Load()), "node"), time.Since(begin).Seconds())
	early := ctx.Err() != nil
	c.work(ctx, e, s, begin)
	err = c.print(e, s)
	cancel()
	wg.Wait() // those who follow tell no more
	lost.sum(int(in.Load()))
	return errors.Join(err, out.end(len(nodes), int(in.Load()), early))
}

// reports tells what the nodes saw.
func (c *nodeSwarmCmd) reports(ctx context.Context, e *env, s *swarm.Swarm) {
	t := time.NewTicker(max(c.Report, time.Second))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = c.print(e, s) // the last print tells of a closed output
		}
	}
}

func (c *nodeSwarmCmd) print(e *env, s *swarm.Swarm) error {
	st := s.Stats()
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(st)
	}
	_, err := fmt.Fprintf(e.stdout, "open %d, closed by the gateway %d · handshakes %d, failed %d · requests %d, answered %d, refused %d, timed out %d · notifications %d, acknowledged %d, repeated %d\n",
		st.Open, st.Closed, st.Handshakes, st.Failed, st.Requests, st.Responses, st.Refused, st.Timeouts, st.Notifications, st.Acknowledged, st.Repeated)
	return err
}

// enter opens the association of a node, and has it join where that was asked.
func (c *nodeSwarmCmd) enter(ctx context.Context, s *swarm.Swarm, wg *sync.WaitGroup, lost *turned, i int, n admin.NodeSpec) error {
	if err := s.Open(ctx, i, swarm.Credential{Identity: []byte(n.Identity), Key: n.Key.Bytes()}); err != nil {
		return err
	}
	if c.Join == "" {
		return nil
	}
	roles := groupcomm.Requester | groupcomm.Responder
	for _, x := range n.Scope {
		if x.Group == c.Join {
			roles = x.Roles
		}
	}
	t := s.Node(i)
	access, err := node.RequestToken(ctx, t, node.TokenRequest{Scope: groupcomm.Scope{{Group: c.Join, Roles: roles}}})
	if err != nil {
		return err
	}
	c.first.Do(func() { c.known, c.knownErr = c.transfer(ctx, access) })
	if c.knownErr != nil {
		return c.knownErr
	}
	transfer := *c.known
	// The token goes in psk_identity: no post for each, and N_S is an exporter value.
	if err := s.Open(ctx, i, swarm.Credential{Identity: access.Token, Key: access.Key.Bytes(), Keep: true}); err != nil {
		return err
	}
	if transfer.KDCChallenge, err = node.Challenge(t); err != nil {
		return err
	}
	m, err := node.New(node.Config{Group: c.Join, Roles: roles, Transfer: &transfer, Subject: n.Identity}, t)
	if err != nil {
		return err
	}
	if err := m.Join(ctx); err != nil {
		return err
	}
	if c.Observe {
		wg.Go(func() { // ends with ctx; what it misses the group's status tells
			if err := m.Follow(ctx); err != nil && ctx.Err() == nil {
				lost.add(n.Identity, err)
			}
		})
	}
	return nil
}

// transfer posts the token of one node: the answer tells the algorithms of the
// group to all.
func (c *nodeSwarmCmd) transfer(ctx context.Context, access *node.Access) (*groupcomm.TokenTransferResponse, error) {
	plain, err := node.DialUDP(ctx, net.JoinHostPort(c.Gateway, strconv.Itoa(c.CoAPPort)))
	if err != nil {
		return nil, err
	}
	t, err := node.PostToken(ctx, plain, access)
	return t, errors.Join(err, plain.Close())
}

// work has the nodes ask.
func (c *nodeSwarmCmd) work(ctx context.Context, e *env, s *swarm.Swarm, begin time.Time) {
	m := &coap.Message{Code: coap.GET}
	m.Options.SetPath(strings.Split(strings.Trim(c.Path, "/"), "/")...)
	if c.Observe && c.Join == "" {
		m.Options.SetUint(coap.ObserveOption, 0)
	}
	if c.Move > 0 {
		move := time.AfterFunc(time.Until(begin.Add(c.Move)), func() {
			if err := s.Move(ctx); err != nil {
				_, _ = fmt.Fprintln(e.stderr, err)
			}
		})
		defer move.Stop()
	}
	var line rarely.Line
	for first := true; first || c.Every > 0; first = false {
		round := time.Now()
		out, _ := s.Load(ctx, swarm.Load{AtOnce: c.AtOnce, Message: func(int) *coap.Message { return m }})
		if out.First != nil { // the reports count the rest
			if line.Event(time.Now()) > 0 {
				err := node.Refusal(c.Path, &coap.Response{Code: out.First.Code, Options: out.First.Options, Payload: out.First.Payload})
				_, _ = fmt.Fprintf(e.stderr, "%s refused of %d answered, the first: %v\n", count(out.Refused, "request"), out.Refused+out.Answered, err)
			}
		}
		if c.Every > 0 && !pause(ctx, c.Every-time.Since(round)) {
			return
		}
	}
	if c.Observe || c.Move > 0 || c.Flood > 0 || c.For > 0 {
		<-ctx.Done()
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// credentials are those of all nodes.
func (c *nodeSwarmCmd) credentials() ([]admin.NodeSpec, error) {
	var nodes []admin.NodeSpec
	for _, name := range c.CSV {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		more, faults := admin.ParseNodes(f, false)
		_ = f.Close() // it was read
		if len(faults) > 0 {
			return nil, fmt.Errorf("%s:%d: %s", name, faults[0].Line, faults[0].Detail)
		}
		nodes = append(nodes, more...)
	}
	if len(c.CSV) > 0 {
		if c.Nodes > len(nodes) {
			return nil, fmt.Errorf("--nodes %d: the files have %d", c.Nodes, len(nodes))
		}
		if c.Nodes > 0 {
			nodes = nodes[:c.Nodes]
		}
		return nodes, nil
	}
	shared, err := enrolledCredential(c.Identity, c.KeyFile)
	if err != nil {
		return nil, err
	}
	for i := range c.Nodes {
		nodes = append(nodes, admin.NodeSpec{Identity: c.Identity + strconv.Itoa(i), Key: shared.Key})
	}
	return nodes, nil
}

// resolve finds the address of a host, IPv4 first: only that has many addresses
// of one machine.
func resolve(ctx context.Context, host string, port int) (netip.AddrPort, error) {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("--gateway: %w", err)
	}
	best := ips[0].Unmap()
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() {
			best = ip
			break
		}
	}
	return netip.AddrPortFrom(best, uint16(port)), nil
}
