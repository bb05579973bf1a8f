package admin

import (
	"context"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func (h *house) AuditRecords(_ context.Context, q AuditQuery) ([]AuditRecord, error) {
	h.query = q
	if q.After > 0 {
		return nil, nil
	}
	id, version := "0a", uint64(7)
	return []AuditRecord{{ID: 1, At: time.Unix(1_900_000_000, 5e6).UTC(), Kind: "group.joined", Group: "sensors", Node: "~0123456789ab",
		SenderID: &id, Version: &version, Roles: []string{"monitor"}}}, nil
}

func TestAudit(t *testing.T) {
	h := newHouse()
	addr := serve(t, h)
	c := NewClient(addr, testToken)
	q := AuditQuery{Group: "sensors", Kinds: []string{"group.joined", "a&b"}, Since: time.Unix(1_800_000_000, 0).UTC(), Full: true, Limit: auditPage}
	list, err := c.Audit(t.Context(), q)
	if err != nil || !reflect.DeepEqual(h.query, q) {
		t.Errorf("asked %+v, %v", h.query, err)
	}
	if want, _ := h.AuditRecords(t.Context(), AuditQuery{}); !reflect.DeepEqual(list, want) {
		t.Errorf("got %+v", list)
	}
	if list, err := c.Audit(t.Context(), AuditQuery{After: 1}); err != nil || len(list) != 0 || h.query.Full || h.query.After != 1 {
		t.Errorf("the page after the last: %+v, %v", list, err)
	}
	base := "http://" + addr + "/v1/audit"
	for query, want := range map[string]int{
		"":                 http.StatusOK,
		"?since=yesterday": http.StatusBadRequest,
		"?full=perhaps":    http.StatusBadRequest,
		"?after=x":         http.StatusBadRequest,
		"?limit=1":         http.StatusBadRequest, // none of the parameters
		"?group=" + long(): http.StatusBadRequest,
		"?kind=" + long():  http.StatusBadRequest,
		"?" + strings.Repeat("kind=k&", maxAuditKinds+1) + "full=false": http.StatusBadRequest,
	} {
		if got := do(t, http.MethodGet, base+query, "", nil); got.StatusCode != want {
			t.Errorf("%.40s: %d, want %d", query, got.StatusCode, want)
		}
	}
	if got := do(t, http.MethodGet, base, "", map[string]string{"Authorization": "Bearer x"}); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the token: %d", got.StatusCode)
	}
}

func long() string { return strings.Repeat("x", maxAuditText+1) }
