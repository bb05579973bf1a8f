package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestRekeys(t *testing.T) {
	h := newHouse()
	h.created = []groupcomm.GroupConfig{{Name: "pumps"}, {Name: "valves"}} // it cannot rekey them
	c := NewClient(serve(t, h), testToken)

	r, err := c.Rekeys(t.Context(), RekeysAsk{Reason: "drill", Scheduled: true})
	if err != nil || len(r.Groups) != 3 || r.Next != "" || h.reason != "drill, scheduled" {
		t.Fatalf("all: %+v %v", r, err)
	}
	for i, name := range []string{"pumps", "sensors", "valves"} {
		g := r.Groups[i]
		if good := name == "sensors"; g.Group != name || (g.Error == "") != good || (g.Version == h.version) != good {
			t.Errorf("group %d: %+v", i, g)
		}
	}
	before := h.version
	for _, tt := range []struct {
		ask  RekeysAsk
		want []string
	}{
		{RekeysAsk{Match: "se*"}, []string{"sensors"}},
		{RekeysAsk{Match: "?[au]*"}, []string{"pumps", "valves"}},
		{RekeysAsk{After: "pumps"}, []string{"sensors", "valves"}},
		{RekeysAsk{After: "valves"}, nil},
		{RekeysAsk{Match: "sensor"}, nil},
	} {
		r, err := c.Rekeys(t.Context(), tt.ask)
		var got []string
		if err == nil {
			for _, g := range r.Groups {
				got = append(got, g.Group)
			}
		}
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v: %v %v", tt.ask, got, err)
		}
	}
	if h.version != before+2 {
		t.Errorf("%d rekeys of sensors, want 2", h.version-before)
	}
	for _, ask := range []RekeysAsk{{Match: "["}, {Reason: strings.Repeat("x", maxReason+1)}} {
		if p, ok := errors.AsType[*Problem](second(c.Rekeys(t.Context(), ask))); !ok || p.Status != http.StatusBadRequest {
			t.Errorf("%.20v: no error", ask)
		}
	}
	if h.version != before+2 {
		t.Error("a bad request rekeyed")
	}
}

// slowHouse takes its time for a rekey of any group.
type slowHouse struct{ *house }

func (slowHouse) Rekey(context.Context, string, string) (uint64, error) {
	time.Sleep(rekeysFor * 2 / 5)
	return 1, nil
}

// A request that takes long is answered with what is done; the next goes on there.
func TestRekeysInParts(t *testing.T) {
	h := newHouse()
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		h.created = append(h.created, groupcomm.GroupConfig{Name: name})
	}
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Token: testToken}, Deps{Groups: slowHouse{h}})
		var parts []int
		var names string
		for after := ""; len(parts) == 0 || after != ""; {
			body, err := json.Marshal(RekeysAsk{After: after})
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest("POST", "http://127.0.0.1/v1/rekeys", strings.NewReader(string(body)))
			req.Header.Set("Authorization", "Bearer "+testToken)
			req.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, req)
			var r RekeysResult
			if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != 200 || len(r.Groups) == 0 {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			parts = append(parts, len(r.Groups))
			for _, g := range r.Groups {
				names += g.Group + " "
			}
			after = r.Next
		}
		if !reflect.DeepEqual(parts, []int{3, 3, 1}) || names != "a b c d e f sensors " {
			t.Errorf("parts of %v: %s", parts, names)
		}
	})
}
