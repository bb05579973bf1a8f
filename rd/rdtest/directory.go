// Package rdtest is a small Resource Directory (RFC 9176) for tests: it
// registers, refreshes, removes and looks up, and can be told to be away.
package rdtest

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// ErrAway is what a directory that is away gives in place of a response.
var ErrAway = errors.New("rdtest: no response")

// Directory is the directory. The zero value is empty and answers.
type Directory struct {
	mu    sync.Mutex
	next  int
	regs  map[string]*registration // by location
	away  bool
	full  *coap.Response // answer to registrations, nil: they are taken
	count map[string]int
}

type registration struct {
	ep, d string
	base  string
	lt    time.Duration
	until time.Time
	links []coap.WebLink
}

// Do answers one request; it is an rd.Client and serves over sockets as well.
func (d *Directory) Do(_ context.Context, req *coap.Request) (*coap.Response, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, ErrAway
	}
	path := req.Path()
	switch where := strings.Join(path, "/"); {
	case where == ".well-known/core" && req.Code == coap.GET:
		return links(coap.FilterLinks([]coap.WebLink{
			{Target: "/rd", Attrs: []coap.LinkAttr{{Name: "rt", Value: "core.rd"}, {Name: "ct", Value: "40"}}},
			{Target: "/rd-lookup/res", Attrs: []coap.LinkAttr{{Name: "rt", Value: "core.rd-lookup-res"}, {Name: "ct", Value: "40"}}},
		}, req.Options.Queries())), nil
	case where == "rd" && req.Code == coap.POST:
		return d.register(req), nil
	case where == "rd-lookup/res" && req.Code == coap.GET:
		return d.lookup(req), nil
	case len(path) == 2 && path[0] == "rd":
		r := d.live(path[1])
		switch {
		case r == nil:
			return &coap.Response{Code: coap.NotFound}, nil
		case req.Code == coap.POST && len(req.Payload) == 0: // Section 5.3.1
			d.did("update")
			r.until = time.Now().Add(r.lt)
			return &coap.Response{Code: coap.Changed}, nil
		case req.Code == coap.DELETE: // Section 5.3.2
			d.did("remove")
			delete(d.regs, path[1])
			return &coap.Response{Code: coap.Deleted}, nil
		}
	}
	return &coap.Response{Code: coap.BadRequest}, nil
}

// register: RFC 9176, Section 5. The same ep and d again replaces the links and
// keeps the location.
func (d *Directory) register(req *coap.Request) *coap.Response {
	bad := &coap.Response{Code: coap.BadRequest}
	if d.full != nil {
		return d.full
	}
	r := &registration{lt: 90000 * time.Second}
	for _, q := range req.Options.Queries() {
		name, value, _ := strings.Cut(q, "=")
		switch name {
		case "ep":
			r.ep = value
		case "d":
			r.d = value
		case "base":
			r.base = value
		case "lt":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == 0 {
				return bad
			}
			r.lt = time.Duration(n) * time.Second
		}
	}
	f, ok := req.Options.ContentFormat()
	list, err := coap.ParseLinks(req.Payload)
	if r.ep == "" || !ok || f != coap.LinkFormat || err != nil || len(list) == 0 {
		return bad
	}
	r.links, r.until = list, time.Now().Add(r.lt)
	d.did("register")
	location := ""
	for l, old := range d.regs {
		if old.ep == r.ep && old.d == r.d {
			location = l
		}
	}
	if location == "" {
		d.next++
		location = strconv.Itoa(4520 + d.next)
	}
	if d.regs == nil {
		d.regs = map[string]*registration{}
	}
	d.regs[location] = r
	resp := &coap.Response{Code: coap.Created}
	resp.Options.AddString(coap.LocationPath, "rd")
	resp.Options.AddString(coap.LocationPath, location)
	return resp
}

// lookup: RFC 9176, Section 6: links with absolute targets and anchors that
// match all criteria.
func (d *Directory) lookup(req *coap.Request) *coap.Response {
	var found []coap.WebLink
	for location := range d.regs {
		r := d.live(location)
		if r == nil {
			continue
		}
		var criteria []string
		mine := true
		for _, q := range req.Options.Queries() {
			switch name, value, _ := strings.Cut(q, "="); name {
			case "ep":
				mine = mine && value == r.ep
			case "d":
				mine = mine && value == r.d
			default:
				criteria = append(criteria, q)
			}
		}
		if mine {
			found = append(found, coap.FilterLinks(r.absolute(), criteria)...)
		}
	}
	return links(found)
}

func (r *registration) absolute() []coap.WebLink {
	base, err := url.Parse(r.base)
	if err != nil {
		return nil
	}
	out := make([]coap.WebLink, len(r.links))
	for i, l := range r.links {
		if u, err := base.Parse(l.Target); err == nil {
			l.Target = u.String()
		}
		out[i] = l
	}
	return out
}

func links(list []coap.WebLink) *coap.Response {
	body, err := coap.EncodeLinks(list)
	if err != nil {
		return &coap.Response{Code: coap.InternalServerError}
	}
	r := &coap.Response{Code: coap.Content, Payload: body}
	r.Options.SetContentFormat(coap.LinkFormat)
	return r
}

func (d *Directory) live(location string) *registration {
	r := d.regs[location]
	if r == nil || !time.Now().Before(r.until) {
		return nil
	}
	return r
}

func (d *Directory) did(what string) {
	if d.count == nil {
		d.count = map[string]int{}
	}
	d.count[what]++
}

// Count is how often something succeeded: register, update, remove.
func (d *Directory) Count(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count[what]
}

// Away lets the directory answer nothing, or answer again.
func (d *Directory) Away(away bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = away
}

// Refuse answers registrations with r; nil: they are taken again.
func (d *Directory) Refuse(r *coap.Response) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = r
}

// Forget drops all registrations, as a restart does.
func (d *Directory) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.regs)
}

// Lookup is what a client finds: the document that answers the criteria.
func (d *Directory) Lookup(criteria ...string) string {
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("rd-lookup", "res")
	for _, c := range criteria {
		req.Options.AddString(coap.UriQuery, c)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.lookup(req).Payload)
}
