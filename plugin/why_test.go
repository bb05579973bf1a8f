package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestVerdict(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(v uint64) *uint64 { return &v }
	roles := []string{"requester"}
	valid := &admin.WhyToken{Valid: true, Roles: roles}
	for name, tc := range map[string]struct {
		w     admin.WhyGroup
		m     groupcomm.Member
		exp   time.Time
		reads string
		next  string // in what to do; "": nothing is to be done
	}{
		"current": {w: admin.WhyGroup{Token: valid, Held: at(3), Delivery: &admin.DeliveryMember{State: "current", Channel: "observe"}}, reads: "yes"},
		"asleep": {w: admin.WhyGroup{Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{State: "asleep", Channel: "observe", NextWake: &now}},
			reads: "no", next: "announced that it wakes at 2026-01-01T12:00:00Z"},
		"unreachable": {w: admin.WhyGroup{Group: "g", Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{Node: "n", State: "unreachable", Channel: "observe"}},
			reads: "no", next: "gateway group evict g n"},
		"no association": {w: admin.WhyGroup{Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{State: "pending", Channel: "observe"}}, reads: "no", next: "no association"},
		"poller":         {w: admin.WhyGroup{Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{State: "pending", Channel: "poll"}}, reads: "no", next: "it learns of a rekey when it asks"},
		"no token": {w: admin.WhyGroup{Token: &admin.WhyToken{}, Held: at(2), Delivery: &admin.DeliveryMember{State: "lapsed"}}, m: groupcomm.Member{Lapsed: true},
			reads: "no", next: "a new token for the same key"},
		"lapsed, before a rekey": {w: admin.WhyGroup{Token: &admin.WhyToken{}, Held: at(3), Delivery: &admin.DeliveryMember{State: "lapsed"}}, m: groupcomm.Member{Lapsed: true},
			reads: "yes", next: "a new token for the same key"},
		"under way":      {w: admin.WhyGroup{Token: valid, Held: at(2), Associations: make([]admin.Association, 1), Delivery: &admin.DeliveryMember{State: "pending", Channel: "observe"}}, reads: "no", next: "sent to it by observe is not confirmed"},
		"off the broker": {w: admin.WhyGroup{Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{State: "pending", Channel: "mqtt", Connected: new(bool)}}, reads: "no", next: "not connected to the MQTT broker"},
		"asleep and asks": {w: admin.WhyGroup{Token: valid, Held: at(2), Delivery: &admin.DeliveryMember{State: "asleep", Channel: "poll", NextWake: &now}},
			reads: "no", next: "if it asks for them then"},
		"roles": {w: admin.WhyGroup{Token: valid, Held: at(3), Delivery: &admin.DeliveryMember{State: "current"}}, m: groupcomm.Member{Roles: groupcomm.Responder},
			reads: "no", next: "in scope"},
		"keys expired": {w: admin.WhyGroup{Token: valid, Held: at(3), Delivery: &admin.DeliveryMember{State: "current", Channel: "observe"}}, exp: now.Add(-time.Hour), reads: "no", next: "should have been rekeyed"},
		"just joined":  {w: admin.WhyGroup{Token: valid, Delivery: &admin.DeliveryMember{State: "pending", Channel: "mqtt"}}, m: groupcomm.Member{JoinedAt: 3}, reads: "unknown", next: "subscribes"},
	} {
		if tc.m.Roles == 0 {
			tc.m.Roles = groupcomm.Requester
		}
		if tc.exp.IsZero() {
			tc.exp = now.Add(time.Hour)
		}
		verdict(&tc.w, &tc.m, groupcomm.GroupStatus{Version: 3, Exp: tc.exp}, now)
		next := strings.Join(tc.w.Next, "\n")
		if strings.Contains(next, "nothing yet") && len(tc.w.Next) > 1 {
			t.Errorf("%s: nothing is to be done, and something: %s", name, next)
		}
		if tc.w.Reads != tc.reads || tc.w.Because == "" || !strings.Contains(next, tc.next) || tc.next == "" && next != "" {
			t.Errorf("%s: %s, because %s; next: %s", name, tc.w.Reads, tc.w.Because, next)
		}
	}
}

func TestClockHint(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	end := now.Add(-time.Minute)
	if h := clockHint(now, &admin.WhyToken{Expires: &end}); h == "" {
		t.Error("a token that ended a minute ago")
	}
	if h := clockHint(now.AddDate(-30, 0, 0), &admin.WhyToken{Valid: true}); h == "" {
		t.Error("a gateway in 1996")
	}
	later := now.Add(time.Hour)
	if h := clockHint(now, &admin.WhyToken{Valid: true, Expires: &later}); h != "" {
		t.Errorf("all is well: %s", h)
	}
}

// The newest refused request of each subject is remembered, of a bounded number.
func TestRefusals(t *testing.T) {
	var r refusals
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath("ace-group", strings.Repeat("x", 300))
	r.note(req, coap.ErrorResponse(groupcomm.ErrNotMember))
	if len(r.of) != 0 {
		t.Error("a stranger is remembered")
	}
	for i := range maxRefusals + 10 {
		req.Peer.Subject = coap.Subject{Kind: coap.SubjectPoP, ID: string(rune(i))}
		r.note(req, coap.ErrorResponse(groupcomm.ErrNotMember))
	}
	v, ok := r.newest(req.Peer.Subject)
	if !ok || v.code != "4.03" || v.method != "GET" || len(v.path) > 200 || !strings.Contains(v.reason, "group members") {
		t.Errorf("%+v", v)
	}
	if len(r.of) != maxRefusals {
		t.Errorf("%d are remembered", len(r.of))
	}
}
