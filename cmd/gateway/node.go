package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
	"github.com/seed4911071e/groupgate/oscore"
)

// nodeCmd simulates nodes, and enrolls real ones.
type nodeCmd struct {
	Join    nodeJoinCmd    `cmd:"" help:"Join a group as a node would, then follow its rekeys."`
	Send    nodeSendCmd    `cmd:"" help:"Join a group, and send requests protected with Group OSCORE to its members."`
	Serve   nodeServeCmd   `cmd:"" help:"Join a group, and answer requests protected with Group OSCORE of its members."`
	Ask     nodeAskCmd     `cmd:"" help:"Ask the gateway over DTLS, or by its proxy a server or a group, without any group keys."`
	Swarm   nodeSwarmCmd   `cmd:"" help:"Play a fleet: up to 131072 nodes from one process, at this gateway or another server."`
	Enroll  nodeEnrollCmd  `cmd:"" help:"Enroll nodes from a file: each gets a credential and a policy, while the gateway runs."`
	List    nodeListCmd    `cmd:"" help:"List the enrolled nodes."`
	Disable nodeDisableCmd `cmd:"" help:"Shut nodes out at once: no handshake, no token, no membership."`
	Enable  nodeEnableCmd  `cmd:"" help:"Let disabled nodes in again; they join anew."`
	Remove  nodeRemoveCmd  `cmd:"" help:"Forget nodes; what they have ends as with disable."`
}

// Times of the simulated node.
const (
	nodeDialTimeout = 8 * time.Second // one step: a token, a handshake, a join
	nodeAwake       = 2 * time.Second // how long a sleeper listens to MQTT after it wakes
	nodeLeaveTime   = 5 * time.Second
)

// nodeJoinCmd plays one node: token, token transfer, DTLS or OSCORE, join, rekeys.
type nodeJoinCmd struct {
	Group string `default:"sensors" help:"Group to join."`
	Roles string `default:"requester,responder" help:"Roles to ask for: requester, responder, or monitor alone."`
	Name  string `default:"node-1" help:"Name of the node, put into its credential."`

	Gateway   string `placeholder:"HOST" help:"Host of the gateway. Default: where the configuration or the credential says, else 127.0.0.1."`
	CoAPPort  int    `name:"coap-port" placeholder:"PORT" help:"Port of plain CoAP, for the token transfer and OSCORE. Default: the configuration's, else 5683."`
	CoAPSPort int    `name:"coaps-port" placeholder:"PORT" help:"Port of CoAP over DTLS. Default: the configuration's, else 5684."`
	where
	Client   string `type:"path" placeholder:"FILE" help:"Client credential (JSON). Default: node-client.json in the data folder."`
	Identity string `help:"Identity of an enrolled or configured node, with --key-file, in place of --client."`
	KeyFile  string `type:"path" placeholder:"FILE" help:"Key of --identity: hexadecimal, or a file that node enroll wrote."`
	Audience string `help:"Audience of the access token. Default: the credential's."`

	CertFile    string `type:"path" placeholder:"FILE" help:"Certificate of the node and those above it (PEM), for groups with certificates as credentials."`
	CertKeyFile string `type:"path" placeholder:"FILE" help:"Private key of --cert-file (PEM, PKCS #8)."`
	RootsFile   string `type:"path" placeholder:"FILE" help:"Roots for the certificates of the Group Manager and of other members (PEM). Without it only possession of their keys is verified."`

	RPK        bool   `name:"rpk" help:"Associate by a raw public key (RFC 7250) in place of a pre-shared key: a new one of Ed25519, or that of --rpk-key-file. It is that of the credential as well where it fits the group."`
	RPKKeyFile string `name:"rpk-key-file" type:"path" placeholder:"FILE" help:"Private key for --rpk, of Ed25519 or P-256 (PEM, PKCS #8)."`

	Interface   string        `default:"current" enum:"current,draft-03,hackathon-109" help:"Dialect to speak: current, or draft-03 or hackathon-109 where the group is served in that."`
	OSCORE      bool          `name:"oscore" help:"Protect requests with OSCORE over plain CoAP (RFC 9203) instead of DTLS."`
	Proxy       string        `placeholder:"HOST:PORT" help:"Plain CoAP of a proxy to send everything of --oscore through; tokens are gotten without it."`
	ProxyName   string        `name:"proxy-name" placeholder:"NAME" help:"Name by which --proxy knows the Group Manager: proxy.hosts[].name there."`
	MQTT        bool          `help:"Receive rekeys over MQTT instead of observing the group."`
	BrokerCA    string        `name:"broker-ca-file" type:"path" placeholder:"FILE" help:"Roots for the certificate of the MQTT broker (PEM). Default: those of the system."`
	BrokerCert  string        `name:"broker-cert-file" type:"path" placeholder:"FILE" help:"Certificate to show to the MQTT broker (PEM), where it wants one."`
	BrokerKey   string        `name:"broker-key-file" type:"path" placeholder:"FILE" help:"Private key of --broker-cert-file (PEM)."`
	Multicast   string        `name:"rekey-multicast" placeholder:"INTERFACE" help:"Receive rekeys by IP multicast on this interface, in a group with a key tree and a control_group_uri."`
	Phased      bool          `default:"true" negatable:"" help:"Ask for scheduled rekeys in two phases: hold the new keys beside those in use, and begin with them when all have theirs."`
	Poll        time.Duration `default:"1m" help:"Ask this often for the version, beside listening: a gateway that restarted is noticed then."`
	Sleep       time.Duration `placeholder:"DURATION" help:"Sleep this long between short times awake, instead of listening all the time."`
	State       string        `type:"path" placeholder:"FILE" help:"File that keeps the membership, sequence numbers and Replay Windows, so that a node that was stopped or killed goes on. Created when absent."`
	Creds       bool          `default:"true" negatable:"" help:"Ask for the credentials of the other members."`
	Once        bool          `help:"Join, print, leave, exit."`
	LeaveOnExit bool          `help:"Leave the group on SIGINT; without it the membership stays."`
	JSON        bool          `help:"Print one JSON object per line."`
}

