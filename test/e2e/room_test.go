package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/node"
)

// TestStrangersPushOutNoMember: peers whose keys are good, but who are in no group, come
// in greater numbers than limits.sessions allows: members keep their associations
// and are rekeyed over them.
func TestStrangersPushOutNoMember(t *testing.T) {
	t.Parallel()
	g := serve(t, func(c *config.Config) { c.Limits.Sessions = 8 })
	var redials atomic.Int32
	count := func(c *node.Config) {
		redial := c.Redial
		c.Redial = func(ctx context.Context) (node.Transport, error) {
			redials.Add(1)
			return redial(ctx)
		}
	}
	members := []*member{g.join(count), g.join(count)}
	for _, m := range members {
		m.follow()
	}
	// associations tells from which address each member is heard.
	associations := func() map[string]string {
		t.Helper()
		l, err := g.admin.Liveness(soon(t), group, "")
		if err != nil || len(l.Members) != len(members) {
			t.Fatalf("%+v, %v", l, err)
		}
		out := map[string]string{}
		for _, m := range l.Members {
			for _, a := range m.Associations {
				out[m.Node] += fmt.Sprint(a.Peer, " ", a.Observations > 0)
			}
		}
		return out
	}
	for _, m := range members {
		eventually(t, "the member observes", func() bool { return strings.Contains(associations()[m.state().Node], " true") })
	}
	before := associations()
	req := &coap.Request{Code: coap.GET}
	req.Options.SetPath(".well-known", "core")
	served := 0
	for range 30 {
		tr := g.dial([]byte(g.client.Identity), g.client.Key.Bytes())
		if r, err := tr.Do(soon(t), req); err == nil && r.Code == coap.Content {
			served++
		}
	}
	if served < 20 { // but for those that came before it was known who the others are
		t.Errorf("%d strangers of 30 were served", served)
	}
	if after := associations(); !maps.Equal(after, before) {
		t.Errorf("members had the associations %v, and now %v", before, after)
	}
	if _, err := g.admin.Rekey(soon(t), group, ""); err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		m.reaches(1)
	}
	if n := redials.Load(); n != 0 {
		t.Errorf("members lost their associations and made %d more", n)
	}
	resp, err := http.Get("http://" + g.at.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(all), `groupgate_endpoint_evicted_total{listener="coaps",standing="stranger"} `) {
		t.Errorf("no stranger went: %v", err)
	}
}
