package coap

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

var links = []WebLink{
	{Target: "/ace-group", Attrs: []LinkAttr{{Name: "if", Value: "ace.groups"}}},
	{Target: "/ace-group/gp1", Attrs: []LinkAttr{{Name: "ct", Value: "261"}, {Name: "rt", Value: "core.osc.gm other"}, {Name: "if", Value: "ace.group"}, {Name: "obs", Flag: true}}},
	{Target: "coap://[2001:db8::ab]/x?a=b,c", Attrs: []LinkAttr{{Name: "title", Value: `a "b\c", ;d`}, {Name: "title*", Value: "UTF-8'en'x"}}},
	{Target: ""},
}

const document = `</ace-group>;if="ace.groups",</ace-group/gp1>;ct=261;rt="core.osc.gm other";if="ace.group";obs,` +
	`<coap://[2001:db8::ab]/x?a=b,c>;title="a \"b\\c\", ;d";title*="UTF-8'en'x",<>`

func TestLinks(t *testing.T) {
	b, err := EncodeLinks(links)
	if err != nil || string(b) != document {
		t.Fatalf("%s, %v", b, err)
	}
	got, err := ParseLinks(b)
	if err != nil || !reflect.DeepEqual(got, links) {
		t.Errorf("%+v, %v", got, err)
	}
	if v, ok := got[1].Attr("ct"); !ok || v != "261" {
		t.Error("ct", v, ok)
	}
	if got, err := ParseLinks(nil); got != nil || err != nil {
		t.Error("empty document", got, err)
	}
	if got, err := ParseLinks([]byte(`</a>;rt=x.y;sz="010"`)); err != nil || got[0].Attrs[0].Value != "x.y" {
		t.Error("bare value", got, err)
	}
}

func TestParseLinksErrors(t *testing.T) {
	for _, s := range []string{"x", "<", "</a", "</a>,", "</a>;", "</a>;=", "</a>;a=", `</a>;a="`, `</a>;a="\`, `</a>;a="x"y`,
		"</a> ;b", "</a>;b ", "</a>, </b>", "</a b>", "<<>", "</a>;a=\"\x01\"", "</a>;a b", "</a>;*", ",</a>", "</a>;a,,</b>",
		"</a>" + strings.Repeat(";a", maxLinkAttributes+1), strings.Repeat("<>,", maxLinks) + "<>"} {
		if got, err := ParseLinks([]byte(s)); err == nil {
			t.Errorf("%.40q: %+v", s, got)
		}
	}
}

func TestEncodeLinksErrors(t *testing.T) {
	for _, l := range []WebLink{{Target: "a>"}, {Target: "a b"}, {Target: "/", Attrs: []LinkAttr{{Name: ""}}},
		{Target: "/", Attrs: []LinkAttr{{Name: "a b"}}}, {Target: "/", Attrs: []LinkAttr{{Name: "a", Value: "\n"}}}} {
		if b, err := EncodeLinks([]WebLink{l}); err == nil {
			t.Errorf("%+v: %s", l, b)
		}
	}
}

// RFC 6690, Section 4.1.
func TestFilterLinks(t *testing.T) {
	for query, want := range map[string]int{
		"":                        4,
		"rt=core.osc.gm":          1,
		"rt=other":                1,
		"rt=core.osc.g":           0,
		"rt=core.osc.*":           1,
		"if=ace.group":            1,
		"if=ace.group*":           2,
		"href=/ace-group":         1,
		"href=/ace-group*":        2,
		"ct=261":                  1,
		"ct=26*":                  1,
		"obs":                     1,
		"rt=*":                    1,
		"rt=core.osc.gm&if=a*":    1,
		"rt=core.osc.gm&if=other": 0,
		"href":                    0,
		"unknown=x":               0,
	} {
		var queries []string
		if query != "" {
			queries = strings.Split(query, "&")
		}
		if got := FilterLinks(links, queries); len(got) != want {
			t.Errorf("%s: %d links", query, len(got))
		}
	}
}

func FuzzLinks(f *testing.F) {
	f.Add([]byte(document))
	f.Add([]byte(`</a>;rt=x.y;sz="010"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLinks(b)
		if err != nil {
			return
		}
		doc, err := EncodeLinks(l)
		if err != nil {
			t.Fatalf("%q parses to %+v: %v", b, l, err)
		}
		again, err := ParseLinks(doc)
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("%q becomes %q: %v", b, doc, err)
		}
		twice, err := EncodeLinks(again)
		if err != nil || !bytes.Equal(twice, doc) {
			t.Fatalf("%q is not stable: %q", doc, twice)
		}
		FilterLinks(l, []string{"rt=*", "href=/*"})
	})
}
