package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

const testToken = "5b1f"

// house is a small Group Manager, ledger and issuer in memory.
type house struct {
	version uint64
	members []Member
	asked   TokenRequest
	revoked [][]byte
	created []groupcomm.GroupConfig
	idle    bool // sensors is not active
	reason  string
	down    bool

	query    AuditQuery
	enrolled []NodeSpec
	options  EnrollOptions
	disabled map[string]bool
}

func (h *house) Groups(context.Context) ([]groupcomm.GroupStatus, error) {
	list := []groupcomm.GroupStatus{{Name: "sensors", Gid: groupcomm.Gid{0xa1, 0, 0, 1}, Version: h.version, Active: !h.idle,
		Exp: time.Unix(2_000_000_000, 5), Members: len(h.members)}}
	for _, c := range h.created {
		list = append(list, groupcomm.GroupStatus{Name: c.Name, Active: true})
	}
	return list, nil
}

func (h *house) CreateGroup(_ context.Context, cfg groupcomm.GroupConfig) error {
	if cfg.Name == "sensors" {
		return fmt.Errorf("gm: create: %w", coap.Errorf(coap.Conflict, "it exists"))
	}
	h.created = append(h.created, cfg)
	return nil
}

func (h *house) DeleteGroup(_ context.Context, group string) error {
	switch {
	case group != "sensors":
		return fmt.Errorf("gm: delete: %w", coap.Errorf(coap.NotFound, "no such group"))
	case !h.idle:
		return fmt.Errorf("gm: delete: %w", groupcomm.ErrActive)
	}
	return nil
}

func (h *house) SetActive(_ context.Context, group string, active bool) error {
	if group != "sensors" {
		return fmt.Errorf("gm: state: %w", coap.Errorf(coap.NotFound, "no such group"))
	}
	h.idle = !active
	return nil
}

func (h *house) RekeyScheduled(ctx context.Context, group, reason string) (uint64, error) {
	return h.Rekey(ctx, group, reason+", scheduled")
}

func (h *house) Rekey(_ context.Context, group, reason string) (uint64, error) {
	if group != "sensors" {
		return 0, fmt.Errorf("gm: rekey: %w", coap.Errorf(coap.NotFound, "no such group"))
	}
	h.version++
	h.reason = reason
	return h.version, nil
}

func (h *house) Evict(_ context.Context, _ string, nodes []string, ids [][]byte) ([]string, error) {
	var gone []string
	for _, m := range h.members {
		for _, n := range nodes {
			if n == m.Node {
				gone = append(gone, n)
			}
		}
		for _, id := range ids {
			if string(id) == string(m.SenderID) {
				gone = append(gone, m.Node)
			}
		}
	}
	if len(gone) == 0 {
		return nil, coap.Detail(groupcomm.ErrNotMember, "nobody")
	}
	return gone, nil
}

func (h *house) MemberStatus(context.Context, string) ([]Member, error) { return h.members, nil }

func (h *house) RevokeTokens(_ context.Context, list [][]byte) (int, error) {
	for _, b := range list {
		if b[0] == 0 {
			return 0, ErrNoToken
		}
	}
	h.revoked = list
	return 1, nil
}

func (h *house) IssueToken(_ context.Context, req TokenRequest) (*Token, error) {
	h.asked = req
	if h.down {
		return nil, errors.New("disk on fire")
	}
	return &Token{AccessToken: []byte{0xd0, 0x83}, KID: []byte{1}, Key: []byte{2}, Expires: time.Unix(2_000_000_000, 0)}, nil
}

func (h *house) Components(context.Context) []Component {
	return []Component{{Name: "store", Ready: !h.down}}
}

func newHouse() *house {
	return &house{version: 7, members: []Member{
		{Node: "n1", SenderID: groupcomm.SenderID{0x0a}, Roles: groupcomm.Requester | groupcomm.Responder, Version: 7,
			State: "current", Channel: "observe", LastHeard: time.Unix(1_900_000_000, 0), Expires: time.Unix(2_000_000_000, 0)},
		{Node: "n2", Roles: groupcomm.Monitor, State: "pending", Channel: "none"},
	}}
}

