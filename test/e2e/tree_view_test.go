package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
)

// TestKeyTreeViews: why, group status, group rekey --watch and the metrics show a key
// tree, the way of a member in it, what was published, what waits and what was
// missed; and none of its keys.
func TestKeyTreeViews(t *testing.T) {
	t.Parallel()
	addr, _ := operatorBroker(t, anyPort, &tap{})
	g := serve(t, external(addr), keyTree, func(c *config.Config) { c.Groups[0].Rekey.BatchWindow = 5 * time.Minute })
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "data_dir: %s\nlisten: {http: %q}\n", g.cfg.DataDir, g.at.HTTP), 0o600); err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	cli := func(args ...string) string {
		t.Helper()
		out := run(t, 0, append(args, "--config", file)...).out.String()
		printed.WriteString(out)
		return out
	}
	status := func() *admin.DeliveryInfo {
		t.Helper()
		d := decode[admin.DeliveryInfo](t, cli("group", "status", group, "--json"))
		if d.Tree == nil || d.Tree.Degree != 2 || !strings.HasSuffix(d.Tree.Topic, "/tree") {
			t.Fatalf("%+v", d.Tree)
		}
		return d
	}
	why := func(m *member) admin.WhyGroup {
		t.Helper()
		return decode[admin.WhyInfo](t, cli("why", m.state().Node, group, "--json")).Groups[0]
	}
	awake := mates(g, 4, viaMQTT, seldom)
	sleeper := g.join(viaMQTT, seldom)
	if d := status(); d.Tree.Leaves != 5 || d.Tree.Height != 3 || d.Tree.Version != 0 {
		t.Errorf("before a rekey: %+v", d.Tree)
	}
	v := g.rekey()
	g.all(v, "mqtt", awake...)
	eventually(t, "all is at the broker", func() bool {
		tree := status().Tree
		return tree.Published != nil && int64(*tree.Published) == tree.Messages && tree.Messages > 0 && tree.Version == v && tree.Sent != nil
	})
	for _, m := range status().Ledger {
		if m.Tree == nil || m.Tree.Leaf == nil || m.Tree.CatchUp != "" {
			t.Errorf("%s: %+v", m.Node, m.Tree)
		}
	}
	w := why(sleeper)
	if w.Reads == "yes" || w.Tree == nil || len(w.Tree.Path) != 4 || w.Tree.Links == 0 {
		t.Fatalf("one that sleeps: %+v, %+v", w, w.Tree)
	}
	for level, n := range w.Tree.Path {
		if !strings.HasPrefix(n.Node, fmt.Sprint(level, "/")) || n.Topic != w.Tree.Group.Topic+"/"+n.Node || n.KeyVersion == 0 {
			t.Errorf("level %d: %+v", level, n)
		}
	}
	if root := w.Tree.Path[3]; root.Told != v {
		t.Errorf("the root: %+v", root)
	}
	// It asks for its way, as one does that missed a link, and does not show yet that
	// it has it.
	ask := &coap.Request{Code: coap.GET}
	ask.Options.SetPath("ace-group", group)
	if resp, err := sleeper.wire.Do(soon(t), ask); err != nil || resp.Code != coap.Content {
		t.Fatal(resp, err)
	}
	if w := why(sleeper); w.Reads == "yes" || w.Delivery.Tree.CatchUp != "asked" || !strings.Contains(strings.Join(w.Next, "\n"), "it asked for its way") {
		t.Errorf("it asked: %+v, %q", w.Delivery.Tree, w.Next)
	}
	sleeper.follow()
	g.all(v, "", append(awake, sleeper)...)

	// Two leaves wait for the batch.
	for _, m := range awake[2:] {
		if err := m.Leave(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	if tree := status().Tree; tree.Waiting != 2 || tree.Dirty == 0 || tree.Leaves != 3 || tree.Version != v {
		t.Errorf("two leaves wait: %+v", tree)
	}
	if text := cli("group", "status", group); !regexp.MustCompile(`key tree: 3 members, degree 2, height 3; version \d+ by \d+ messages?, all at the broker; 2 members out since, \d keys to renew`).MatchString(text) {
		t.Errorf("status says\n%s", text)
	}
	if text := cli("group", "status"); !regexp.MustCompile(`SINCE +KEY TREE\n(?s:.*)` + regexp.QuoteMeta(group) + ` .* ago +3 members, \d+ messages?\n`).MatchString(text) {
		t.Errorf("status of all says\n%s", text)
	}
	text := cli("group", "rekey", group, "--watch")
	if !regexp.MustCompile(`key tree: \d+ messages?, all at the broker`).MatchString(text) || !strings.Contains(text, "every member has it") {
		t.Errorf("watched:\n%s", text)
	}
	if tree := status().Tree; tree.Waiting != 0 || tree.Dirty != 0 || tree.Version != v+1 {
		t.Errorf("after the rekey: %+v", tree)
	}
	text = cli("why", sleeper.state().Node)
	for _, want := range []string{"can read " + group, "key tree     3 members, degree 2, height 3", "needs 0 messages of its way", "/tree/3/0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("why lacks %q:\n%s", want, text)
		}
	}
	metrics := scrape(t, "http://"+g.at.HTTP+"/metrics")
	for _, want := range []string{"tree_members", "tree_height", "tree_leaves_out", "tree_messages"} {
		if !strings.Contains(metrics, "groupgate_bridge_"+want+`{group="`+group+`"}`) {
			t.Errorf("metrics lack %s", want)
		}
	}
	printed.WriteString(metrics)
	printed.WriteString(g.log.String())
	keys := 0
	for _, m := range append(awake, sleeper) {
		secrets := [][]byte{m.mgt(0).Key, []byte(m.mgt(0).Password)}
		m.ways.mu.Lock()
		for _, given := range m.ways.given {
			for _, n := range given.Way.Path {
				secrets = append(secrets, n.Key)
			}
		}
		m.ways.mu.Unlock()
		for _, s := range secrets {
			keys++
			for _, form := range []string{hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s), base64.RawURLEncoding.EncodeToString(s), string(s)} {
				if form != "" && strings.Contains(printed.String(), form) {
					t.Fatal("a secret is shown")
				}
			}
		}
	}
	if keys < 20 {
		t.Errorf("only %d secrets are known", keys)
	}
}

func scrape(t *testing.T, uri string) string {
	t.Helper()
	resp, err := http.Get(uri)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