// run plays the node until ctx ends or the membership is over.
func (c *nodeJoinCmd) run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	roles, err := groupcomm.ParseRoles(c.Roles)
	if err != nil {
		return fmt.Errorf("--roles: %w", err)
	}
	dialect, _ := groupcomm.InterfaceByName(c.Interface)
	at, client, err := c.locate()
	if err != nil {
		return err
	}
	story := newNodeStory(out, c.JSON)
	state, err := c.openState(log)
	if err != nil {
		return err
	}
	defer state.close()
	story.start(c.Name, c.Group, roles)

	if dialect != groupcomm.Current {
		access, err := c.token(ctx, at, client, roles)
		if err != nil {
			return nodeAdvice("get an access token from", at.coaps, err)
		}
		story.token(at.coaps, client.Identity, access)
		return c.runLegacy(ctx, dialect, roles, at, access, story, log)
	}
	member, err := c.begin(ctx, at, client, roles, state, story, story.event, log)
	if err != nil {
		return err
	}
	return c.live(ctx, member, at, story, log, func() error { return c.stay(ctx, member) })
}

// membership is what a node of any dialect has after its join.
type membership interface {
	Leave(ctx context.Context) error
	Close() error
}

// live has a node that joined follow the group, by stay, until ctx ends.
func (c *nodeJoinCmd) live(ctx context.Context, m membership, at nodeAddrs, story *nodeStory, log *slog.Logger, stay func() error) error {
	defer func() {
		if err := m.Close(); err != nil {
			log.Debug("closing failed", "err", err)
		}
	}()
	if c.Once {
		return c.leave(ctx, m)
	}
	story.waiting(c.Sleep, c.MQTT)
	if err := stay(); err != nil {
		return nodeAdvice("follow the group at", c.over(at), err)
	}
	if c.LeaveOnExit {
		return c.leave(ctx, m)
	}
	story.stays()
	return nil
}

