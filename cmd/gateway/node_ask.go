package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// nodeAskCmd plays a client that knows nothing of groups and their keys: of the
// gateway's own resources, and of its proxy.
type nodeAskCmd struct {
	At string `arg:"" name:"uri" help:"What to ask: a URI, which the gateway's proxy is asked for, or a path of the gateway."`

	Method  string        `default:"GET" enum:"GET,POST,PUT,DELETE,FETCH" help:"Method: GET, POST, PUT, DELETE or FETCH."`
	Payload string        `help:"Payload, as text."`
	Wait    time.Duration `help:"Ask a group, and collect the responses of its members for so long: whole seconds, no longer than proxy.group_timeout there."`

	Gateway   string `placeholder:"HOST" help:"Host of the gateway. Default: where the configuration or the credential says, else 127.0.0.1."`
	CoAPSPort int    `name:"coaps-port" placeholder:"PORT" help:"Port of CoAP over DTLS. Default: the configuration's, else 5684."`
	where
	Client   string `type:"path" placeholder:"FILE" help:"Client credential (JSON). Default: node-client.json in the data folder."`
	Identity string `help:"Identity of an enrolled or configured node, with --key-file, in place of --client."`
	KeyFile  string `type:"path" placeholder:"FILE" help:"Key of --identity: hexadecimal, or a file that node enroll wrote."`
	JSON     bool   `help:"Print one JSON object per line."`
}

// Validate is called by argv.
func (c *nodeAskCmd) Validate() error {
	if c.Wait < 0 || c.Wait%time.Second != 0 {
		return errors.New("--wait: whole seconds, as Multicast-Timeout has them")
	}
	return nil
}

// Run asks over DTLS.
func (c *nodeAskCmd) Run(e *env) error {
	as := nodeJoinCmd{Gateway: c.Gateway, CoAPSPort: c.CoAPSPort, where: c.where, Client: c.Client, Identity: c.Identity, KeyFile: c.KeyFile}
	at, client, err := as.locate()
	if err != nil {
		return err
	}
	req := &coap.Request{Code: methodNamed(c.Method), Payload: []byte(c.Payload)}
	if strings.Contains(c.At, "://") {
		req.Options.AddString(coap.ProxyUri, c.At)
	} else {
		path, query, _ := strings.Cut(c.At, "?")
		req.Options.SetPath(coap.PathOf(path)...)
		if query != "" {
			for _, q := range strings.Split(query, "&") {
				req.Options.AddString(coap.UriQuery, q)
			}
		}
	}
	ctx, cancel := context.WithTimeout(e.ctx, nodeDialTimeout)
	t, err := node.DialDTLS(ctx, at.coaps, []byte(client.Identity), client.Key.Bytes())
	cancel()
	if err != nil {
		return nodeAdvice("open a DTLS association with", at.coaps, err)
	}
	story := newNodeStory(e.stdout, c.JSON)
	var refused error
	answers := 0
	each := func(r *coap.Response) {
		answers++
		if err := story.asked(r); err != nil {
			refused = err
		}
	}
	if c.Wait > 0 {
		err = node.AskGroup(e.ctx, t, req, c.Wait, each)
	} else {
		var r *coap.Response
		if r, err = t.Do(e.ctx, req); err == nil {
			each(r)
		}
	}
	if cerr := t.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	switch {
	case e.ctx.Err() != nil:
		return nil
	case err != nil:
		return nodeAdvice("ask", at.coaps, err)
	case answers == 0:
		return withHint(fmt.Errorf("nobody of the group answered within %v", c.Wait),
			"is the interface of the rule (proxy.allow[].interface) the one that leads to the group?")
	}
	return refused
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
