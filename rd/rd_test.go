package rd

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/rd/rdtest"
)

// source is what there is to register.
type source struct {
	mu    sync.Mutex
	links []coap.WebLink
}

func (s *source) set(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = nil
	for _, n := range names {
		s.links = append(s.links, coap.WebLink{Target: "/ace-group/" + n, Attrs: []coap.LinkAttr{
			{Name: "rt", Value: "core.osc.gm"}, {Name: "sec-gp", Value: n}, {Name: "app-gp", Value: "lights"},
		}})
	}
}

func (s *source) get(context.Context) []coap.WebLink {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links
}

type fixture struct {
	*Registrar
	dir  *rdtest.Directory
	from *source
	reg  *prometheus.Registry
	stop func()
}

// metric sums a metric over all label sets, or those with a label value.
func (f *fixture) metric(name, value string) (sum float64) {
	families, err := f.reg.Gather()
	if err != nil {
		panic(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			match := value == ""
			for _, l := range m.GetLabel() {
				match = match || l.GetValue() == value
			}
			if match && family.GetName() == name {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// start runs a Registrar inside a synctest bubble; stop waits for its end.
func start(t *testing.T, cfg Config, names ...string) *fixture {
	f := &fixture{dir: &rdtest.Directory{}, from: &source{}, reg: prometheus.NewRegistry()}
	f.from.set(names...)
	if cfg.Endpoint == "" {
		cfg.Endpoint = "gm1"
	}
	cfg.Base = "coaps://gm.example.com"
	f.Registrar = New(cfg, Deps{Client: f.dir, Links: f.from.get, Registerer: f.reg})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- f.Run(ctx) }()
	f.stop = func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
	return f
}

const gp1 = `<coaps://gm.example.com/ace-group/gp1>;rt="core.osc.gm";sec-gp="gp1";app-gp="lights"`

// RFC 9176, Sections 4.3, 5 and 5.3: the resource is found, links are
// registered, refreshed within their lifetime, and removed at the end.
func TestLifecycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, Config{Lifetime: time.Hour, Sector: "floor1"}, "gp1")
		time.Sleep(time.Second)
		if got := f.dir.Lookup("rt=core.osc.gm", "app-gp=lights", "d=floor1", "ep=gm1"); got != gp1 {
			t.Errorf("found %s", got)
		}
		if f.Status() != "registered" || f.metric("groupgate_rd_registered", "") != 1 {
			t.Errorf("status %q", f.Status())
		}
		for hour := range 10 {
			time.Sleep(time.Hour)
			if f.dir.Lookup("sec-gp=gp1") == "" {
				t.Fatalf("gone after hour %d", hour)
			}
		}
		// Between 0.4 and 0.5 of the lifetime, looked at every 5 s.
		if n := f.dir.Count("update"); n < 19 || n > 25 {
			t.Errorf("%d updates in ten lifetimes", n)
		}
		if n := f.dir.Count("register"); n != 1 {
			t.Errorf("%d registrations", n)
		}
		f.stop()
		if got := f.dir.Lookup(); got != "" || f.dir.Count("remove") != 1 {
			t.Errorf("after the end: %s", got)
		}
	})
}

// A change of the links replaces the registration at its place; no links, no
// registration.
func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, Config{Path: []string{"rd"}})
		defer f.stop()
		time.Sleep(time.Minute)
		if n := f.dir.Count("register"); n != 0 || f.Status() != "nothing to register" {
			t.Errorf("%d registrations of nothing, %q", n, f.Status())
		}
		f.from.set("gp1", "gp2")
		time.Sleep(2 * lookEvery)
		if got := f.dir.Lookup("sec-gp=gp2"); !strings.HasPrefix(got, "<coaps://gm.example.com/ace-group/gp2>") {
			t.Errorf("found %s", got)
		}
		f.from.set("gp1")
		time.Sleep(2 * lookEvery)
		if got := f.dir.Lookup(); got != gp1 {
			t.Errorf("found %s", got)
		}
		f.from.set()
		time.Sleep(2 * lookEvery)
		if got := f.dir.Lookup(); got != "" || f.dir.Count("remove") != 1 {
			t.Errorf("found %s", got)
		}
	})
}