// enter posts the token, opens the association and joins. hear is told what
// happens then.
func (c *nodeJoinCmd) enter(
	ctx context.Context, at nodeAddrs, access *node.Access, roles groupcomm.Roles, story *nodeStory, hear func(node.Event), log *slog.Logger,
) (*node.Member, error) {
	t, transfer, dial, err := c.associate(ctx, at, access, story)
	if err != nil {
		return nil, err
	}
	cfg, err := c.memberConfig(roles, dial, hear, log)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	cfg.Transfer = transfer
	c.sameKey(&cfg, access)
	member, err := node.New(cfg, t)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	joinCtx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	if err := member.Join(joinCtx); err != nil {
		return nil, errors.Join(nodeAdvice("join over", c.over(at), err), member.Close())
	}
	state, _ := member.State()
	story.joined(state)
	return member, nil
}

// memberConfig is what the flags say about a member.
func (c *nodeJoinCmd) memberConfig(roles groupcomm.Roles, dial func(context.Context) (node.Transport, error), hear func(node.Event), log *slog.Logger) (node.Config, error) {
	cfg := node.Config{
		Group: c.Group, Roles: roles, Subject: c.Name,
		WantCreds: c.Creds, MQTT: c.MQTT, Phased: c.Phased, PollEvery: c.Poll,
		Multicast: c.Multicast != "", MulticastInterface: c.Multicast, Redial: dial, OnEvent: hear, Log: log,
	}
	return cfg, c.certificate(&cfg)
}

// over is where the requests of a member go.
func (c *nodeJoinCmd) over(at nodeAddrs) string {
	if c.OSCORE {
		return at.coap
	}
	return at.coaps
}

// associate posts the token and opens an association with what it confirms.
func (c *nodeJoinCmd) associate(ctx context.Context, at nodeAddrs, access *node.Access, story *nodeStory) (
	node.Transport, *groupcomm.TokenTransferResponse, func(context.Context) (node.Transport, error), error,
) {
	if c.OSCORE {
		first, cancel := context.WithTimeout(ctx, nodeDialTimeout)
		defer cancel()
		t, transfer, err := node.DialOSCOREVia(first, at.coap, c.ProxyName, access)
		if err != nil {
			return nil, nil, nil, nodeAdvice("post the access token to", at.coap, err)
		}
		story.posted(at.coap, transfer)
		story.derived(at.coap, access, transfer)
		return t, transfer, c.dialer(at, access), nil
	}
	transfer, err := c.post(ctx, at, access)
	if err != nil {
		return nil, nil, nil, nodeAdvice("post the access token to", at.coap, err)
	}
	story.posted(at.coap, transfer)
	t, dial, err := c.open(ctx, at, access, story)
	return t, transfer, dial, err
}

// open opens the first association over DTLS; dial opens others.
func (c *nodeJoinCmd) open(ctx context.Context, at nodeAddrs, access *node.Access, story *nodeStory) (
	t node.Transport, dial func(context.Context) (node.Transport, error), err error,
) {
	dial = c.dialer(at, access)
	if t, err = dial(ctx); err != nil {
		return nil, nil, nodeAdvice("open a DTLS association with", at.coaps, err)
	}
	story.associated(at.coaps, access)
	return t, dial, nil
}

// dialer opens associations with what the token confirms: over DTLS, or with an OSCORE
// context of its own each, for which the token is posted again.
func (c *nodeJoinCmd) dialer(at nodeAddrs, access *node.Access) func(context.Context) (node.Transport, error) {
	return func(ctx context.Context) (node.Transport, error) {
		ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
		defer cancel()
		switch {
		case c.OSCORE:
			t, _, err := node.DialOSCOREVia(ctx, at.coap, c.ProxyName, access)
			return t, err
		case access.PrivateKey != nil:
			return node.DialRawKey(ctx, at.coaps, access.PrivateKey, access.ServerKey)
		}
		return node.DialDTLS(ctx, at.coaps, access.Identity(), access.Key.Bytes())
	}
}

