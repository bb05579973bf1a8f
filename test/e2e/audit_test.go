package e2e

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/coap"
)

// audit reads the audit log by the command line.
func (s *site) audit(flags ...string) (list []admin.AuditRecord, text string) {
	s.t.Helper()
	c := run(s.t, 0, append([]string{"audit", "--json", "--config", s.config}, flags...)...)
	text = c.out.String()
	for line := range strings.Lines(text) {
		var r admin.AuditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatalf("%v in %s", err, line)
		}
		list = append(list, r)
	}
	return list, text
}

// TestAudit: what must be logged is (draft-ietf-ace-key-groupcomm-oscore-21,
// Section 15.1), what must not be is not, and personal fields are shown only to
// those who say so.
func TestAudit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gw := s.run()
	d := s.door()
	secrets := []string{}
	hidden := func(b []byte) { secrets = append(secrets, hex.EncodeToString(b)) }

	a := d.token()
	hidden(a.Token)
	hidden(a.Key.Bytes())
	cfg := d.config(a)
	cfg.Transfer = d.post(a)
	first := d.enter(a, cfg, d.as(a))
	state := first.state()
	hidden(state.MasterSecret.Bytes())
	hidden(state.MasterSalt)
	ask(t, first.wire, coap.POST, []string{"ace-group", "sensors", "nodes", state.Node}, 0, nil) // a new Sender ID
	ask(t, first.wire, coap.GET, []string{"ace-group", "nowhere"}, 0, nil)                       // refused
	leaver := d.join()
	left := leaver.state()
	if err := leaver.Leave(soon(t)); err != nil {
		t.Fatal(err)
	}
	s.rekey()
	run(t, 0, "group", "evict", "sensors", state.Node, "--config", s.config)

	kinds := func(list []admin.AuditRecord) map[string]admin.AuditRecord {
		m := map[string]admin.AuditRecord{}
		for _, r := range list {
			m[r.Kind] = r
		}
		return m
	}
	wanted := []string{"group.created", "group.joined", "group.sender-id", "group.left", "group.rekeyed", "group.evicted", "request.refused"}
	var list []admin.AuditRecord
	var text string
	eventually(t, "all that happened is in the audit log", func() bool {
		list, text = s.audit()
		m := kinds(list)
		for _, k := range wanted {
			if _, ok := m[k]; !ok {
				return false
			}
		}
		return true
	})
	for _, personal := range []string{state.Node, left.Node, "127.0.0.1", hex.EncodeToString(a.KID)} {
		if strings.Contains(text, personal) {
			t.Errorf("%q is told in\n%s", personal, text)
		}
	}
	redacted := kinds(list)
	if redacted["group.evicted"].Node != redacted["group.sender-id"].Node || redacted["group.evicted"].Node == redacted["group.left"].Node {
		t.Errorf("pseudonyms: %+v", redacted)
	}

	full, fullText := s.audit("--full")
	m := kinds(full)
	if e := m["group.evicted"]; e.Node != state.Node || e.SenderID == nil || e.Group != "sensors" || !strings.Contains(e.Subject, hex.EncodeToString(a.KID)) {
		t.Errorf("eviction: %+v", e)
	}
	if l := m["group.left"]; l.Node != left.Node || !strings.HasPrefix(l.Peer, "127.0.0.1:") {
		t.Errorf("leave: %+v", l)
	}
	if r := m["request.refused"]; r.Code == "" || r.Path != "/ace-group/{group}" || r.Group != "nowhere" || !strings.HasPrefix(r.Peer, "127.0.0.1:") {
		t.Errorf("refusal: %+v", r)
	}
	if r := m["group.rekeyed"]; r.Gid == "" || r.Reason == "" || r.Version == nil {
		t.Errorf("rekey: %+v", r)
	}
	if reads, _ := s.audit("--kind", "audit.full-read"); len(reads) == 0 {
		t.Error("reading of full records is not recorded")
	}
	run(t, 0, "audit", "--kind", "group.left", "--group", "sensors", "--config", s.config).
		says(`^\d{4}-\d\d-\d\dT[\d:.]+Z group\.left group=sensors node=~[0-9a-f]{12} peer=~`)

	follower := start(t, "audit", "--follow", "--kind", "group.rekeyed", "--config", s.config)
	follower.says(`group\.rekeyed .*version=1 `) // whatever led to it: a leave and an order may share one
	run(t, 0, "group", "rekey", "sensors", "--reason", "seen-live", "--config", s.config)
	follower.says(`group\.rekeyed .*reason=seen-live`)
	if status := follower.signal(syscall.SIGINT); status != 0 {
		t.Errorf("a follower that is told to stop ends with %d", status)
	}
	run(t, 2, "audit", "--follow", "--full", "--config", s.config)

	logged := gw.err.String()
	gw = restart(s, gw) // nothing is lost, or there twice
	again, _ := s.audit("--kind", strings.Join(wanted, ","))
	if before, after := kinds(list), kinds(again); before["group.left"].ID != after["group.left"].ID || before["group.left"].Node != after["group.left"].Node {
		t.Errorf("before a kill %+v, after it %+v", before["group.left"], after["group.left"])
	}
	if status := gw.signal(syscall.SIGTERM); status != 0 {
		t.Errorf("status %d", status)
	}
	everything := strings.ToLower(fullText + text + logged + gw.err.String())
	for _, secret := range secrets {
		if len(secret) < 16 || strings.Contains(everything, secret) {
			t.Errorf("a secret of %d digits is logged", len(secret))
		}
	}
}
