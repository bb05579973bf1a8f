// Package rd keeps the links of the gateway's groups registered at a CoRE
// Resource Directory (RFC 9176), so that nodes find the Group Manager of a
// group by the names of groups and applications.
//
// [Registrar.Run] registers, refreshes the registration at about half of its
// lifetime, registers anew when the links change or the directory forgot them,
// and removes the registration when the gateway stops. A directory that is away
// harms nobody but those who look there: Run goes on trying and never fails.
package rd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed4911071e/groupgate/coap"
)

// Registrar is the room. Run may be called once.
type Registrar struct {
	cfg     Config
	client  Client
	links   func(context.Context) []coap.WebLink
	log     *slog.Logger
	metrics *metrics
	status  atomic.Pointer[string]

	look chan struct{} // one slot

	// Used by Run only.
	path     []string  // of the registration resource, once it is known
	location []string  // of the registration; nil: there is none that we know of
	body     []byte    // registered there
	refresh  time.Time // when to refresh it
	ends     time.Time // when the directory drops it
	retry    time.Time // not to be troubled before
	failures int       // in a row
}

// New makes a Registrar; it does no I/O.
func New(cfg Config, d Deps) *Registrar {
	r := &Registrar{cfg: cfg.withDefaults(), client: d.Client, links: d.Links, log: d.Log, metrics: newMetrics(d.Registerer),
		look: make(chan struct{}, 1)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.path = cfg.Path
	r.tell("not registered yet")
	return r
}

// Status says in a few words how the registration is, for operators.
func (r *Registrar) Status() string { return *r.status.Load() }

func (r *Registrar) tell(s string) { r.status.Store(&s) }

// Look has Run see at once whether the links changed. It does not wait.
func (r *Registrar) Look() {
	select {
	case r.look <- struct{}{}:
	default:
	}
}

// Run keeps the registration until ctx ends, and then removes it.
func (r *Registrar) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-r.look:
		case <-ctx.Done():
			r.leave(context.WithoutCancel(ctx))
			return nil
		}
		r.step(ctx)
		timer.Reset(min(lookEvery, r.cfg.Lifetime/8))
	}
}

// step does what is due now.
func (r *Registrar) step(ctx context.Context) {
	now := time.Now()
	if r.location != nil && now.After(r.ends) {
		r.forget()
	}
	if now.Before(r.retry) {
		return
	}
	body, err := coap.EncodeLinks(r.links(ctx))
	if err != nil {
		r.failed(ctx, "register", err)
		return
	}
	ctx, cancel := lingering(ctx)
	defer cancel()
	same := r.location != nil && bytes.Equal(body, r.body)
	switch {
	case len(body) == 0 && r.location == nil:
		r.tell("nothing to register")
	case len(body) == 0:
		r.remove(ctx)
	case same && now.Before(r.refresh):
	case same:
		if forgotten := r.update(ctx); forgotten {
			r.register(ctx, body)
		}
	default:
		r.register(ctx, body)
	}
}

// lingering bounds requests. One that is under way when the gateway stops may
// still be answered: a registration of which nobody knows cannot be removed.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(goodbye, cancel) })
	return out, func() { unhook(); cancel() }
}

// register: RFC 9176, Section 5: POST of all links. The same endpoint name
// again replaces the registration, so that it serves for changes as well.
func (r *Registrar) register(ctx context.Context, body []byte) {
	const op = "register"
	if r.path == nil {
		path, err := r.find(ctx)
		if err != nil {
			r.failed(ctx, op, err)
			return
		}
		r.path = path
	}
	req := &coap.Request{Code: coap.POST, Payload: body}
	req.Options.SetPath(r.path...)
	req.Options.SetContentFormat(coap.LinkFormat)
	req.Options.AddString(coap.UriQuery, "ep="+r.cfg.Endpoint)
	if r.cfg.Sector != "" {
		req.Options.AddString(coap.UriQuery, "d="+r.cfg.Sector)
	}
	req.Options.AddString(coap.UriQuery, "lt="+strconv.FormatInt(int64(r.cfg.Lifetime/time.Second), 10))
	if r.cfg.Base != "" {
		req.Options.AddString(coap.UriQuery, "base="+r.cfg.Base)
	}
	begun := time.Now()
	resp, err := r.do(ctx, op, req, coap.Created, coap.Changed)
	if err != nil {
		if resp != nil && resp.Code == coap.NotFound {
			r.path = r.cfg.Path // it may have moved
		}
		r.failed(ctx, op, err)
		return
	}
	location := resp.Options.Strings(coap.LocationPath)
	if len(location) == 0 {
		r.failed(ctx, op, errors.New("rd: answer without Location-Path"))
		return
	}
	r.location, r.body = location, body
	r.alive(begun)
	links := bytes.Count(body, []byte("core.osc.gm"))
	r.log.InfoContext(ctx, "registered at the resource directory", "endpoint", r.cfg.Endpoint, "groups", links,
		"location", "/"+strings.Join(location, "/"))
}