// serve runs the API on a real listener.
func serve(t *testing.T, h *house) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "groupgate_test"}))
	s := New(Config{Token: testToken, Version: "v0", Listeners: map[string]string{"http": l.Addr().String()}},
		Deps{Groups: h, Members: h, Tokens: h, Nodes: h, Audit: h, Readiness: h, Gatherer: reg})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestClient(t *testing.T) {
	h := newHouse()
	addr := serve(t, h)
	c := NewClient(addr, testToken)
	ctx := t.Context()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Version != "v0" || st.Listeners["http"] != addr {
		t.Errorf("status: %+v %v", st, err)
	}
	list, err := c.Groups(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "sensors" || *list[0].MemberCount != 2 {
		t.Errorf("groups: %+v %v", list, err)
	}
	g, err := c.Group(ctx, "sensors")
	if err != nil || len(g.Members) != 2 || *g.Members[0].SenderID != "0a" || g.Members[1].SenderID != nil {
		t.Errorf("group: %+v %v", g, err)
	}
	r, err := c.Rekey(ctx, "sensors", "drill")
	if err != nil || r.Version != 8 || h.reason != "drill" {
		t.Errorf("rekey: %+v %v", r, err)
	}
	if r, err := c.RekeyScheduled(ctx, "sensors", "drill"); err != nil || r.Version != 9 || h.reason != "drill, scheduled" {
		t.Errorf("scheduled rekey: %+v %v", r, err)
	}
	ev, err := c.Evict(ctx, "sensors", []string{"n2"}, []string{"0A"})
	if err != nil || !reflect.DeepEqual(ev.Evicted, []string{"n1", "n2"}) {
		t.Errorf("evict: %+v %v", ev, err)
	}
	tok, err := c.IssueToken(ctx, TokenAsk{Audience: "rs", Lifetime: "1h", Scope: []ScopeEntry{{"sensors", []string{"requester"}}}})
	if err != nil || tok.AccessToken != "d083" {
		t.Errorf("token: %+v %v", tok, err)
	}
	if r, err := c.RevokeTokens(ctx, []string{"d083", "01ab"}); err != nil || *r != (RevokeResult{2, 1}) ||
		!reflect.DeepEqual(h.revoked, [][]byte{{0xd0, 0x83}, {0x01, 0xab}}) {
		t.Errorf("revoked: %+v %v, %x", r, err, h.revoked)
	}
	want := TokenRequest{Audience: "rs", Lifetime: time.Hour, Scope: groupcomm.Scope{{Group: "sensors", Roles: groupcomm.Requester}}}
	if !reflect.DeepEqual(h.asked, want) {
		t.Errorf("asked for %+v", h.asked)
	}

	ask := TokenAsk{Audience: "rs", Lifetime: "1h", Scope: []ScopeEntry{{"sensors", []string{"requester"}}}, Profile: "coap_oscore"}
	if tok, err = c.IssueToken(ctx, ask); err != nil || !h.asked.OSCORE {
		t.Errorf("token of the OSCORE profile: %+v %v", tok, err)
	}
	ask.Profile = "coap_tls"
	if _, err = c.IssueToken(ctx, ask); err == nil || !strings.Contains(err.Error(), "coap_oscore") {
		t.Errorf("token of a profile that there is not: %v", err)
	}

	for _, err := range []error{
		second(c.Group(ctx, "nope")), second(c.Rekey(ctx, "nope", "")), second(c.Evict(ctx, "sensors", []string{"who"}, nil)),
	} {
		p, ok := errors.AsType[*Problem](err)
		if !ok || p.Status != 404 && p.Status != 403 {
			t.Errorf("got %v", err)
		}
	}
	if _, err := NewClient(addr, "wrong").Groups(ctx); !strings.Contains(fmt.Sprint(err), "token") {
		t.Errorf("wrong token: %v", err)
	}
	if _, err := NewClient("127.0.0.1:1", "x").Groups(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no gateway: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// The shape that docs/protocol.md, Section 11 fixes for `group show --json`.
func TestGroupShape(t *testing.T) {
	addr := serve(t, newHouse())
	resp := do(t, "GET", "http://"+addr+"/v1/groups/sensors", "", nil)
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"sensors","gid":"a1000001","version":7,"active":true,"members":[` +
		`{"node":"n1","sender_id":"0a","roles":["requester","responder"],"version":7,"state":"current","channel":"observe",` +
		`"last_heard":"2030-03-17T17:46:40Z","expires":"2033-05-18T03:33:20Z"},` +
		`{"node":"n2","sender_id":null,"roles":["monitor"],"version":0,"state":"pending","channel":"none","last_heard":null,"expires":null}]}` + "\n"
	if string(body) != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
}

func do(t *testing.T, method, url, body string, header map[string]string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	req.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestRefusals(t *testing.T) {
	h := newHouse()
	base := "http://" + serve(t, h)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(base, "http://"))
	tests := []struct {
		name, method, path, body string
		header                   map[string]string
		status                   int
		say                      string
	}{
		{"no token", "GET", "/v1/groups", "", map[string]string{"Authorization": ""}, 401, "missing or wrong"},
		{"empty token", "GET", "/v1/groups", "", map[string]string{"Authorization": "Bearer "}, 401, "missing or wrong"},
		{"token prefix", "GET", "/v1/groups", "", map[string]string{"Authorization": "Bearer 5b1"}, 401, "missing or wrong"},
		{"basic", "GET", "/v1/groups", "", map[string]string{"Authorization": "Basic " + testToken}, 401, "missing or wrong"},
		{"unknown path hides from strangers", "GET", "/v2", "", map[string]string{"Authorization": ""}, 401, ""},
		{"unknown path", "GET", "/v2", "", nil, 404, "no such resource"},
		{"rebinding", "GET", "/healthz", "", map[string]string{"Host": "evil.example"}, 421, "localhost only"},
		{"rebinding with port", "GET", "/metrics", "", map[string]string{"Host": "evil.example:" + port}, 421, ""},
		{"rebinding by look", "GET", "/v1/groups", "", map[string]string{"Host": "127.0.0.1.evil.example"}, 421, ""},
		{"form", "POST", "/v1/groups/sensors/rekey", `{}`, map[string]string{"Content-Type": "text/plain"}, 415, ""},
		{"unknown member", "POST", "/v1/groups/sensors/rekey", `{"raeson":"x"}`, nil, 400, "raeson"},
		{"two objects", "POST", "/v1/groups/sensors/rekey", `{} {}`, nil, 400, "more follows"},
		{"empty body", "POST", "/v1/groups/sensors/rekey", ``, nil, 400, ""},
		{"large body", "POST", "/v1/groups/sensors/rekey", `{"reason":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413, "larger"},
		{"long reason", "POST", "/v1/groups/sensors/rekey", `{"reason":"` + strings.Repeat("x", maxReason+1) + `"}`, nil, 400, "reason"},
		{"evict nobody", "POST", "/v1/groups/sensors/evict", `{}`, nil, 400, "name 1 to"},
		{"evict no hex", "POST", "/v1/groups/sensors/evict", `{"sender_ids":["0"]}`, nil, 400, "sender_ids[0]"},
		{"token roles", "POST", "/v1/tokens", `{"audience":"a","scope":[{"group":"g","roles":["king"]}]}`, nil, 400, "king"},
		{"token scope", "POST", "/v1/tokens", `{"audience":"a","scope":[]}`, nil, 400, "scope is empty"},
		{"token lifetime", "POST", "/v1/tokens", `{"audience":"a","scope":[{"group":"g","roles":["monitor"]}],"lifetime":"-1h"}`, nil, 400, "lifetime"},
		{"revoke nothing", "POST", "/v1/tokens/revoke", `{"tokens":[]}`, nil, 400, "name 1 to"},
		{"revoke no hex", "POST", "/v1/tokens/revoke", `{"tokens":["01","x"]}`, nil, 400, "tokens[1]"},
		{"revoke no token", "POST", "/v1/tokens/revoke", `{"tokens":["00"]}`, nil, 400, "neither an access token"},
		{"wrong method", "DELETE", "/v1/groups", "", nil, 404, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp := do(t, tt.method, base+tt.path, tt.body, tt.header)
			var p Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || p.Status != tt.status || !strings.Contains(p.Detail, tt.say) || p.Title == "" {
				t.Errorf("got %d %+v", resp.StatusCode, p)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("content type %q", ct)
			}
		})
	}
	if h.version != 7 {
		t.Errorf("a refused request rekeyed: version %d", h.version)
	}
}