// A directory that forgot the registration has it again after the next
// refresh; one that is away is tried ever more seldom, and has it soon after
// it came back.
func TestDirectoryAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, Config{Lifetime: time.Hour}, "gp1")
		defer f.stop()
		time.Sleep(time.Minute)
		f.dir.Forget()
		time.Sleep(31 * time.Minute)
		if f.dir.Lookup("sec-gp=gp1") == "" {
			t.Error("forgotten for good")
		}
		f.dir.Away(true)
		time.Sleep(2 * time.Hour)
		if !strings.Contains(f.Status(), "does not answer") || f.metric("groupgate_rd_registered", "") != 0 {
			t.Errorf("away: %q", f.Status())
		}
		lost := f.metric("groupgate_rd_requests_total", "lost")
		if lost < 10 || lost > 60 {
			t.Errorf("%v requests in two hours", lost)
		}
		f.dir.Away(false)
		time.Sleep(longestBackoff + 2*lookEvery)
		if f.dir.Lookup("sec-gp=gp1") == "" || f.Status() != "registered" {
			t.Errorf("not back: %q", f.Status())
		}
	})
}

// Max-Age of a 5.03 is respected.
func TestDirectoryBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, Config{Path: []string{"elsewhere"}}, "gp1")
		time.Sleep(time.Second)
		if !strings.Contains(f.Status(), "4.00") {
			t.Errorf("wrong path: %q", f.Status())
		}
		f.stop()

		f = start(t, Config{Path: []string{"rd"}})
		defer f.stop()
		busy := &coap.Response{Code: coap.ServiceUnavailable}
		busy.Options.SetUint(coap.MaxAge, 120)
		f.dir.Refuse(busy)
		f.from.set("gp1")
		time.Sleep(2 * lookEvery)
		f.dir.Refuse(nil)
		time.Sleep(time.Minute)
		if f.dir.Count("register") != 0 {
			t.Error("asked again within Max-Age")
		}
		time.Sleep(time.Minute + 2*lookEvery)
		if f.dir.Count("register") != 1 {
			t.Errorf("not registered: %q", f.Status())
		}
	})
}

// answers are what a directory may say wrongly.
type answers func(req *coap.Request) *coap.Response

func (a answers) Do(ctx context.Context, req *coap.Request) (*coap.Response, error) {
	resp := a(req)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return resp, nil
}

// A registration that is under way when the gateway stops is removed as well.
func TestStopWhileRegistering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := &rdtest.Directory{}
		slow := answers(func(req *coap.Request) *coap.Response {
			resp, err := dir.Do(t.Context(), req)
			if err != nil {
				panic(err)
			}
			time.Sleep(goodbye / 2)
			return resp
		})
		from := &source{}
		from.set("gp1")
		r := New(Config{Endpoint: "gm1", Path: []string{"rd"}}, Deps{Client: slow, Links: from.get})
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- r.Run(ctx) }()
		synctest.Wait()
		if dir.Lookup("ep=gm1") == "" {
			t.Fatal("the request has not arrived")
		}
		cancel()
		if err := <-over; err != nil || dir.Lookup() != "" {
			t.Errorf("%v, %s", err, dir.Lookup())
		}
	})
}

// Malformed answers do no harm.
func TestMalformedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, body := range map[string]string{
			"no links": "x", "none": "", "another type": `</rd>;rt="core.rdx"`, "elsewhere": `<coap://evil.example/rd>;rt="core.rd"`,
			"authority": `<//evil.example/rd>;rt="core.rd"`, "escapes": `</%zz>;rt="core.rd"`, "query": `</rd?x>;rt="core.rd"`,
		} {
			r := New(Config{Endpoint: "gm1"}, Deps{
				Client: answers(func(*coap.Request) *coap.Response {
					return &coap.Response{Code: coap.Content, Payload: []byte(body)}
				}),
				Links: func(context.Context) []coap.WebLink { return []coap.WebLink{{Target: "/a"}} },
			})
			r.step(t.Context())
			if r.location != nil || r.failures != 1 {
				t.Errorf("%s: registered", name)
			}
		}
		r := New(Config{Endpoint: "gm1", Path: []string{"rd"}}, Deps{
			Client: answers(func(*coap.Request) *coap.Response { return &coap.Response{Code: coap.Created} }),
			Links:  func(context.Context) []coap.WebLink { return []coap.WebLink{{Target: "/a"}} },
		})
		r.step(t.Context())
		if r.location != nil || r.failures != 1 {
			t.Error("registered without Location-Path")
		}
	})
}
