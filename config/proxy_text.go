package config

import (
	"strings"
)

// Summary is what the proxy does, a line for each rule, for people.
func (p *Proxy) Summary() []string {
	if !p.Active() {
		return nil
	}
	var out []string
	add := func(from, to string, v *ProxyVia) {
		var b strings.Builder
		b.WriteString(from)
		if to != "" {
			b.WriteString(" to " + to)
		}
		if v.Next != "" {
			b.WriteString(" through " + v.Next)
		}
		b.WriteString(", for ")
		switch {
		case len(v.Peers) > 0:
			b.WriteString(strings.Join(v.Peers, ", "))
		default:
			b.WriteString("psk entries that may proxy and holders of tokens")
		}
		if v.OpenToUDP {
			b.WriteString(", and anybody on plain UDP")
		}
		if len(v.Methods) > 0 {
			b.WriteString(": " + strings.Join(v.Methods, ", "))
		}
		out = append(out, b.String())
	}
	for i := range p.Allow {
		add("Proxy-Uri "+p.Allow[i].Target, "", &p.Allow[i].ProxyVia)
	}
	for i := range p.Hosts {
		add("host "+p.Hosts[i].Name, p.Hosts[i].Upstream, &p.Hosts[i].ProxyVia)
	}
	for i := range p.Reverse {
		add("path "+p.Reverse[i].Path, p.Reverse[i].Upstream, &p.Reverse[i].ProxyVia)
	}
	return out
}
