package admin

import (
	"errors"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
)

func TestGroupLife(t *testing.T) {
	h := newHouse()
	c := NewClient(serve(t, h), testToken)
	ctx := t.Context()
	want := groupcomm.DefaultGroupConfig("pumps")
	want.SignAlg, want.ECDHCrv, want.HKDF, want.ECDHAlg = -7, 1, 7, -28
	want.KeyLifetime, want.BatchWindow, want.RekeyOnJoin, want.List = time.Hour, 0, true, false
	want.GidPrefix, want.GidEpochBytes, want.MaxStaleSets = []byte{0xc3}, 5, 4
	want.GidReuse, want.Interface, want.RekeyOnRenewal, want.CredFmt = true, groupcomm.Both, true, 13
	want.ExpiryGrace, want.ExpiryBatch, want.KeyCheck, want.ExpirationDelta = time.Minute, time.Second, 0, 7
	want.AppGroups = []string{"lights", "fans"}
	want.Activation = groupcomm.Activation{Spread: time.Minute}
	want.Delivery = groupcomm.DeliveryPolicy{RetryFor: -1, UnreachableAfter: time.Hour, EvictAfter: 2 * time.Hour}
	g, err := c.CreateGroup(ctx, AskFor(want))
	if err != nil || g.Name != "pumps" || !g.Active {
		t.Fatalf("%+v %v", g, err)
	}
	if !reflect.DeepEqual(h.created[0], want) {
		t.Errorf("created %+v, want %+v", h.created[0], want)
	}
	if _, err := c.CreateGroup(ctx, GroupAsk{Name: "plain", Alg: "none", ECDHAlg: "none"}); err != nil {
		t.Fatal(err)
	}
	plain := groupcomm.DefaultGroupConfig("plain")
	plain.Alg, plain.ECDHAlg, plain.ECDHCrv = 0, 0, 0
	if !reflect.DeepEqual(h.created[1], plain) {
		t.Errorf("created %+v, want %+v", h.created[1], plain)
	}

	status := func(what string, err error, want int) {
		t.Helper()
		if p, ok := errors.AsType[*Problem](err); !ok || p.Status != want {
			t.Errorf("%s: %v, want %d", what, err, want)
		}
	}
	for what, ask := range map[string]GroupAsk{
		"an unknown algorithm": {Name: "x", SignAlg: "RSA"},
		"an unknown curve":     {Name: "x", ECDHCurve: "X449"},
		"no duration":          {Name: "x", KeyLifetime: "long"},
		"an unknown order":     {Name: "x", ActivationOrder: "requesters-first"},
		"no hex":               {Name: "x", GidPrefix: "xyz"},
	} {
		_, err := c.CreateGroup(ctx, ask)
		status(what, err, http.StatusBadRequest)
	}
	_, err = c.CreateGroup(ctx, GroupAsk{Name: "sensors"})
	status("a name in use", err, http.StatusConflict)

	_, err = c.DeleteGroup(ctx, "sensors")
	status("an active group", err, http.StatusConflict)
	if g, err := c.SetActive(ctx, "sensors", false); err != nil || g.Active {
		t.Errorf("%+v %v", g, err)
	}
	if r, err := c.DeleteGroup(ctx, "sensors"); err != nil || !r.Deleted {
		t.Errorf("%+v %v", r, err)
	}
	if g, err := c.SetActive(ctx, "sensors", true); err != nil || !g.Active {
		t.Errorf("%+v %v", g, err)
	}
	_, err = c.DeleteGroup(ctx, "nope")
	status("no group", err, http.StatusNotFound)
	_, err = c.SetActive(ctx, "nope", true)
	status("no group", err, http.StatusNotFound)
}
