package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

func (h *house) EnrollNodes(_ context.Context, nodes []NodeSpec, o EnrollOptions) (*EnrollResult, error) {
	h.options = o
	var faults LineFaults
	for _, n := range nodes {
		if n.Identity == "taken" {
			faults = append(faults, LineFault{n.Line, `"taken" is enrolled already`})
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	if !o.DryRun {
		h.enrolled = append(h.enrolled, nodes...)
	}
	return &EnrollResult{Audience: "rs", Enrolled: len(nodes)}, nil
}

func (h *house) ListNodes(_ context.Context, after string, limit int) (list []NodeStatus, _ error) {
	for _, n := range h.enrolled {
		if n.Identity > after && len(list) < limit {
			state := "enabled"
			if h.disabled[n.Identity] {
				state = "disabled"
			}
			list = append(list, NodeStatus{n.Identity, state, "rs", n.Scope, time.Hour, time.Unix(1_900_000_000, 0)})
		}
	}
	return list, nil
}

func (h *house) EnableNodes(_ context.Context, ids []string) (int, error) {
	clear(h.disabled)
	return len(ids), nil
}

func (h *house) DisableNodes(_ context.Context, ids []string) (int, error) {
	h.disabled = map[string]bool{}
	for _, id := range ids {
		if id == "nobody" {
			return 0, coap.Errorf(coap.NotFound, "not enrolled: %q", id)
		}
		h.disabled[id] = true
	}
	return len(ids), nil
}

func (h *house) RemoveNodes(_ context.Context, ids []string) (int, error) {
	h.enrolled = slices.DeleteFunc(h.enrolled, func(n NodeSpec) bool { return slices.Contains(ids, n.Identity) })
	return len(ids), nil
}

func specs(names ...string) []NodeSpec {
	var list []NodeSpec
	for i, n := range names {
		list = append(list, NodeSpec{Line: 10 * (i + 1), Identity: n, Key: cose.NewSecret([]byte("0123456789abcdef")),
			Scope: groupcomm.Scope{{Group: "sensors", Roles: 6}, {Group: "later", Roles: 8}}})
	}
	return list
}

func TestNodes(t *testing.T) {
	h := newHouse()
	c := NewClient(serve(t, h), testToken)
	ctx := t.Context()
	var names []string
	for i := range nodePage + 1 {
		names = append(names, fmt.Sprintf("n%05d", i))
	}
	o := EnrollOptions{Lifetime: time.Hour, Audience: "rs & more", Replace: true}
	r, err := c.EnrollNodes(ctx, specs(names...), o)
	if err != nil || r.Enrolled != len(names) || !slices.Equal(r.UnknownGroups, []string{"later"}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if h.options != o || string(h.enrolled[0].Key.Bytes()) != "0123456789abcdef" || len(h.enrolled[0].Scope) != 2 {
		t.Errorf("options %+v, first node %q", h.options, h.enrolled[0].Identity)
	}
	if n, err := c.ChangeNodes(ctx, "disable", names[:2]); err != nil || n.Changed != 2 {
		t.Errorf("disable: %+v, %v", n, err)
	}
	list, err := c.Nodes(ctx)
	if err != nil || len(list) != len(names) || list[0].State != "disabled" || list[nodePage].State != "enabled" ||
		list[0].Lifetime != "1h0m0s" || len(list[0].Scope) != 2 || list[0].Scope[1].Roles[0] != "monitor" {
		t.Errorf("%d nodes, %v", len(list), err)
	}
	if _, err := c.ChangeNodes(ctx, "enable", names[:2]); err != nil || len(h.disabled) > 0 {
		t.Errorf("enable: %v", err)
	}
	if _, err := c.ChangeNodes(ctx, "remove", names[1:]); err != nil || len(h.enrolled) != 1 {
		t.Errorf("remove: %v", err)
	}
	_, err = c.ChangeNodes(ctx, "disable", []string{"nobody"})
	if p, ok := errors.AsType[*Problem](err); !ok || p.Status != http.StatusNotFound || !strings.Contains(p.Hint, "node list") {
		t.Errorf("an unknown node: %v", err)
	}
	if _, err := c.ChangeNodes(ctx, "disable", make([]string, maxChanged+1)); err == nil {
		t.Error("too many at once")
	}
}

// Mistakes that the parser finds and those that the room finds are told
// together, at the lines of the file, and nothing is changed.
func TestEnrollMistakes(t *testing.T) {
	h := newHouse()
	c := NewClient(serve(t, h), testToken)
	list := specs("good", "two\nlines", "taken", "good", "no key", "last")
	list[4].Key = cose.Secret{}
	_, err := c.EnrollNodes(t.Context(), list, EnrollOptions{Lifetime: time.Hour})
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Status != http.StatusUnprocessableEntity || len(p.Faults) != 3 || len(h.enrolled) > 0 || !h.options.DryRun {
		t.Fatalf("%v, %+v", err, p)
	}
	for i, line := range []int{30, 40, 50} {
		if p.Faults[i].Line != line {
			t.Errorf("fault %d: %+v", i, p.Faults[i])
		}
	}
	if _, err := c.EnrollNodes(t.Context(), specs("good"), EnrollOptions{Lifetime: time.Hour, DryRun: true}); err != nil || len(h.enrolled) > 0 {
		t.Errorf("dry run: %v, %d enrolled", err, len(h.enrolled))
	}
}

func TestEnrollRequests(t *testing.T) {
	h := newHouse()
	base := "http://" + serve(t, h) + "/v1/nodes"
	csv := map[string]string{"Authorization": "Bearer " + testToken, "Content-Type": "text/csv"}
	for _, r := range []struct {
		query, body string
		header      map[string]string
		want        int
	}{
		{"", goodNodes, map[string]string{"Authorization": "Bearer x", "Content-Type": "text/csv"}, 401},
		{"", goodNodes, map[string]string{"Authorization": "Bearer " + testToken, "Content-Type": "text/plain"}, 415},
		{"?lifetime=1ms", goodNodes, csv, 400},
		{"?replace=perhaps", goodNodes, csv, 400},
		{"?spelling=wrong", goodNodes, csv, 400},
		{"", goodNodes, csv, 422}, // a line without a key
		{"", "identity,key,groups,roles\n" + strings.Repeat("x", maxNodesBody), csv, 422},
		{"", "identity,key,groups,roles\nn,00112233445566778899aabbccddeeff,g,monitor\n", csv, 200},
	} {
		if got := do(t, http.MethodPost, base+r.query, r.body, r.header); got.StatusCode != r.want {
			t.Errorf("%s %.40q: %d, want %d", r.query, r.body, got.StatusCode, r.want)
		}
	}
	if len(h.enrolled) != 1 || h.options.Lifetime != 24*time.Hour {
		t.Errorf("%d enrolled with %+v", len(h.enrolled), h.options)
	}
}
