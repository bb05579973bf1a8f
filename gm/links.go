package gm

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// groupPath is the path of a group-membership resource.
func groupPath(name string) string { return "/ace-group/" + url.PathEscape(name) }

// legacyPath is that of the legacy dialects.
func legacyPath(name string) string { return "/" + legacyRoot + "/" + url.PathEscape(name) }

// pathOf is where a group that exists is joined: under /ace-group, if it is served
// there.
func (m *Manager) pathOf(name string) string {
	if g, ok := m.group(name); ok && !g.cfg.Interface.SpeaksCurrent() {
		return legacyPath(name)
	}
	return groupPath(name)
}

// Links describes the groups that may be listed, for /.well-known/core
// (RFC 6690; draft-tiloca-core-oscore-discovery for the attributes). The
// algorithms are hints: what a Join Response says counts.
func (m *Manager) Links(context.Context) []coap.WebLink {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var links []coap.WebLink
	current := false
	for name, g := range m.groups {
		if !g.cfg.List {
			continue
		}
		if g.cfg.Interface.SpeaksCurrent() {
			current = true
			links = append(links, coap.WebLink{Target: groupPath(name), Attrs: linkAttrs(g.cfg, coap.ACEGroupcomm)})
		}
		if g.cfg.Interface.Legacy() != groupcomm.Current {
			links = append(links, coap.WebLink{Target: legacyPath(name), Attrs: linkAttrs(g.cfg, coap.CBOR)})
		}
	}
	slices.SortFunc(links, func(a, b coap.WebLink) int { return cmp.Compare(a.Target, b.Target) })
	if current {
		root := coap.WebLink{Target: "/ace-group", Attrs: []coap.LinkAttr{
			{Name: "ct", Value: strconv.Itoa(int(coap.ACEGroupcomm))}, {Name: "if", Value: "ace.groups"},
		}}
		links = slices.Insert(links, 0, root)
	}
	return links
}

// linkAttrs names the attributes in one place: they have been renamed before. The
// link to a legacy resource, with another format, has no interface description:
// that was registered for the current one.
func linkAttrs(c *groupcomm.GroupConfig, f coap.Format) []coap.LinkAttr {
	attrs := []coap.LinkAttr{
		{Name: "ct", Value: strconv.Itoa(int(f))},
		{Name: "rt", Value: "core.osc.gm"},
		{Name: "if", Value: "ace.group"},
		{Name: "obs", Flag: true},
		{Name: "sec-gp", Value: c.Name},
	}
	if f != coap.ACEGroupcomm {
		attrs = slices.Delete(attrs, 2, 3)
	}
	for _, name := range c.AppGroups {
		attrs = append(attrs, coap.LinkAttr{Name: "app-gp", Value: name})
	}
	number := func(name string, v int64) {
		attrs = append(attrs, coap.LinkAttr{Name: name, Value: strconv.FormatInt(v, 10)})
	}
	number("hkdf", c.HKDF)
	number("cred_fmt", c.CredFmt)
	if c.GroupMode() {
		number("gp_enc_alg", c.GpEncAlg)
		number("sign_alg", c.SignAlg)
		if p := c.SignInfo().KeyParams; len(p) > 1 {
			number("sign_alg_crv", p[1])
		}
	}
	if c.PairwiseMode() {
		number("alg", c.Alg)
		number("ecdh_alg", c.ECDHAlg)
		number("ecdh_alg_crv", c.ECDHCrv)
	}
	return attrs
}

// olderNames are what drafts of before called some of the attributes. Lookups
// by them are understood; links show the names of now.
var olderNames = map[string]string{
	"cs_alg":       "sign_alg",
	"cs_alg_crv":   "sign_alg_crv",
	"sign_enc_alg": "gp_enc_alg",
}

// CurrentQueries puts attribute names of now into the queries of a lookup
// (RFC 6690, Section 4.1).
func CurrentQueries(queries []string) []string {
	out := slices.Clone(queries)
	for i, q := range out {
		name, value, valued := strings.Cut(q, "=")
		if now, ok := olderNames[name]; ok {
			out[i] = now
			if valued {
				out[i] += "=" + value
			}
		}
	}
	return out
}
