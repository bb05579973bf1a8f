package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// nodeAskCmd plays a client of the gateway's own resources, and of its proxy: one that
// knows nothing of groups and their keys or, with --state, a member of one.
type nodeAskCmd struct {
	At string `arg:"" name:"uri" help:"What to ask: a URI, which the gateway's proxy is asked for, or a path of the gateway."`

	Method  string        `default:"GET" enum:"GET,POST,PUT,DELETE,FETCH" help:"Method: GET, POST, PUT, DELETE or FETCH."`
	Payload string        `help:"Payload, as text."`
	Wait    time.Duration `help:"Ask a group, and collect the responses of its members for so long: whole seconds, no longer than proxy.group_timeout there."`
	Observe bool          `help:"Observe, and print every notification until Ctrl-C, --count or --for."`
	Count   int           `help:"With --observe: end after so many responses; 0: go on."`
	For     time.Duration `help:"With --observe: end after so long; 0: go on."`

	Gateway   string `placeholder:"HOST" help:"Host of the gateway. Default: where the configuration or the credential says, else 127.0.0.1."`
	CoAPPort  int    `name:"coap-port" placeholder:"PORT" help:"Port of plain CoAP, for a --state of a node with --oscore. Default: the configuration's, else 5683."`
	CoAPSPort int    `name:"coaps-port" placeholder:"PORT" help:"Port of CoAP over DTLS. Default: the configuration's, else 5684."`
	where
	Client   string `type:"path" placeholder:"FILE" help:"Client credential (JSON). Default: node-client.json in the data folder; with --state the access token of the member."`
	Identity string `help:"Identity of an enrolled or configured node, with --key-file, in place of --client."`
	KeyFile  string `type:"path" placeholder:"FILE" help:"Key of --identity: hexadecimal, or a file that node enroll wrote."`
	JSON     bool   `help:"Print one JSON object per line."`

	State    string  `type:"path" placeholder:"FILE" help:"Ask as the member that this file of node join, serve or send keeps, with Group OSCORE from end to end."`
	Pairwise bool    `help:"With --state: protect for one member, which the URI has to name, in pairwise mode."`
	Peer     *string `placeholder:"HEX" help:"Sender ID of the member for --pairwise. Default: the only other one."`
}

// Validate is called by argv.
func (c *nodeAskCmd) Validate() error {
	switch {
	case c.Wait < 0 || c.Wait%time.Second != 0:
		return errors.New("--wait: whole seconds, as Multicast-Timeout has them")
	case c.Observe && c.Method != "GET" && c.Method != "FETCH":
		return errors.New("--observe: with GET and FETCH")
	case !c.Observe && (c.Count != 0 || c.For != 0), c.Count < 0, c.For < 0:
		return errors.New("--count and --for: when --observe is to end")
	case c.State == "" && (c.Pairwise || c.Peer != nil):
		return errors.New("--pairwise and --peer: as a member only, which --state names")
	case c.Pairwise && c.Wait > 0:
		return errors.New("--pairwise: a request in pairwise mode is for one member: name its address, without --wait")
	case c.State != "" && !strings.Contains(c.At, "://"):
		return errors.New("--state: a path would be protected from the gateway, too: name a URI")
	}
	return nil
}

// asking is what is asked, and what became of it.
type asking struct {
	*nodeAskCmd
	story   *nodeStory
	enough  context.CancelFunc // --count was reached
	answers int
	refused error // by the one who was asked, or by the proxy
}

