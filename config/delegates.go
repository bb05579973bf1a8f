package config

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

// Network says how messages of a group travel that delegates send and get.
type Network struct {
	Multicast string        `yaml:"multicast"` // IPv4 multicast address and port; "": none
	Interface string        `yaml:"interface"` // that multicast comes and goes by; "": loopback
	Leisure   time.Duration `yaml:"leisure"`   // RFC 7252, Section 8.2
	Collect   time.Duration `yaml:"collect"`   // how long responses to a group request are waited for
}

// Upstream says how a Group Manager elsewhere is reached, and whose tokens it takes.
type Upstream struct {
	AS       string `yaml:"as"`       // token endpoint, coaps://; "": the embedded Authorization Server
	Audience string `yaml:"audience"` // of the Group Manager
	Identity string `yaml:"identity"` // psk_identity of this gateway at the Authorization Server
	KeyFile  string `yaml:"key_file"` // hex

	// Relay passes DTLS datagrams on, so that nodes themselves are members.
	Relay       bool   `yaml:"relay"`
	RelayListen string `yaml:"relay_listen"` // host:port
	RelayFlows  int    `yaml:"relay_flows"`  // nodes at one time

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// Delegate is a legacy node for which the gateway joins groups.
type Delegate struct {
	Name      string          `yaml:"name"`
	Auth      DelegateAuth    `yaml:"auth"`
	Groups    []DelegateGroup `yaml:"groups"`
	Sleepy    bool            `yaml:"sleepy"`     // asked only while awake
	Awake     time.Duration   `yaml:"awake"`      // after each sign of life
	Hold      time.Duration   `yaml:"hold"`       // the most that a request waits for the node
	RPS       float64         `yaml:"rps"`        // messages per second to it, and from it
	MQTTTopic string          `yaml:"mqtt_topic"` // of a sensor that speaks MQTT only

	// MQTTPasswordFile is its password at the embedded broker; its user is Name.
	MQTTPasswordFile string `yaml:"mqtt_password_file"`
	MQTTPassword     Secret `yaml:"-"` // filled by Bootstrap
}

// DelegateAuth says how a legacy node is recognised: one of the three.
type DelegateAuth struct {
	PSKIdentity     string `yaml:"psk_identity"`
	PSKFile         string `yaml:"psk_file"`         // hex
	CertSHA256      string `yaml:"cert_sha256"`      // of its public key (SubjectPublicKeyInfo), hex
	InsecureAddress string `yaml:"insecure_address"` // IP address and port, without any proof
	Interface       string `yaml:"interface"`        // on which insecure_address is
	Listen          string `yaml:"listen"`           // address for its requests, bound to the interface; "": none

	Key Secret `yaml:"-"` // filled by Bootstrap
}

// DelegateGroup is one group that a node is in.
type DelegateGroup struct {
	Name      string     `yaml:"name"`
	Roles     []string   `yaml:"roles"`
	Listen    string     `yaml:"listen"`    // where group members reach the node, host:port; "": 127.0.0.1, any port
	SendPath  string     `yaml:"send_path"` // below it the node's requests are for the group; "": none
	Resources []Resource `yaml:"resources"`
}

// Resource is a resource of a legacy node, and what group members may do with it.
type Resource struct {
	Path    string   `yaml:"path"`
	Methods []string `yaml:"methods"`
}

// Local says whether this gateway is the Group Manager.
func (g Group) Local() bool { return g.GM == "local" }

// Group returns the groups entry with a name, nil when there is none.
func (c *Config) Group(name string) *Group {
	for i := range c.Groups {
		if c.Groups[i].Name == name {
			return &c.Groups[i]
		}
	}
	return nil
}

// DelegateLifetime is that of the tokens that the embedded Authorization Server gives
// for delegates; they are renewed long before.
const DelegateLifetime = 24 * time.Hour

// DelegateClient is the identity as which a delegate gets tokens from the embedded
// Authorization Server. Nobody else can have it: its key is random at each start.
func DelegateClient(name string) string { return "delegate:" + name }

// delegateMethods are what a resource of a legacy node may be asked for.
var delegateMethods = []string{"GET", "POST", "PUT", "DELETE", "FETCH", "PATCH", "iPATCH"}

// validateRemote checks where the Group Manager of a group is.
func (g Group) validateRemote(f *faults, key string) {
	u := g.Upstream
	if !g.Local() {
		at, err := url.Parse(g.GM)
		if err != nil || at.Scheme != "coaps" && at.Scheme != "coap" || at.Hostname() == "" || at.Path != "" || at.RawQuery != "" || at.User != nil {
			f.add(key+".gm", "must be local, coaps://HOST or coap://HOST (OSCORE), not %q", g.GM)
		}
	}
	if u.AS != "" {
		if at, ok := validateURI(f, key+".upstream.as", u.AS, "coaps"); ok && at.Path != "/token" {
			f.add(key+".upstream.as", "must end in /token")
		}
		required(f, key+".upstream.audience", u.Audience, "tokens are for one audience")
		required(f, key+".upstream.identity", u.Identity, "the Authorization Server knows this gateway by it")
		required(f, key+".upstream.key_file", u.KeyFile, "the association with the Authorization Server needs a key")
	}
	switch {
	case !u.Relay && u.RelayListen != "":
		f.add(key+".upstream.relay_listen", "is for relay: true")
	case u.Relay && !strings.HasPrefix(g.GM, "coaps://"):
		f.add(key+".upstream.relay", "passes DTLS on: gm must be coaps://HOST")
	case u.Relay && !validAddr(u.RelayListen):
		f.add(key+".upstream.relay_listen", "must be host:port or :port: nodes reach their Group Manager there")
	}
	inRange(f, key+".upstream.relay_flows", u.RelayFlows, 1, 100_000)
	n := g.Network
	if n.Multicast != "" {
		if a, err := netip.ParseAddrPort(n.Multicast); err != nil || !a.Addr().Is4() || !a.Addr().IsMulticast() || a.Port() == 0 {
			f.add(key+".network.multicast", "must be an IPv4 multicast address and a port, such as 239.1.2.3:5693")
		}
	}
	inRange(f, key+".network.leisure", n.Leisure, 0, time.Minute)
	inRange(f, key+".network.collect", n.Collect, 100*time.Millisecond, time.Minute)
}

func (c *Config) validateDelegates(f *faults) {
	names, owners, topics := map[string]int{}, map[string]int{}, map[string]int{}
	taken := func(m map[string]int, i int, key, value string) {
		if value == "" {
			return
		}
		if j, ok := m[value]; ok {
			f.add(key, "%q is taken by delegates[%d]", value, j)
		}
		m[value] = i
	}
	for i, d := range c.Delegates {
		key := fmt.Sprintf("delegates[%d]", i)
		if !groupcomm.ValidGroupName(d.Name) {
			f.add(key+".name", nameRule)
		}
		taken(names, i, key+".name", d.Name)
		taken(owners, i, key+".auth.psk_identity", d.Auth.PSKIdentity)
		taken(owners, i, key+".auth.cert_sha256", strings.ToLower(d.Auth.CertSHA256))
		taken(owners, i, key+".auth.insecure_address", d.Auth.InsecureAddress)
		taken(topics, i, key+".mqtt_topic", d.MQTTTopic)
		c.validateDelegateAuth(f, key+".auth", d)
		inRange(f, key+".awake", d.Awake, time.Second, time.Hour)
		inRange(f, key+".hold", d.Hold, 0, 10*time.Minute)
		inRange(f, key+".rps", d.RPS, 0.01, 10_000)
		if t := d.MQTTTopic; strings.ContainsAny(t, "+#\x00") || strings.HasPrefix(t, "$") || len(t) > 256 ||
			t != "" && (t == c.MQTT.TopicPrefix || strings.HasPrefix(t, c.MQTT.TopicPrefix+"/")) {
			f.add(key+".mqtt_topic", "must be one topic of at most 256 bytes without + # $, outside of mqtt.topic_prefix")
		}
		switch {
		case d.MQTTTopic == "" && d.MQTTPasswordFile != "":
			f.add(key+".mqtt_password_file", "is for mqtt_topic")
		case d.MQTTTopic != "" && c.MQTT.Broker == "" && d.MQTTPasswordFile == "":
			f.add(key+".mqtt_password_file", "is missing: the sensor needs a password at the embedded broker, where its user is %s", d.Name)
		case c.MQTT.Broker != "" && d.MQTTPasswordFile != "":
			f.add(key+".mqtt_password_file", "is for the embedded broker: mqtt.broker knows its own accounts")
		}
		if len(d.Groups) == 0 {
			f.add(key+".groups", "must list the groups that the node is in")
		}
		c.validateDelegateGroups(f, key, d)
	}
}

func (c *Config) validateDelegateAuth(f *faults, key string, d Delegate) {
	a := d.Auth
	given := 0
	for _, v := range []string{a.PSKIdentity, a.CertSHA256, a.InsecureAddress} {
		if v != "" {
			given++
		}
	}
	if given > 1 || given == 0 && d.MQTTTopic == "" {
		f.add(key, "needs one of psk_identity, cert_sha256 and insecure_address; none only with mqtt_topic")
	}
	if (a.PSKIdentity == "") != (a.PSKFile == "") {
		f.add(key+".psk_file", "psk_identity and psk_file go together")
	}
	if len(a.PSKIdentity) > maxIdentity || readsAsKid([]byte(a.PSKIdentity)) || strings.HasPrefix(a.PSKIdentity, DelegateClient("")) {
		f.add(key+".psk_identity", "must have at most %d bytes, and be neither the name of a token's key nor begin with %q", maxIdentity, DelegateClient(""))
	}
	if a.PSKIdentity != "" && slices.ContainsFunc(c.PSK, func(p PSK) bool { return p.Identity == a.PSKIdentity }) {
		f.add(key+".psk_identity", "%q is one of psk: a legacy node has an identity of its own", a.PSKIdentity)
	}
	if b, err := hex.DecodeString(a.CertSHA256); a.CertSHA256 != "" && (err != nil || len(b) != 32) {
		f.add(key+".cert_sha256", "must be 64 hexadecimal digits: the SHA-256 of the node's SubjectPublicKeyInfo")
	}
	if a.InsecureAddress == "" {
		if a.Interface != "" || a.Listen != "" {
			f.add(key+".interface", "interface and listen are for insecure_address")
		}
		return
	}
	if at, err := netip.ParseAddrPort(a.InsecureAddress); err != nil || at.Port() == 0 || at.Addr().IsMulticast() || at.Addr().IsUnspecified() {
		f.add(key+".insecure_address", "must be an IP address and a port, such as 10.0.0.7:5683")
	}
	required(f, key+".interface", a.Interface, "an address proves nothing beyond the network that the node is on")
	if a.Listen != "" && !validAddr(a.Listen) {
		f.add(key+".listen", "must be host:port or :port")
	} else if _, port, _ := net.SplitHostPort(a.Listen); a.Listen != "" && a.Listen == c.Listen.CoAP && port != "0" {
		f.add(key+".listen", "the same address as listen.coap: insecure nodes have a socket of their own, bound to their interface")
	}
	c.warn("delegates: %s is recognised by its address only, which anybody on %s can take", d.Name, a.Interface)
}

// hasPort says whether addr has a port at which the gateway listens for CoAP: a
// socket that hears multicast is bound to it on every address of the machine.
func (c *Config) hasPort(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	return err == nil && slices.ContainsFunc([]string{c.Listen.CoAP, c.Listen.CoAPS}, func(at string) bool {
		_, own, err := net.SplitHostPort(at)
		return err == nil && own == port
	})
}

func (c *Config) validateDelegateGroups(f *faults, key string, d Delegate) {
	seen, paths := map[string]bool{}, map[string]bool{}
	for i, g := range d.Groups {
		k := fmt.Sprintf("%s.groups[%d]", key, i)
		group := c.Group(g.Name)
		switch {
		case group == nil:
			f.add(k+".name", "no groups entry has the name %q", g.Name)
			continue
		case seen[g.Name]:
			f.add(k+".name", "given twice")
		case group.Local() && group.Interface == "hackathon-109":
			f.add(k+".name", "%q speaks hackathon-109 only, which delegates do not", g.Name)
		case group.Upstream.AS == "" && (!c.AuthorizationServer.Enabled || c.DelegateAudience(group) == ""):
			f.add(k+".name", "no Authorization Server gives tokens for %q: set groups[].upstream.as, or have a tokens entry whose key the embedded one issues with", g.Name)
		case !group.Local() && group.Upstream.AS == "" && group.Upstream.Audience == "":
			f.add(k+".name", "set groups[].upstream.audience: the Group Manager of %q is elsewhere", g.Name)
		}
		seen[g.Name] = true
		if at := group.Network.Multicast; len(g.Resources) > 0 && c.hasPort(at) {
			f.add(k+".resources", "the port of %s, where members of %q ask, is that of listen.coap or listen.coaps: give groups[].network.multicast or those another, such as 5693", at, g.Name)
		}
		if len(g.Roles) == 0 {
			f.add(k+".roles", "must list requester, responder, or both")
		}
		for j, r := range g.Roles {
			oneOf(f, fmt.Sprintf("%s.roles[%d]", k, j), r, "requester", "responder")
		}
		if p := g.SendPath; p != "" {
			if !validPath(p) || ownPath(p) {
				f.add(k+".send_path", "must be a path such as /group/%s, not one of the gateway's own", g.Name)
			} else if paths[p] {
				f.add(k+".send_path", "given twice")
			}
			paths[p] = true
			if !slices.Contains(g.Roles, "requester") {
				f.add(k+".send_path", "needs the role requester")
			}
		}
		if g.Listen != "" && !validAddr(g.Listen) {
			f.add(k+".listen", "must be host:port or :port")
		}
		if len(g.Resources) > 0 && !slices.Contains(g.Roles, "responder") {
			f.add(k+".resources", "need the role responder")
		}
		for j, r := range g.Resources {
			rk := fmt.Sprintf("%s.resources[%d]", k, j)
			if !validPath(r.Path) {
				f.add(rk+".path", "must be a path such as /t")
			}
			if len(r.Methods) == 0 {
				f.add(rk+".methods", "must list methods")
			}
			for l, m := range r.Methods {
				k := fmt.Sprintf("%s.methods[%d]", rk, l)
				if oneOf(f, k, m, delegateMethods...) && d.MQTTTopic != "" && m != "GET" {
					f.add(k, "a sensor that speaks MQTT only can be read: GET")
				}
			}
		}
	}
}

// DelegateAudience is the audience of tokens for a group's Group Manager.
func (c *Config) DelegateAudience(g *Group) string {
	if g.Upstream.Audience != "" {
		if g.Upstream.AS == "" && c.IssuerToken(g.Upstream.Audience) == nil {
			return ""
		}
		return g.Upstream.Audience
	}
	if g.Upstream.AS == "" && g.Local() {
		for _, t := range c.Tokens {
			if c.IssuerToken(t.Audience) != nil {
				return t.Audience
			}
		}
	}
	return ""
}

// validPath accepts absolute paths of plain segments.
func validPath(p string) bool {
	if !strings.HasPrefix(p, "/") || len(p) > 255 {
		return false
	}
	for s := range strings.SplitSeq(p[1:], "/") {
		if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "?#% ") {
			return false
		}
	}
	return true
}

// ownPath says whether a path is one that the gateway serves itself.
func ownPath(p string) bool {
	first, _, _ := strings.Cut(p[1:], "/")
	return slices.Contains([]string{"authz-info", "token", "introspect", "ace-group", "group-oscore", "gw", ".well-known", "manage", "revoke"}, first)
}
