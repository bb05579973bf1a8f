package bridge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// Config says how rekeys leave the gateway. The zero value delivers by Observe
// only.
type Config struct {
	// Prefix begins every topic; "" means "groupgate".
	Prefix string

	// Broker is the URI of a broker of the operator: tcp, mqtt, ssl, tls,
	// mqtts, ws or wss. "" means the embedded one, if it has a listener.
	Broker   string
	CAFile   string // PEM; "": the system's roots
	CertFile string // PEM, client certificate; "" none
	KeyFile  string // PEM
	User     string // the gateway's own account at Broker; "" none
	Password string

	// MemberUser and MemberPassword are given to members instead of
	// credentials of their own, when Broker has one account for all of them.
	// The embedded broker does not use them.
	MemberUser     string
	MemberPassword string
	// ClientID is the gateway's client identifier at Broker. "": one is made
	// once and kept in the store.
	ClientID string

	// Listen is the address of the embedded broker without TLS, ListenTLS with
	// it; "" none. Listeners that are given here are used as they are, besides
	// the addresses.
	Listen        string
	ListenTLS     string
	TLSCertFile   string // PEM, needed with ListenTLS
	TLSKeyFile    string // PEM
	Listeners     []net.Listener
	MaxClients    int // connections to the embedded broker; 0: 10000
	InsecurePlain bool

	// MulticastInterface is where rekeys of key trees leave by IP multicast, ""
	// as the system routes; MulticastHops is over how many routers, 0: 1.
	MulticastInterface string
	MulticastHops      int

	// PublicURI is what members are told. "": Broker, or the address of the
	// embedded broker's TLS listener, else of its plain one.
	PublicURI string

	// Sensors are peers that publish to a topic of their own and do nothing else:
	// what they say goes to Deps.Reading.
	Sensors []Sensor

	// AsleepAfter is how long after the broker took a message a silent member
	// counts as asleep; 0: 90 s.
	AsleepAfter time.Duration

	// Policy is that of groups that Policies does not name.
	Policy   Policy
	Policies map[string]Policy
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = "groupgate"
	}
	if c.MaxClients == 0 {
		c.MaxClients = defaultMaxClients
	}
	if c.AsleepAfter == 0 {
		c.AsleepAfter = defaultAsleepAfter
	}
	if c.MulticastHops == 0 {
		c.MulticastHops = 1
	}
	c.Policy = c.Policy.withDefaults()
	return c
}

// mqtt says whether members can be reached by MQTT at all.
func (c Config) mqtt() bool { return c.Broker != "" || c.embedded() }

func (c Config) embedded() bool {
	return c.Broker == "" && (c.Listen != "" || c.ListenTLS != "" || len(c.Listeners) > 0)
}

// LogValue keeps passwords out of logs.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("prefix", c.Prefix), slog.Bool("embedded", c.embedded()))
}

// Validate reports every problem at once. It reads no files.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if strings.ContainsAny(c.Prefix, "+#\x00 ") || strings.HasPrefix(c.Prefix, "/") || strings.HasSuffix(c.Prefix, "/") ||
		strings.HasPrefix(c.Prefix, "$") || len(c.Prefix) > 128 {
		bad("mqtt.topic_prefix", "%q cannot begin a topic", c.Prefix)
	}
	if c.Broker != "" {
		c.checkURI("mqtt.broker", c.Broker, bad)
	}
	if c.PublicURI != "" {
		c.checkURI("mqtt.public_uri", c.PublicURI, bad)
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		bad("mqtt.cert_file", "certificate and key go together")
	}
	if c.Listen != "" && !c.InsecurePlain && !loopback(c.Listen) {
		// docs/protocol.md, Section 5: passwords would cross the network in clear.
		bad("listen.mqtt", "%q is not a loopback address: use listen.mqtts, or mqtt.insecure: true", c.Listen)
	}
	for _, l := range c.Listeners {
		if !c.InsecurePlain && !loopback(l.Addr().String()) {
			bad("listen.mqtt", "%q is not a loopback address", l.Addr())
		}
	}
	if c.ListenTLS != "" && (c.TLSCertFile == "" || c.TLSKeyFile == "") {
		bad("listen.mqtts", "needs a certificate and a key")
	}
	if c.MaxClients < 0 || c.AsleepAfter < 0 {
		bad("mqtt", "negative limits make no sense")
	}
	if err := c.Policy.validate(); err != nil {
		bad("delivery", "%v", err)
	}
	for g, p := range c.Policies {
		if err := p.validate(); err != nil {
			bad("delivery of "+g, "%v", err)
		}
	}
	return errors.Join(errs...)
}

// checkURI accepts what the client library can dial, and plain transports only
// to this machine.
func (c Config) checkURI(key, raw string, bad func(key, format string, args ...any)) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		bad(key, "not the URI of a broker") // the URI may hold a password
		return
	}
	if u.User != nil {
		bad(key, "an account belongs into user and password_file, not into the URI")
	}
	switch u.Scheme {
	case "ssl", "tls", "mqtts", "wss":
	case "tcp", "mqtt", "ws":
		if !c.InsecurePlain && !loopback(u.Host) {
			bad(key, "%s without TLS to %q needs mqtt.insecure: true", u.Scheme, u.Host)
		}
	default:
		bad(key, "scheme %q is none of mqtt, mqtts, tcp, ssl, tls, ws, wss", u.Scheme)
	}
}

// loopback says whether a host or host:port can only be reached from this
// machine. A name other than localhost may resolve to anything.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// clientTLS is the configuration towards the operator's broker.
func (c Config) clientTLS() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("bridge: mqtt.ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("bridge: mqtt.ca_file: no certificate in it")
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("bridge: mqtt.cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}