// stay follows the group until ctx ends, which is no error.
func (c *nodeJoinCmd) stay(ctx context.Context, m *node.Member) error {
	for {
		var err error
		switch {
		case c.Sleep == 0:
			err = m.Follow(ctx)
		case c.MQTT:
			awake, cancel := context.WithTimeout(ctx, nodeAwake)
			if _, err = m.Sleep(awake, nodeAwake, nodeAwake+c.Sleep, groupcomm.ChannelMQTT); err != nil && !errors.Is(err, node.ErrLost) {
				// Whatever it is, following meets it again and knows what to do.
				err = nil
			}
			if err = m.Follow(awake); errors.Is(err, context.DeadlineExceeded) {
				err = nil // back to sleep
			}
			cancel()
		default:
			if err = m.Wake(ctx, c.Sleep); errors.Is(err, node.ErrLost) && ctx.Err() == nil {
				if err = m.Reconnect(ctx); err == nil {
					continue
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil || c.Sleep == 0 {
			return err
		}
		nap := time.NewTimer(c.Sleep)
		select {
		case <-ctx.Done():
			nap.Stop()
			return nil
		case <-nap.C:
		}
	}
}

// leave works after ctx ended as well.
func (c *nodeJoinCmd) leave(ctx context.Context, m membership) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeLeaveTime)
	defer cancel()
	return m.Leave(ctx)
}

func (c *nodeJoinCmd) token(ctx context.Context, at nodeAddrs, client node.Client, roles groupcomm.Roles) (*node.Access, error) {
	key, err := c.rawKey()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	t, err := node.DialDTLS(ctx, at.coaps, []byte(client.Identity), client.Key.Bytes())
	if err != nil {
		return nil, err
	}
	audience := c.Audience
	if audience == "" {
		audience = client.Audience
	}
	access, err := node.RequestToken(ctx, t, node.TokenRequest{
		Audience: audience,
		Scope:    groupcomm.Scope{{Group: c.Group, Roles: roles}},
		// A token of draft-03 has its roles in text.
		TextScope: c.Interface == groupcomm.Draft03.String(),
		OSCORE:    c.OSCORE,
		Key:       key,
	})
	return access, errors.Join(err, t.Close())
}

func (c *nodeJoinCmd) post(ctx context.Context, at nodeAddrs, access *node.Access) (*groupcomm.TokenTransferResponse, error) {
	return overUDP(ctx, at.coap, func(ctx context.Context, t node.Transport) (*groupcomm.TokenTransferResponse, error) {
		return node.PostToken(ctx, t, access)
	})
}

// overUDP posts something over plain CoAP, for which nothing stays open.
func overUDP[T any](ctx context.Context, addr string, post func(context.Context, node.Transport) (T, error)) (answer T, err error) {
	ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
	defer cancel()
	t, err := node.DialUDP(ctx, addr)
	if err != nil {
		return answer, err
	}
	answer, err = post(ctx, t)
	return answer, errors.Join(err, t.Close())
}

// nodeAddrs are the listeners of the gateway, "host:port".
type nodeAddrs struct{ coap, coaps string }

// locate finds the gateway and the credential: flags first, then the
// configuration, then what the credential says, then the standard ports. The
// addresses are good although there is no credential.
func (c *nodeJoinCmd) locate() (nodeAddrs, node.Client, error) {
	cfg, err := c.load()
	if err != nil {
		return nodeAddrs{}, node.Client{}, err
	}
	client, err := c.credential(cfg)
	host, coapPort, coapsPort := "127.0.0.1", "5683", "5684"
	switch {
	case c.Config != "":
		takeAddr(cfg.Listen.CoAP, &host, &coapPort)
		takeAddr(cfg.Listen.CoAPS, &host, &coapsPort)
	case client.AS != "":
		if u, err := url.Parse(client.AS); err == nil {
			takeAddr(u.Host, &host, &coapsPort)
		}
	}
	if c.Gateway != "" {
		host = c.Gateway
	}
	if c.CoAPPort != 0 {
		coapPort = strconv.Itoa(c.CoAPPort)
	}
	if c.CoAPSPort != 0 {
		coapsPort = strconv.Itoa(c.CoAPSPort)
	}
	if c.Proxy != "" {
		return nodeAddrs{coap: c.Proxy, coaps: net.JoinHostPort(host, coapsPort)}, client, err
	}
	return nodeAddrs{coap: net.JoinHostPort(host, coapPort), coaps: net.JoinHostPort(host, coapsPort)}, client, err
}

// credential is what the flags name.
func (c *nodeJoinCmd) credential(cfg *config.Config) (node.Client, error) {
	if c.Identity != "" || c.KeyFile != "" {
		return enrolledCredential(c.Identity, c.KeyFile)
	}
	file := c.Client
	if file == "" {
		file = cfg.Path(node.ClientFile)
	}
	client, err := node.LoadClient(file)
	if errors.Is(err, fs.ErrNotExist) {
		return client, withHint(err, "a first `gateway run` without a configuration creates this credential in its data folder: "+
			"start the gateway, name its data folder by --data-dir, or another credential by --client or by --identity and --key-file")
	}
	return client, err
}

// takeAddr takes host and port out of a listen address. An address that means
// all interfaces leaves the host alone.
func takeAddr(addr string, host, port *string) {
	h, p, err := net.SplitHostPort(addr)
	if err != nil {
		return
	}
	*port = p
	if ip := net.ParseIP(h); h != "" && (ip == nil || !ip.IsUnspecified()) {
		*host = h
	}
}

// nodeAdvice says what was tried, where, what went wrong, and what to do next.
func nodeAdvice(what, addr string, err error) error {
	advice := ""
	var e *node.Error
	switch {
	case errors.Is(err, node.ErrUnauthorized):
		advice = "the access token is unknown there or expired: run the command again for a new one"
	case errors.Is(err, node.ErrEvicted), errors.Is(err, node.ErrNotMember):
		advice = "the membership is over: run the command again to join anew"
	case errors.Is(err, node.ErrGroupDeleted):
		advice = "its operator deleted the group: where there is one of that name again, or another, run the command again to join it"
	case errors.Is(err, oscore.ErrUnknownPeer):
		advice = "no member has the Sender ID of --peer: `gateway group show` lists theirs"
	case errors.Is(err, groupcomm.ErrInactive):
		advice = "the group is not active yet: ask its operator, then try again"
	case errors.As(err, &e) && e.Code == coap.ServiceUnavailable:
		advice = "the gateway answered that it cannot now: its log says why, `gateway group list` whether its store works; try again"
	case errors.As(err, &e) && e.Code == coap.TooManyRequests:
		advice = "more requests came from this address than limits.per_peer_rps allows: try again, or raise it"
	case errors.As(err, &e):
		advice = "the gateway answered and refused: its policies (authorization_server.policies) say which groups and roles this client may have, `gateway group list` which groups exist"
	case errors.Is(err, node.ErrLost), errors.Is(err, context.DeadlineExceeded):
		advice = "nobody answers there: is `gateway run` running, on this address (--gateway, --coap-port, --coaps-port), with the data folder that this credential is from (--data-dir)? A wrong pre-shared key meets the same silence: is it the one that the gateway has (--key-file)?"
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			advice = "is `gateway run` running on this address (--gateway, --coap-port, --coaps-port)?"
		} else if what != "join over" && what != "follow the group at" {
			advice = "is the credential from this gateway's data folder (--data-dir, --client)? Is --identity one of its psk entries, or enrolled (`gateway node list`)?"
		}
	}
	err = fmt.Errorf("cannot %s %s: %w", what, addr, err)
	if advice == "" {
		return err
	}
	return withHint(err, advice)
}