func TestOpenResources(t *testing.T) {
	h := newHouse()
	base := "http://" + serve(t, h)
	none := map[string]string{"Authorization": ""}
	for path, want := range map[string]string{"/healthz": `"ok"`, "/readyz": `"ready":true`, "/metrics": "groupgate_test"} {
		resp := do(t, "GET", base+path, "", none)
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, body, err)
		}
	}
	h.down = true
	if resp := do(t, "GET", base+"/readyz", "", none); resp.StatusCode != 503 {
		t.Errorf("readyz of a gateway that is down: %d", resp.StatusCode)
	}
	// An error of the house is 500, its text told to the operator.
	resp := do(t, "POST", base+"/v1/tokens", `{"audience":"a","scope":[{"group":"g","roles":["monitor"]}],"lifetime":"1h"}`, nil)
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 500 || !strings.Contains(string(body), "disk on fire") {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
}

// Without a token nothing under /v1 opens, not even to an empty one.
func TestNoTokenConfigured(t *testing.T) {
	s := New(Config{}, Deps{Groups: newHouse()})
	if s.tokenMatches("") {
		t.Error("an empty token matches")
	}
}

// Connections beyond the limit wait, and Run ends although they do.
func TestConnectionLimit(t *testing.T) {
	base := serve(t, newHouse())
	for range maxConns + 2 {
		c, err := net.Dial("tcp", base)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}
