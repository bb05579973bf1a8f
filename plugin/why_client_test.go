package plugin

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/ace"
	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/audit"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Who is not in a group is told the first obstacle on the way there, and what to do.
func TestOutside(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	scope := groupcomm.Scope{{Group: "g", Roles: groupcomm.Requester}}
	enabled := ace.ClientInfo{Identity: "m", State: "enabled", MayToken: true, Scope: scope}
	with := func(change func(*ace.ClientInfo)) *ace.ClientInfo { c := enabled; change(&c); return &c }
	evicted := audit.Departure{At: now.Add(-time.Hour), Evicted: true, Reason: "operator"}
	unfinished := &admin.WhyHandshake{Result: "unfinished"}
	for name, tc := range map[string]struct {
		client    *ace.ClientInfo
		handshake *admin.WhyHandshake
		refused   *admin.WhyRefusal
		departed  audit.Departure
		because   string
		next      string
	}{
		"nobody":         {because: "it is not a member", next: "joins with a token"},
		"was a member":   {departed: evicted, because: "it was evicted at 2026-01-01T11:00:00Z: operator", next: "joins with a token"},
		"left":           {departed: audit.Departure{At: now}, because: "it left at 2026-01-01T12:00:00Z", next: "joins with a token"},
		"disabled":       {client: with(func(c *ace.ClientInfo) { c.State, c.MayToken = "disabled", false }), departed: evicted, because: "operator; it is disabled", next: "gateway node enable m"},
		"no tokens":      {client: with(func(c *ace.ClientInfo) { c.State, c.MayToken = "configured", false }), because: "may not ask for tokens", next: "may: [token]"},
		"no server":      {client: with(func(c *ace.ClientInfo) { c.MayToken = false }), because: "not enabled", next: "authorization_server.enabled"},
		"other groups":   {client: with(func(c *ace.ClientInfo) { c.Scope = nil }), because: "nothing lets it have a token", next: "gateway node enroll --replace"},
		"no policy":      {client: with(func(c *ace.ClientInfo) { c.Scope, c.State = nil, "configured" }), because: "nothing lets it have a token", next: "authorization_server.policies"},
		"never came":     {client: &enabled, because: "no access token", next: "power and network"},
		"wrong key":      {client: &enabled, handshake: unfinished, because: "no access token", next: "gateway node enroll --replace"},
		"wrong psk":      {client: with(func(c *ace.ClientInfo) { c.State = "configured" }), handshake: unfinished, because: "no access token", next: "that of the psk entry"},
		"associated":     {client: &enabled, handshake: &admin.WhyHandshake{Result: "done"}, because: "no access token", next: "POST /token"},
		"refused":        {client: &enabled, refused: &admin.WhyRefusal{}, because: "no access token", next: "newest refused request"},
		"token ended":    {client: with(func(c *ace.ClientInfo) { c.Until = now.Add(-time.Minute) }), because: "ended at 2026-01-01T11:59:00Z", next: "power and network"},
		"token not here": {client: with(func(c *ace.ClientInfo) { c.Until = now.Add(time.Hour) }), because: "did not get here", next: "/authz-info"},
		"no join":        {client: with(func(c *ace.ClientInfo) { c.Until, c.Posted = now.Add(time.Hour), true }), because: "did not join", next: "POST /ace-group/g"},
	} {
		w := newWhyGroup(groupcomm.GroupStatus{Name: "g"})
		outside(w, tc.client, &admin.WhyClient{Handshake: tc.handshake, Refused: tc.refused}, tc.departed, now)
		if next := strings.Join(w.Next, "\n"); w.Reads != "no" || !strings.Contains(w.Because, tc.because) || !strings.Contains(next, tc.next) {
			t.Errorf("%s: %s, because %s; next: %s", name, w.Reads, w.Because, next)
		}
	}
}

// A wrong key meets silence: only what was begun and not finished tells of it.
func TestTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr tries
		result := func(id string) string {
			if h := tr.newest([]byte(id)); h != nil {
				return h.Result
			}
			return ""
		}
		expect := func(when, id, want string) {
			t.Helper()
			if got := result(id); got != want {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		expect("before", "m", "")
		tr.asked([]byte("m"), nil)
		expect("at once", "m", "under-way")
		time.Sleep(handshakeTakes)
		expect("later", "m", "unfinished")
		tr.asked([]byte("m"), nil)
		tr.finished([]byte("m"))
		expect("with the right key", "m", "done")
		time.Sleep(time.Minute)
		expect("for good", "m", "done")
		tr.asked([]byte("m"), fmt.Errorf("%w: node is disabled", ace.ErrIdentity))
		expect("disabled", "m", "refused")
		tr.asked([]byte("m"), nil)
		time.Sleep(time.Minute)
		expect("another key since", "m", "unfinished")
		tr.asked([]byte("store"), errors.New("away"))
		expect("an error", "store", "refused")

		// Strangers are few, and nobody's that is known.
		for i := range 2 * maxStrangeTries {
			tr.asked(fmt.Appendf(nil, "x%d", i), ace.ErrIdentity)
		}
		if len(tr.strangers) != maxStrangeTries || result("m") == "" {
			t.Errorf("%d strangers", len(tr.strangers))
		}
		for i := range maxTries + 5 {
			tr.asked(fmt.Appendf(nil, "y%d", i), nil)
		}
		tr.asked(make([]byte, maxTriedText+1), nil)
		if len(tr.known) != maxTries {
			t.Errorf("%d known", len(tr.known))
		}
	})
}