// update: RFC 9176, Section 5.3.1: an empty POST lets the lifetime begin again.
func (r *Registrar) update(ctx context.Context) (forgotten bool) {
	const op = "update"
	req := &coap.Request{Code: coap.POST}
	req.Options.SetPath(r.location...)
	begun := time.Now()
	resp, err := r.do(ctx, op, req, coap.Changed)
	switch {
	case err == nil:
		r.alive(begun)
	case resp != nil && resp.Code == coap.NotFound:
		r.log.WarnContext(ctx, "the resource directory forgot the registration", "endpoint", r.cfg.Endpoint)
		r.forget()
		return true
	default:
		r.failed(ctx, op, err)
	}
	return false
}

// remove: RFC 9176, Section 5.3.2.
func (r *Registrar) remove(ctx context.Context) {
	const op = "remove"
	req := &coap.Request{Code: coap.DELETE}
	req.Options.SetPath(r.location...)
	if resp, err := r.do(ctx, op, req, coap.Deleted); err != nil && (resp == nil || resp.Code != coap.NotFound) {
		r.failed(ctx, op, err)
		return
	}
	r.failures = 0
	r.forget()
	r.log.InfoContext(ctx, "removed from the resource directory", "endpoint", r.cfg.Endpoint)
}

// leave removes the registration when the gateway stops; a directory that does
// not answer drops it at the end of its lifetime.
func (r *Registrar) leave(ctx context.Context) {
	if r.location == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	r.remove(ctx)
}

// find asks for the registration resource: RFC 9176, Section 4.3.
func (r *Registrar) find(ctx context.Context) ([]string, error) {
	const rt = "rt=core.rd"
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(".well-known", "core")
	req.Options.AddString(coap.UriQuery, rt)
	resp, err := r.do(ctx, "find", req, coap.Content)
	if err != nil {
		return nil, err
	}
	if len(resp.Payload) > maxAnswer {
		return nil, fmt.Errorf("rd: answer of %d bytes", len(resp.Payload))
	}
	links, err := coap.ParseLinks(resp.Payload)
	if err != nil {
		return nil, fmt.Errorf("rd: %w", err)
	}
	for _, l := range coap.FilterLinks(links, []string{rt}) {
		// Another host's directory is for the operator to name.
		if strings.HasPrefix(l.Target, "/") && !strings.HasPrefix(l.Target, "//") {
			return segments(l.Target)
		}
	}
	return nil, errors.New("rd: there is no resource of type core.rd")
}

// segments splits the path of a link target.
func segments(target string) ([]string, error) {
	u, err := url.Parse(target)
	if err != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("rd: unusable target %q", target)
	}
	path := coap.PathOf(u.EscapedPath())
	for i := range path {
		if path[i], err = url.PathUnescape(path[i]); err != nil {
			return nil, fmt.Errorf("rd: unusable target %q", target)
		}
	}
	return path, nil
}

// refusedError is a response with another code than those that were hoped for.
type refusedError struct{ resp *coap.Response }

func (e *refusedError) Error() string { return "rd: answered " + e.resp.Code.String() }

// do sends one request. With a refusal the response is returned besides the
// error.
func (r *Registrar) do(ctx context.Context, op string, req *coap.Request, want ...coap.Code) (*coap.Response, error) {
	resp, err := r.client.Do(ctx, req)
	if err != nil {
		r.metrics.requests.WithLabelValues(op, "lost").Inc()
		return nil, fmt.Errorf("rd: %w", err)
	}
	for _, code := range want {
		if resp.Code == code {
			r.metrics.requests.WithLabelValues(op, "ok").Inc()
			return resp, nil
		}
	}
	r.metrics.requests.WithLabelValues(op, "refused").Inc()
	return resp, &refusedError{resp}
}

// alive notes that the directory has the registration since begun.
func (r *Registrar) alive(begun time.Time) {
	// Many gateways that started together do not come together again.
	half := r.cfg.Lifetime / 2
	r.refresh = begun.Add(half - rand.N(half/5+1))
	r.ends = begun.Add(r.cfg.Lifetime)
	r.retry, r.failures = time.Time{}, 0
	r.metrics.registered.Set(1)
	r.tell("registered")
}

func (r *Registrar) forget() {
	r.location, r.body = nil, nil
	r.metrics.registered.Set(0)
	r.tell("not registered")
}

// failed waits before the next request: 5 s, doubled at every failure up to
// 5 min, and not less than the directory's Max-Age.
func (r *Registrar) failed(ctx context.Context, op string, err error) {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return // the gateway stops
	}
	wait := min(firstBackoff<<min(r.failures, 8), longestBackoff)
	wait -= rand.N(wait/4 + 1)
	if refused, ok := errors.AsType[*refusedError](err); ok && refused.resp.Code.Class() == 5 {
		if age, ok := refused.resp.Options.Uint(coap.MaxAge); ok {
			wait = min(max(wait, time.Duration(age)*time.Second), longestBackoff)
		}
	}
	r.retry = time.Now().Add(wait)
	r.failures++
	level := slog.LevelDebug
	if r.failures == 1 {
		level = slog.LevelWarn // the later ones say the same
	}
	r.log.Log(ctx, level, "the resource directory cannot be used", "operation", op, "endpoint", r.cfg.Endpoint, "again_in", wait.Round(time.Second), "err", err)
	state, why := "not registered", "does not answer"
	if r.location != nil {
		state = "registered"
	}
	if refused, ok := errors.AsType[*refusedError](err); ok {
		why = "answered " + refused.resp.Code.String()
	}
	r.tell(state + "; the directory " + why)
}
