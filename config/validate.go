package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/spell"
)

// Limits of values, our own choices.
const (
	maxLifetime   = 10 * 365 * 24 * time.Hour
	maxBatch      = 5 * time.Minute // a rekey held longer is a leaver with a valid key
	maxStaleSets  = 100
	maxName       = 64
	maxGidPrefix  = 8
	maxEpochBytes = 7
	maxAppGroups  = 16
	maxShards     = 64 // endpoint.MaxShards
)

// Validate reports every fault of the configuration, as a [*FaultError]. It
// reads no files.
func (c *Config) Validate() error {
	f := newFaults(c.file, c.lines)
	c.validate(f)
	return f.err()
}

func (c *Config) validate(f *faults) {
	if c.DataDir == "" {
		f.add("data_dir", "must name a folder")
	}
	c.validateStore(f)
	c.validateListen(f)
	c.validateTokens(f)
	c.validatePSK(f)
	c.validateAS(f)
	if c.Seal.KeyFile == "" {
		f.add("seal.key_file", "must name a file, even when %s is used", SealKeyEnv)
	}
	oneOf(f, "endpoint.kind", c.Endpoint.Kind, EndpointOwn, EndpointStock)
	oneOf(f, "endpoint.handshake", c.Endpoint.Handshake, HandshakePion, HandshakeOwn)
	inRange(f, "endpoint.shards", c.Endpoint.Shards, 0, maxShards)
	if c.Endpoint.Kind == EndpointStock && c.Endpoint.Shards != 1 {
		f.add("endpoint.shards", "is for endpoint.kind: own: the servers of go-coap have one socket")
	}
	inRange(f, "endpoint.hibernate_after", c.Endpoint.HibernateAfter, time.Second, 7*24*time.Hour)
	inRange(f, "limits.sessions", c.Limits.Sessions, 1, 10_000_000)
	inRange(f, "limits.handshakes", c.Limits.Handshakes, 1, 65536)
	c.validateMemory(f)
	inRange(f, "limits.per_peer_rps", c.Limits.PerPeerRPS, 0.01, 1e6)
	inRange(f, "limits.notify_rps", c.Limits.NotifyRPS, 0, 1e6)
	inRange(f, "limits.notify_subnet_rps", c.Limits.SubnetRPS, 0, 1e6)
	c.validateMQTT(f)
	c.validateResourceDirectory(f)
	c.validateProxy(f)
	inRange(f, "audit.retention", c.Audit.Retention, time.Hour, maxLifetime)
	inRange(f, "audit.max_records", c.Audit.MaxRecords, 1000, 1_000_000_000)
	oneOf(f, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(f, "log.format", c.Log.Format, "text", "json")
	c.validateGroups(f)
	c.validateDelegates(f)
	c.validateSockets(f)
}

// What a handshake under way and an idle observer are reckoned to take, in KiB
// (package endpoint, which has the bound kept).
const (
	handshakeKiB = 40
	observerKiB  = 1
)

func (c *Config) validateMemory(f *faults) {
	l := c.Limits
	inRange(f, "limits.memory_mb", l.MemoryMB, 0, 1<<20)
	if l.MemoryMB <= 0 {
		return
	}
	if need := (l.Handshakes*handshakeKiB + 8<<10) >> 10; l.MemoryMB < need {
		f.add("limits.memory_mb", "must be 0 or at least %d: 8, and what limits.handshakes may take, %d KiB each", need, handshakeKiB)
		return
	}
	if holds := (l.MemoryMB<<10 - l.Handshakes*handshakeKiB) / observerKiB; holds < l.Sessions {
		c.warn("limits.memory_mb: %d MiB hold some %d idle observers, limits.sessions allows %d", l.MemoryMB, holds, l.Sessions)
	}
}

func (c *Config) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(c.warnings, w) {
		c.warnings = append(c.warnings, w)
	}
}

func (c *Config) hasInlineSecrets() bool {
	return !c.StorePassword.IsZero() || slices.ContainsFunc(c.Tokens, func(t Token) bool { return !t.SymmetricKey.IsZero() && t.SymmetricKeyFile == "" }) ||
		slices.ContainsFunc(c.PSK, func(p PSK) bool { return !p.Key.IsZero() && p.KeyFile == "" })
}

