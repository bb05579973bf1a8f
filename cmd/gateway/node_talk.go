package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// defaultMulticast is where the simulated nodes of a group meet: the address of all
// CoAP nodes, with a port of its own, as 5683 is the gateway's.
const defaultMulticast = "224.0.1.187:5693"

// nodeTalkFlags are those of the commands that use the group keys.
type nodeTalkFlags struct {
	nodeJoinCmd
	Via      string        `name:"multicast-interface" placeholder:"NAME" help:"Network interface for IP multicast. Default: loopback; IPv6 multicast that is not of interface-local scope (ff01::/16) needs one."`
	Bind     string        `name:"bind" placeholder:"HOST:PORT" help:"Unicast address (UDP) to send from and to serve at. Default: a port of 127.0.0.1, with IPv6 multicast of any address."`
	Grace    time.Duration `default:"10s" help:"After a rekey, read messages under the keys before for this long."`
	Pairwise bool          `help:"Protect in pairwise mode: a request for one member, responses for the one who asked."`
}

// nodeServeCmd plays a server in the group.
type nodeServeCmd struct {
	nodeTalkFlags
	Multicast string        `default:"${multicast}" placeholder:"ADDR:PORT" help:"Multicast address to serve at beside the unicast one; none: unicast alone."`
	Leisure   time.Duration `default:"250ms" help:"Longest wait before an answer to multicast, at random."`
}

// nodeSendCmd plays a client in the group.
type nodeSendCmd struct {
	nodeTalkFlags
	To      string        `default:"${multicast}" placeholder:"ADDR:PORT" help:"Where to send: a multicast address, or the unicast address of a member."`
	Peer    *string       `placeholder:"HEX" help:"Sender ID of the member to send to, with --pairwise. Default: the only other one."`
	Method  string        `default:"GET" enum:"GET,POST,PUT,DELETE,FETCH" help:"Method: GET, POST, PUT, DELETE or FETCH."`
	Path    string        `default:"/name" help:"Resource: a serving node has /name, /temperature, and POST /echo."`
	Payload string        `help:"Payload, as text."`
	Wait    time.Duration `default:"2s" help:"How long to collect answers."`
	Count   int           `default:"1" help:"Number of requests; 0: until Ctrl-C."`
	Every   time.Duration `default:"1s" help:"Time between requests."`
}

// Run plays the node; warnings go to standard error.
func (c *nodeServeCmd) Run(e *env) error {
	return c.talk(e, c.run)
}

// Run plays the node; warnings go to standard error.
func (c *nodeSendCmd) Run(e *env) error {
	return c.talk(e, c.run)
}

// talker is a node in its group.
type talker struct {
	member  *node.Member
	traffic *node.Traffic
	story   *nodeStory
	log     *slog.Logger
}

// talk joins, follows the rekeys, and has play do the rest until it is over.
func (c *nodeTalkFlags) talk(e *env, play func(context.Context, *talker) error) error {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	roles, err := groupcomm.ParseRoles(c.Roles)
	if err != nil {
		return fmt.Errorf("--roles: %w", err)
	}
	at, client, err := c.locate()
	if err != nil {
		return err
	}
	return c.enterAndPlay(e.ctx, e.stdout, at, client, roles, log, play)
}

