package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/plugin"
	"github.com/seed4911071e/groupgate/plugin/host"
)

// Times of the demo.
const (
	demoStep  = 10 * time.Second       // no single step takes longer
	demoLook  = 20 * time.Millisecond  // between two looks at what should come true
	demoBatch = 100 * time.Millisecond // the batch window: a newcomer should not wait
)

// demoCmd tells the whole story in one process.
type demoCmd struct {
	Verbose bool `short:"v" help:"Show the gateway's log, too."`
}

// Run tells the story; it fails unless everything held.
func (c *demoCmd) Run(e *env) error {
	dir, err := os.MkdirTemp("", "groupgate-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	level := slog.LevelError
	if c.Verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))

	cfg := demoConfig(dir)
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	started := make(chan host.Addrs, 1)
	g.Go(func() error {
		return host.Serve(ctx, cfg, log, func(_ *plugin.Gateway, at host.Addrs) { started <- at })
	})
	g.Go(func() error {
		defer cancel()
		select {
		case at := <-started:
			d := &demo{out: e.stdout, cfg: cfg, at: at}
			defer d.close()
			return d.tell(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("the story broke off: %w", err)
	}
	return e.ctx.Err()
}

// demoConfig is a first run without a file, on free ports and in dir.
func demoConfig(dir string) *config.Config {
	cfg := config.Embedded()
	cfg.DataDir = filepath.Join(dir, "data")
	const free = "127.0.0.1:0"
	cfg.Listen.CoAPS, cfg.Listen.CoAP, cfg.Listen.HTTP, cfg.Listen.MQTT = free, free, free, free
	cfg.Groups[0].Rekey.BatchWindow = demoBatch
	return cfg
}

// demo is the story: its stage and its people.
type demo struct {
	out    io.Writer
	cfg    *config.Config
	at     host.Addrs
	client node.Client
	admin  *admin.Client
	number int

	olga, mike, sam, lena *demoNode
	lenaKey               node.State // what Lena took with her
}

// demoNode is one node of the story.
type demoNode struct {
	name   string
	member *node.Member
	dial   func(context.Context) (node.Transport, error)

	mu  sync.Mutex
	via map[groupcomm.Version]string // how each version came; guarded by mu

	stop context.CancelFunc // ends Follow; nil while it sleeps
	done chan struct{}
}

func (n *demoNode) state() node.State {
	st, _ := n.member.State()
	return st
}

// heard notes how a version came.
func (n *demoNode) heard(e node.Event) {
	if e.Kind == node.Rekeyed {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.via[e.Version] = e.Via
	}
}

func (n *demoNode) came(v groupcomm.Version) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.via[v]
}

// tell plays every step; the first that does not hold ends the story.
func (d *demo) tell(ctx context.Context) error {
	d.admin = admin.NewClient(d.at.HTTP, string(d.cfg.AdminToken.Bytes()))
	var err error
	if d.client, err = node.LoadClient(d.cfg.Path(node.ClientFile)); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.open, d.join, d.rekey, d.leave, d.outsider, d.wake, d.ledger} {
		ctx, cancel := context.WithTimeout(ctx, demoStep)
		err := step(ctx)
		cancel()
		if err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintln(d.out, "\nEverything held. Next: `gateway run`, and in a second terminal `gateway node join --group sensors`.")
	return nil
}

// say explains one step in one line.
func (d *demo) say(format string, args ...any) {
	d.number++
	_, _ = fmt.Fprintf(d.out, "%d  %s\n", d.number, fmt.Sprintf(format, args...))
}

func (d *demo) open(context.Context) error {
	d.say("A gateway is up: CoAP over DTLS on %s, an Authorization Server, an MQTT broker, the group %q.", d.at.CoAPS, d.group())
	return nil
}

func (d *demo) group() string { return d.cfg.Groups[0].Name }

// join admits the four, each with a token and a key of its own.
func (d *demo) join(ctx context.Context) error {
	for _, n := range []struct {
		who  **demoNode
		name string
		mqtt bool
	}{{&d.olga, "Olga", false}, {&d.mike, "Mike", true}, {&d.sam, "Sam", false}, {&d.lena, "Lena", false}} {
		var err error
		if *n.who, err = d.newNode(ctx, n.name, n.mqtt); err != nil {
			return fmt.Errorf("%s joins: %w", n.name, err)
		}
	}
	ids := map[string]string{}
	for _, n := range d.all() {
		st := n.state()
		if other, taken := ids[st.SenderID.String()]; taken {
			return fmt.Errorf("%s and %s have the same Sender ID", n.name, other)
		}
		ids[st.SenderID.String()] = n.name
	}
	d.say("Four nodes got tokens, proved their keys and joined under Gid %s, version %d: Olga %q, Mike %q, Sam %q, Lena %q are their Sender IDs.",
		d.olga.state().Gid, d.olga.state().Version, d.olga.state().SenderID, d.mike.state().SenderID, d.sam.state().SenderID, d.lena.state().SenderID)
	d.follow(d.olga)
	d.follow(d.mike)
	// Both have said what they hold: they are awake and reachable.
	err := until(ctx, func() (bool, error) {
		info, err := d.admin.Group(ctx, d.group())
		if err != nil {
			return false, err
		}
		awake := 0
		for _, m := range info.Members {
			if m.State == "current" {
				awake++
			}
		}
		return awake >= 2, nil
	})
	if err != nil {
		return fmt.Errorf("two nodes do not wake up: %w", err)
	}
	d.say("Olga observes the group, Mike listens to MQTT, Sam sleeps, Lena will leave.")
	return nil
}

func (d *demo) all() []*demoNode { return []*demoNode{d.olga, d.mike, d.sam, d.lena} }

// rekey has the operator renew the keys. On a busy machine Mike may still be
// between polling and his broker: then once more, until each was told on the
// channel that the story says.
func (d *demo) rekey(ctx context.Context) error {
	for {
		old := d.olga.state()
		begin := time.Now()
		r, err := d.admin.Rekey(ctx, d.group(), "demo")
		if err != nil {
			return err
		}
		if err := d.reach(ctx, r.Version, d.olga, d.mike); err != nil {
			return err
		}
		took := time.Since(begin)
		o, m := d.olga.state(), d.mike.state()
		switch {
		case o.MasterSecret.Equal(old.MasterSecret):
			return errors.New("the rekey did not change the Master Secret")
		case !o.MasterSecret.Equal(m.MasterSecret) || o.Gid.String() != m.Gid.String():
			return errors.New("the observing node and the one on MQTT hold different keys")
		case o.SenderID.String() != old.SenderID.String():
			return errors.New("the rekey changed Sender IDs")
		}
		if d.olga.came(r.Version) == node.ViaObserve && d.mike.came(r.Version) == node.ViaMQTT {
			d.say("The operator rekeys: after %d ms Olga (by Observe) and Mike (by MQTT) hold version %d, Gid %s. Sam sleeps through it.",
				took.Milliseconds(), r.Version, o.Gid)
			return nil
		}
	}
}

// leave has Lena leave, which rekeys the group.
func (d *demo) leave(ctx context.Context) error {
	d.lenaKey = d.lena.state()
	before := d.olga.state().Version
	if err := d.lena.member.Leave(ctx); err != nil {
		return fmt.Errorf("a node leaves: %w", err)
	}
	if err := d.reach(ctx, before+1, d.olga, d.mike); err != nil {
		return err
	}
	d.say("Lena leaves, so the keys are renewed without her: Olga and Mike hold version %d.", d.olga.state().Version)
	return nil
}

// outsider shows that Lena is out: she holds old keys, and her token, which is
// still good, opens an association but nothing in the group.
func (d *demo) outsider(ctx context.Context) error {
	if d.lenaKey.MasterSecret.Equal(d.olga.state().MasterSecret) {
		return errors.New("the leaver holds the new key")
	}
	t, err := d.lena.dial(ctx)
	if err != nil {
		return fmt.Errorf("the leaver asks: %w", err)
	}
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", d.group())
	resp, err := t.Do(ctx, req)
	if err = errors.Join(err, t.Close()); err != nil {
		return fmt.Errorf("the leaver asks: %w", err)
	}
	if resp.Code != coap.Forbidden {
		return fmt.Errorf("the leaver asks for the keys and gets %s", resp.Code)
	}
	why := ""
	if p, err := coap.DecodeProblem(resp.Payload); err == nil {
		why = fmt.Sprintf(", error %d", p.ID)
	}
	d.say("Lena holds old keys only; she asks for the new ones and is refused (%s%s).", resp.Code, why)
	return nil
}

// wake has Sam catch up.
func (d *demo) wake(ctx context.Context) error {
	before, want := d.sam.state().Version, d.olga.state().Version
	if before >= want {
		return errors.New("the sleeper was told while asleep")
	}
	if err := d.sam.member.Poll(ctx); err != nil {
		return fmt.Errorf("the sleeper wakes: %w", err)
	}
	s := d.sam.state()
	if s.Version != want || !s.MasterSecret.Equal(d.olga.state().MasterSecret) {
		return fmt.Errorf("the sleeper holds version %d after waking, the group is at %d", s.Version, want)
	}
	for _, p := range s.Peers {
		if p.SenderID.String() == d.lenaKey.SenderID.String() {
			return errors.New("the sleeper still trusts the credential of who left")
		}
	}
	d.say("Sam wakes: he held version %d, asks, learns the stale Sender IDs (Lena's among them) and holds version %d.", before, s.Version)
	return nil
}

// ledger shows what the operator sees.
func (d *demo) ledger(ctx context.Context) error {
	var info *admin.GroupInfo
	err := until(ctx, func() (bool, error) {
		var err error
		if info, err = d.admin.Group(ctx, d.group()); err != nil {
			return false, err
		}
		for _, m := range info.Members {
			if m.State != "current" || m.Version != info.Version {
				return false, nil
			}
		}
		return len(info.Members) == 3, nil
	})
	if err != nil {
		return fmt.Errorf("the ledger does not show three members with the newest keys: %w", err)
	}
	d.say("The operator sees who confirmed which version:")
	for _, m := range info.Members {
		_, _ = fmt.Fprintf(d.out, "     node %s  Sender ID %-4q version %d  %s by %s\n", m.Node, *m.SenderID, m.Version, m.State, m.Channel)
	}
	return nil
}

// newNode gets a token, posts it, opens the association and joins.
func (d *demo) newNode(ctx context.Context, name string, mqtt bool) (*demoNode, error) {
	roles := groupcomm.Requester | groupcomm.Responder
	c := nodeJoinCmd{Group: d.group()}
	at := nodeAddrs{coap: d.at.CoAP, coaps: d.at.CoAPS}
	access, err := c.token(ctx, at, d.client, roles)
	if err != nil {
		return nil, err
	}
	transfer, err := c.post(ctx, at, access)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (node.Transport, error) {
		return node.DialDTLS(ctx, at.coaps, access.Identity(), access.Key.Bytes())
	}
	t, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	n := &demoNode{name: name, dial: dial, via: map[groupcomm.Version]string{}}
	m, err := node.New(node.Config{
		Group: d.group(), Roles: roles, Transfer: transfer, Subject: name, WantCreds: true, MQTT: mqtt, Redial: dial,
		OnEvent: n.heard,
	}, t)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	n.member = m
	if err := m.Join(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return n, nil
}

// follow keeps a node awake.
func (d *demo) follow(n *demoNode) {
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		_ = n.member.Follow(ctx) // ends with the story
	}()
}

// reach waits until the nodes hold a version.
func (d *demo) reach(ctx context.Context, version groupcomm.Version, nodes ...*demoNode) error {
	for _, n := range nodes {
		err := until(ctx, func() (bool, error) {
			st := n.state()
			return st.Version >= version && st.Installed, nil
		})
		if err != nil {
			return fmt.Errorf("%s does not get version %d (holds %d): %w", n.name, version, n.state().Version, err)
		}
	}
	return nil
}

// until looks again and again until what should come true does.
func until(ctx context.Context, look func() (bool, error)) error {
	tick := time.NewTicker(demoLook)
	defer tick.Stop()
	for {
		if ok, err := look(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// close ends every node.
func (d *demo) close() {
	for _, n := range d.all() {
		if n == nil {
			continue
		}
		if n.stop != nil {
			n.stop()
			<-n.done
		}
		_ = n.member.Close()
	}
}