func (c *Config) validateListen(f *faults) {
	l := c.Listen
	for _, x := range []struct{ key, addr string }{
		{"listen.coaps", l.CoAPS}, {"listen.coap", l.CoAP}, {"listen.http", l.HTTP}, {"listen.mqtt", l.MQTT}, {"listen.mqtts", l.MQTTS},
	} {
		if x.addr != "" && !validAddr(x.addr) {
			f.add(x.key, `must be host:port or :port, or "" for none, not %q`, x.addr)
		}
	}
	// docs/protocol.md, Section 5: plain MQTT stays on loopback.
	if l.MQTT != "" && validAddr(l.MQTT) && !isLoopback(l.MQTT) && !c.MQTT.Insecure {
		f.add("listen.mqtt", "plain MQTT beyond loopback: use listen.mqtts with a certificate, or set mqtt.insecure: true")
	}
	if l.MQTTS != "" {
		required(f, "listen.mqtts_cert_file", l.MQTTSCertFile, "listen.mqtts needs a certificate")
		required(f, "listen.mqtts_key_file", l.MQTTSKeyFile, "listen.mqtts needs the key of its certificate")
	}
	c.validateCertificate(f)
	inRange(f, "multicast.hops", c.Multicast.Hops, 1, 255)
	if l.HTTP != "" && validAddr(l.HTTP) && !isLoopback(l.HTTP) {
		c.warn("listen.http: %s is reachable from other machines, and the admin token travels unprotected", l.HTTP)
	}
}

// validAddr accepts what net.Listen does, but no port names: their numbers
// differ between machines.
func validAddr(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || strings.ContainsAny(host, " /") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == port
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func (c *Config) validateMQTT(f *faults) {
	m := c.MQTT
	if m.TopicPrefix == "" || strings.ContainsAny(m.TopicPrefix, "+#\x00 ") ||
		strings.HasPrefix(m.TopicPrefix, "$") || strings.Trim(m.TopicPrefix, "/") != m.TopicPrefix || len(m.TopicPrefix) > maxName {
		f.add("mqtt.topic_prefix", "must be a topic of at most %d characters without + # $, spaces and outer slashes", maxName)
	}
	c.validateBrokerURI(f, "mqtt.broker", m.Broker)
	c.validateBrokerURI(f, "mqtt.public_uri", m.PublicURI)
	if (m.CertFile == "") != (m.KeyFile == "") {
		f.add("mqtt.cert_file", "mqtt.cert_file and mqtt.key_file go together")
	}
	if m.Broker == "" {
		for _, x := range []struct{ key, value string }{
			{"mqtt.ca_file", m.CAFile}, {"mqtt.cert_file", m.CertFile}, {"mqtt.user", m.User}, {"mqtt.password_file", m.PasswordFile},
			{"mqtt.member_user", m.MemberUser}, {"mqtt.member_password_file", m.MemberPasswordFile},
		} {
			if x.value != "" {
				f.add(x.key, "is for an outside broker: set mqtt.broker")
			}
		}
		return
	}
	// MQTT 3.1.1, Section 3.1.2.9: no password without a user name.
	if m.PasswordFile != "" && m.User == "" {
		f.add("mqtt.password_file", "needs mqtt.user")
	}
	if m.MemberPasswordFile != "" && m.MemberUser == "" {
		f.add("mqtt.member_password_file", "needs mqtt.member_user")
	}
}

// Schemes of broker URIs that the MQTT client dials.
var (
	plainSchemes = []string{"mqtt", "tcp", "ws"}
	tlsSchemes   = []string{"mqtts", "ssl", "tls", "wss"}
)

func (c *Config) validateBrokerURI(f *faults, key, uri string) {
	if uri == "" {
		return
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Host == "" || !slices.Contains(slices.Concat(plainSchemes, tlsSchemes), u.Scheme):
		f.add(key, "must be mqtt://host:port or mqtts://host:port")
	case u.User != nil:
		f.add(key, "must not hold credentials: use mqtt.user and mqtt.password_file")
	case slices.Contains(plainSchemes, u.Scheme) && !c.MQTT.Insecure && !isLoopback(net.JoinHostPort(u.Hostname(), "0")):
		f.add(key, "plain MQTT beyond loopback: use mqtts://, or set mqtt.insecure: true")
	}
}

func required(f *faults, key, value, why string) {
	if value == "" {
		f.add(key, "is missing: %s", why)
	}
}

func oneOf(f *faults, key, value string, allowed ...string) bool {
	if slices.Contains(allowed, value) {
		return true
	}
	msg := fmt.Sprintf("must be one of %s, not %q", strings.Join(allowed, ", "), value)
	if s := spell.Suggest(value, allowed); s != "" {
		msg += fmt.Sprintf("; did you mean %q?", s)
	}
	f.add(key, "%s", msg)
	return false
}

func inRange[T int | uint64 | float64 | time.Duration](f *faults, key string, value, low, high T) {
	if value < low || value > high || value != value {
		f.add(key, "must be from %v to %v, not %v", spelled(low), spelled(high), spelled(value))
	}
}

// spelled is a value as it is written in the file: 36500d, not 876000h0m0s.
func spelled(v any) any {
	d, ok := v.(time.Duration)
	if !ok {
		return v
	}
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} { // 1m0s is 1m, 1h0m is 1h
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}