func (c *nodeTalkFlags) enterAndPlay(
	ctx context.Context, out io.Writer, at nodeAddrs, client node.Client, roles groupcomm.Roles, log *slog.Logger, play func(context.Context, *talker) error,
) error {
	state, err := c.openState(log)
	if err != nil {
		return err
	}
	defer state.close()
	t := &talker{story: newNodeStory(out, c.JSON), log: log}
	t.story.start(c.Name, c.Group, roles)

	// Events come before there is traffic, and its first installation is below.
	var ready sync.Mutex
	hear := func(ev node.Event) {
		ready.Lock()
		traffic := t.traffic
		ready.Unlock()
		if traffic != nil {
			if err := traffic.Sync(); err != nil {
				log.Warn("new keying material is not usable", "err", err)
			}
		}
		t.story.event(ev)
	}
	if t.member, err = c.begin(ctx, at, client, roles, state, t.story, hear, log); err != nil {
		return err
	}
	defer func() {
		if err := t.member.Close(); err != nil {
			log.Debug("closing failed", "err", err)
		}
	}()
	traffic, err := node.NewTraffic(t.member, node.TrafficConfig{Grace: c.Grace, Store: state.store()})
	if err != nil {
		return err
	}
	ready.Lock()
	t.traffic = traffic
	ready.Unlock()
	if err := traffic.Sync(); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	followed := make(chan error, 1)
	go func() {
		defer cancel()
		followed <- c.stay(ctx, t.member)
	}()
	err = play(ctx, t)
	cancel()
	if ferr := <-followed; ferr != nil {
		return errors.Join(nodeAdvice("follow the group at", at.coaps, ferr), err)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if c.LeaveOnExit {
		return c.leave(ctx, t.member)
	}
	t.story.stays()
	return nil
}

// bindFor is the unicast address that goes with the address of the others.
func (c *nodeTalkFlags) bindFor(others netip.Addr) string {
	switch {
	case c.Bind != "":
		return c.Bind
	case !others.Is6() || others.Is4In6():
		return "127.0.0.1:0"
	case others.IsLoopback():
		return "[::1]:0"
	}
	return "[::]:0"
}

// run serves until ctx ends.
func (c *nodeServeCmd) run(ctx context.Context, t *talker) error {
	var multicast netip.AddrPort
	if c.Multicast != "none" {
		var err error
		if multicast, err = netip.ParseAddrPort(c.Multicast); err != nil {
			return fmt.Errorf("--multicast: %w", err)
		}
	}
	var mode *oscore.Mode
	if c.Pairwise {
		if !t.traffic.Group().HasPairwise() {
			return errors.New("--pairwise: the group has no pairwise mode")
		}
		pairwise := oscore.PairwiseMode
		mode = &pairwise
	}
	s, err := node.ListenGroup(ctx, node.GroupServerConfig{
		Traffic: t.traffic, Handle: c.handle, Listen: c.bindFor(multicast.Addr()), Multicast: multicast, Interface: c.Via,
		Leisure: c.Leisure, Mode: mode, OnServed: t.story.served,
	})
	if err != nil {
		return err
	}
	t.story.serving(s.Addr(), multicast)
	return s.Run(ctx)
}

// handle has the resources of a simulated server.
func (c *nodeServeCmd) handle(req *coap.Message, _ *oscore.GroupRequest) *coap.Message {
	path := req.Options.Path()
	text := func(s string) *coap.Message {
		m := &coap.Message{Code: coap.Content, Payload: []byte(s)}
		m.Options.SetContentFormat(coap.TextPlain)
		return m
	}
	resource := ""
	if len(path) == 1 {
		resource = path[0]
	}
	method := coap.GET
	switch resource {
	case "name", "temperature":
	case "echo":
		method = coap.POST
	default:
		return &coap.Message{Code: coap.NotFound}
	}
	switch {
	case req.Code != method:
		return &coap.Message{Code: coap.MethodNotAllowed}
	case resource == "name":
		return text(c.Name)
	case resource == "echo":
		return &coap.Message{Code: coap.Changed, Payload: req.Payload}
	}
	// A sensor that is as good as any: it follows the minute.
	return text(fmt.Sprintf("%.1f", 20+float64(time.Now().Second())/10))
}

// run sends until all is sent or ctx ends.
func (c *nodeSendCmd) run(ctx context.Context, t *talker) error {
	dst, err := netip.ParseAddrPort(c.To)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	if c.Pairwise && dst.Addr().IsMulticast() {
		return errors.New("--pairwise: a request in pairwise mode is for one member: name its address by --to")
	}
	if !c.Pairwise && !t.traffic.Group().HasGroupMode() {
		return errors.New("the group has no group mode: use --pairwise")
	}
	req := &coap.Message{Code: methodNamed(c.Method), Payload: []byte(c.Payload)}
	req.Options.SetPath(coap.PathOf(c.Path)...)
	client, err := node.DialGroup(ctx, t.traffic, c.bindFor(dst.Addr()), c.Via)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	tick := time.NewTicker(max(c.Every, time.Millisecond))
	defer tick.Stop()
	for n := 1; ; n++ {
		to, err := peerFor(ctx, t.member, c.Pairwise, c.Peer)
		if err != nil {
			return err
		}
		t.story.sending(n, c.Method, c.Path, dst, to)
		answers := 0
		err = client.Send(ctx, dst, to, req, c.Wait, func(a node.Answer) {
			answers++
			t.story.answer(n, a)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if answers == 0 {
			t.story.silence(n)
		}
		if n == c.Count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// peerFor is the member that a request in pairwise mode is for; nil is group mode.
func peerFor(ctx context.Context, m *node.Member, pairwise bool, named *string) (*groupcomm.SenderID, error) {
	if !pairwise {
		return nil, nil
	}
	if named != nil {
		b, err := hex.DecodeString(*named)
		if err != nil {
			return nil, fmt.Errorf("--peer: %w", err)
		}
		id := groupcomm.SenderID(b)
		return &id, nil
	}
	peers, err := m.Creds(ctx)
	if err != nil {
		return nil, fmt.Errorf("who is in the group: %w", err)
	}
	var ids []groupcomm.SenderID
	for _, p := range peers {
		if p.Roles == 0 || p.Roles&groupcomm.Responder != 0 {
			ids = append(ids, p.SenderID)
		}
	}
	if len(ids) != 1 {
		return nil, fmt.Errorf("--pairwise: the group has %d other responders: name one by --peer", len(ids))
	}
	return &ids[0], nil
}