// Run asks over DTLS.
func (c *nodeAskCmd) Run(e *env) error {
	as := nodeTalkFlags{nodeJoinCmd: nodeJoinCmd{
		Gateway: c.Gateway, CoAPPort: c.CoAPPort, CoAPSPort: c.CoAPSPort, where: c.where, Client: c.Client, Identity: c.Identity, KeyFile: c.KeyFile,
	}}
	at, client, err := as.locate()
	if err != nil && (c.State == "" || at.coaps == "" || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	if c.For > 0 {
		var free context.CancelFunc
		ctx, free = context.WithTimeout(ctx, c.For)
		defer free()
	}
	a := &asking{nodeAskCmd: c, story: newNodeStory(e.stdout, c.JSON), enough: cancel}
	if c.State != "" {
		err = a.asMember(ctx, e, &as, at, client)
	} else {
		err = dialed(ctx, at, client, func(t node.Transport) error { return a.ask(ctx, t) })
	}
	switch {
	case e.ctx.Err() != nil:
		return nil
	case err != nil && ctx.Err() == nil:
		return err
	case a.answers == 0 && a.refused == nil && c.Wait > 0:
		return withHint(fmt.Errorf("nobody of the group answered within %v", c.Wait),
			"is the interface of the rule (proxy.allow[].interface) the one that leads to the group?")
	case a.answers == 0 && a.refused == nil:
		return fmt.Errorf("no answer within %v", c.For)
	}
	return a.refused
}

// dialed opens an association with a pre-shared key for as long as f takes.
func dialed(ctx context.Context, at nodeAddrs, client node.Client, f func(node.Transport) error) error {
	dctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	t, err := node.DialDTLS(dctx, at.coaps, []byte(client.Identity), client.Key.Bytes())
	if err != nil {
		return nodeAdvice("open a DTLS association with", at.coaps, err)
	}
	if err = f(t); err != nil {
		err = nodeAdvice("ask", at.coaps, err)
	}
	if cerr := t.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

// ask asks without any group keys.
func (a *asking) ask(ctx context.Context, t node.Transport) error {
	req := &coap.Request{Code: methodNamed(a.Method), Payload: []byte(a.Payload)}
	if strings.Contains(a.At, "://") {
		req.Options.AddString(coap.ProxyUri, a.At)
	} else {
		setPathQuery(&req.Options, a.At)
	}
	if a.Observe {
		req.Options.SetUint(coap.ObserveOption, 0)
	}
	switch {
	case a.Wait > 0:
		return node.AskGroup(ctx, t, req, a.Wait, a.came)
	case a.Observe:
		return node.Watch(ctx, t, req, a.came)
	}
	r, err := t.Do(ctx, req)
	if err == nil {
		a.came(r)
	}
	return err
}

// setPathQuery makes options of a path with a query, where there is one.
func setPathQuery(o *coap.Options, at string) {
	path, query, _ := strings.Cut(at, "?")
	o.SetPath(coap.PathOf(path)...)
	if query != "" {
		for _, q := range strings.Split(query, "&") {
			o.AddString(coap.UriQuery, q)
		}
	}
}

// came tells of a response.
func (a *asking) came(r *coap.Response) {
	if err := a.story.asked(r); err != nil {
		a.refused = err
	}
	a.counted(r.Options.Has(coap.ObserveOption))
}

// counted counts a response; on: more are to come by themselves.
func (a *asking) counted(on bool) {
	a.answers++
	switch {
	case a.Observe && !on && a.Wait == 0:
		a.story.tell(nodeStep{Event: "over"}, "%s  That was the last: nothing is observed there, or not any more.", clock())
	case a.answers == a.Count:
		a.enough()
	}
}

// asked tells of a response; an error when it refuses and no server of a group did so.
func (s *nodeStory) asked(r *coap.Response) error {
	from, relayed := node.Responder(r)
	step := nodeStep{Event: "answer", Addr: from, Code: r.Code.String(), Payload: fmt.Sprintf("%.1000q", r.Payload)}
	who := ""
	if relayed {
		who = from + " answers: "
	}
	s.tell(step, "%s  %s%v %s", clock(), who, r.Code, step.Payload)
	if relayed || r.Code.IsSuccess() {
		return nil
	}
	err := fmt.Errorf("refused with %v", r.Code)
	if v, ok := r.Options.Uint(coap.MaxAge); ok && r.Code == coap.ServiceUnavailable {
		return withHint(err, fmt.Sprintf("not before %d s have passed; the log of the gateway says why", v))
	}
	if v, ok := r.Options.Get(oscore.MulticastTimeout); ok && len(v) == 0 {
		return withHint(err, "this leads to a group: say by --wait how long responses are wanted")
	}
	return err
}

func methodNamed(name string) coap.Code {
	for code := coap.GET; code <= coap.FETCH; code++ {
		if code.String() == name {
			return code
		}
	}
	return coap.Empty
}
