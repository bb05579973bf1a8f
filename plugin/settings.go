package plugin

import (
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/bridge"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/gm"
)

// aceConfig translates the sections tokens, psk and authorization_server.
func (g *Gateway) aceConfig() (ace.Config, error) {
	c := g.cfg
	out := ace.Config{RISELabels: c.Compat.RISELabels}
	for i := range c.Tokens {
		e, err := tokenEntry(&c.Tokens[i])
		if err != nil {
			return out, fmt.Errorf("tokens[%d]: %w", i, err)
		}
		out.Entries = append(out.Entries, e)
	}
	for _, p := range c.PSK {
		out.PSK = append(out.PSK, ace.PSKPeer{
			Identity: []byte(p.Identity), Key: p.Key,
			MayToken: slices.Contains(p.May, "token"), MayIntrospect: slices.Contains(p.May, "introspect"),
			MayList: slices.Contains(p.May, "trl"),
		})
	}
	if c.AuthorizationServer.Enabled {
		as := &ace.ASConfig{Issuer: c.AuthorizationServer.Issuer}
		for i, p := range c.AuthorizationServer.Policies {
			scope, err := config.ScopeOf(p.Scope)
			if err != nil {
				return out, fmt.Errorf("authorization_server.policies[%d]: %w", i, err)
			}
			as.Policies = append(as.Policies, ace.Policy{Client: p.Client, Audience: p.Audience, Scope: scope, Lifetime: p.Lifetime, Profile: p.ProfileID()})
		}
		out.AS = as
	}
	if err := g.delegatePeers(&out); err != nil {
		return out, err
	}
	if uris := g.tokenEndpoints(); len(uris) > 0 {
		out.ASURI = uris[0]
	}
	return out, out.Validate()
}

func tokenEntry(t *config.Token) (ace.TokenEntry, error) {
	e := ace.TokenEntry{
		Issuer: t.Issuer, Audience: t.Audience, Alg: t.AlgID(), Key: t.SymmetricKey, PublicKey: t.PublicKey,
		EncryptionKey: t.EncryptionKey, DerivationKey: t.DerivationKey,
	}
	if i := t.Introspect; i.URI != "" {
		client, path, err := newOutbound(i.URI, i.Identity, i.Key)
		if err != nil {
			return e, err
		}
		e.Introspect = &ace.Endpoint{Client: client, Path: path}
	}
	if r := t.Revocation; r.URI != "" {
		client, path, err := newOutbound(r.URI, r.Identity, r.Key)
		if err != nil {
			return e, err
		}
		e.Revocation = &ace.Revocation{Client: client, Path: path, Interval: r.Interval}
	}
	return e, nil
}

// tokenEndpoints are where tokens for this gateway are to be had: those that
// the operator names, then that of the embedded Authorization Server.
func (g *Gateway) tokenEndpoints() []string {
	var uris []string
	for _, t := range g.cfg.Tokens {
		if t.ASURI != "" && !slices.Contains(uris, t.ASURI) {
			uris = append(uris, t.ASURI)
		}
	}
	if g.cfg.AuthorizationServer.Enabled {
		if own := tokenURI(g.cfg.Listen.CoAPS); own != "" && !slices.Contains(uris, own) {
			uris = append(uris, own)
		}
	}
	return uris
}

// tokenURI is where peers without a token are sent (RFC 9200, Section 5.3).
func tokenURI(listen string) string {
	base := ownBase(listen)
	if base == "" {
		return ""
	}
	return base + "/token"
}

// ownBase is the URI of this gateway as others see it, without a path.
func ownBase(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return ""
		}
	}
	return "coaps://" + net.JoinHostPort(host, port)
}

// bridgeConfig translates the mqtt section.
func (g *Gateway) bridgeConfig() bridge.Config {
	c := g.cfg
	bc := bridge.Config{
		Prefix: c.MQTT.TopicPrefix, Broker: c.MQTT.Broker, PublicURI: c.MQTT.PublicURI,
		CAFile: c.Path(c.MQTT.CAFile), CertFile: c.Path(c.MQTT.CertFile), KeyFile: c.Path(c.MQTT.KeyFile),
		User: c.MQTT.User, Password: string(c.MQTT.Password.Bytes()), InsecurePlain: c.MQTT.Insecure,
		MemberUser: c.MQTT.MemberUser, MemberPassword: string(c.MQTT.MemberPassword.Bytes()),
		MulticastInterface: c.Multicast.Interface, MulticastHops: c.Multicast.Hops,
	}
	for _, d := range c.Delegates {
		if d.MQTTTopic != "" {
			bc.Sensors = append(bc.Sensors, bridge.Sensor{User: d.Name, Password: d.MQTTPassword, Topic: d.MQTTTopic})
		}
	}
	bc.Policies = map[string]bridge.Policy{}
	for _, gr := range c.Groups {
		d := gr.Delivery
		if d.RetryFor == 0 {
			d.RetryFor = -1 // bridge: only at a sign of life
		}
		bc.Policies[gr.Name] = bridge.Policy{RetryFor: d.RetryFor, UnreachableAfter: d.UnreachableAfter, EvictAfter: d.EvictAfter}
	}
	if c.MQTT.Broker == "" {
		if g.mqtt != nil {
			bc.Listeners = append(bc.Listeners, g.mqtt)
		} else {
			bc.Listen = c.Listen.MQTT
		}
		bc.ListenTLS = c.Listen.MQTTS
		bc.TLSCertFile, bc.TLSKeyFile = c.Path(c.Listen.MQTTSCertFile), c.Path(c.Listen.MQTTSKeyFile)
	}
	return bc
}

// x5 translates what groups with certificates as credentials need.
func (g *Gateway) x5() map[string]gm.X5 {
	out := map[string]gm.X5{}
	for _, c := range g.cfg.Groups {
		if c.X5 != nil {
			out[c.Name] = gm.X5{Roots: c.X5.Roots, Key: c.X5.Key, Chain: c.X5.Chain}
		}
	}
	return out
}
