package plugin

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// recorded are databases as earlier programs left them, written by real runs
// with the sealing key of storetest and killed with a rekey due: group sensors at
// version 3 with an observer, a member on MQTT, two evicted nodes and their
// stale Sender IDs; group doors, untouched. Add one for each schema that was
// released.
var recorded = []string{"schema1.sql"}

const (
	observer   = "d18ab3a1c6eae9108595006dc099a73881928a291aa64f6d" // subject
	overMQTT   = "184ebd31887c8cbcba09e3e6540e3ac7a7514b8acdfdbb95"
	evictedOne = "c350c162eae89859e7811126dbdc9d678a610073c65a50b4"
)

// TestMigrate opens databases of earlier schemas, and everything in them is
// served on.
func TestMigrate(t *testing.T) {
	for _, name := range recorded {
		t.Run(name, func(t *testing.T) { testMigrate(t, filepath.Join("testdata", name)) })
	}
}

func testMigrate(t *testing.T, dump string) {
	ctx, dir := t.Context(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, config.SealKeyFile), []byte(hex.EncodeToString(storetest.Key())), 0o600); err != nil {
		t.Fatal(err)
	}
	sql, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	if err := storetest.Load(dir, string(sql)); err != nil {
		t.Fatal(err)
	}
	cfg := config.Embedded()
	cfg.DataDir, cfg.Tokens[0].Audience = dir, "groupgate"
	cfg.Groups[0].KeyLifetime = 10 * 365 * 24 * cfg.Groups[0].Rekey.OnExpiry.Batch // an hour
	cfg.Groups[0].Gid.Prefix = "a7"
	cfg.Listen.MQTT = "127.0.0.1:0"
	if err := cfg.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	st := storetest.OpenDir(t, dir, migrations()...)
	g, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.build(st)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.setup(ctx); err != nil {
		t.Fatal(err)
	}

	groups, err := b.gm.Groups(ctx)
	if err != nil || len(groups) != 2 {
		t.Fatalf("%+v, %v", groups, err)
	}
	if s := groups[1]; s.Name != "sensors" || s.Version != 3 || s.Gid.String() != "a700000003" || !s.Active || !s.Due || s.Members != 2 {
		t.Errorf("%+v", s)
	}
	for _, key := range []string{observer, overMQTT, evictedOne} { // tokens are those of keys, not of members
		if psk, err := b.ace.PSK(ctx, pskIdentity(t, key)); err != nil || len(psk) != 16 {
			t.Errorf("key of %s: %d bytes, %v", key, len(psk), err)
		}
	}
	do := func(key string, code coap.Code, format coap.Format, body []byte, path ...string) *coap.Response {
		t.Helper()
		req := &coap.Request{Code: code, Payload: body, Peer: coap.Peer{Link: coap.LinkID(key), Via: coap.DTLSPSK, Subject: subject(t, key)}}
		req.Options.SetPath(path...)
		if body != nil {
			req.Options.SetContentFormat(format)
		}
		r, err := b.gm.ServeCoAP(ctx, req)
		if err != nil {
			return coap.ErrorResponse(err)
		}
		return r
	}
	// The keys open, and are those of the recorded version.
	d, err := groupcomm.DecodeKeyDistribution(do(observer, coap.GET, 0, nil, "ace-group", "sensors").Payload)
	if err != nil || d.Num != 3 || len(d.Key.MasterSecret) != 16 {
		t.Errorf("%+v, %v", d, err)
	}
	if r := do(observer, coap.GET, 0, nil, "ace-group", "sensors", "kdc-cred"); r.Code != coap.Content {
		t.Errorf("kdc-cred: %v", r.Code)
	}
	if r := do(evictedOne, coap.GET, 0, nil, "ace-group", "sensors"); r.Code != coap.Forbidden {
		t.Errorf("an evicted node: %v", r.Code)
	}
	for v, want := range map[uint64][]byte{0: nil, 1: groupcomm.EncodeStaleIDs([]groupcomm.SenderID{{0}, {1}}), 2: groupcomm.EncodeStaleIDs([]groupcomm.SenderID{{0}})} {
		if r := do(observer, coap.FETCH, coap.CBOR, groupcomm.EncodeNum(v), "ace-group", "sensors", "stale-sids"); r.Code != coap.Content || !bytes.Equal(r.Payload, want) {
			t.Errorf("stale since %d: %v %x, want %x", v, r.Code, r.Payload, want)
		}
	}
	status, err := b.op.MemberStatus(ctx, "sensors")
	if err != nil || len(status) != 2 {
		t.Fatalf("%+v, %v", status, err)
	}
	for _, m := range status {
		if m.Version != 3 || m.SenderID == nil || m.Expires.IsZero() {
			t.Errorf("%+v", m)
		}
	}
	// The next rekey is rendered for MQTT with the key from then.
	num, err := b.gm.Rekey(ctx, "sensors", "test")
	if err != nil || num != 4 {
		t.Fatal(num, err)
	}
	if err := st.View(ctx, func(tx *store.Tx) error {
		var n uint64
		if err := tx.QueryRow(`SELECT num FROM bridge_message`).Scan(&n); err != nil {
			return err
		}
		if n != 4 {
			t.Errorf("message of version %d", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if r := do(observer, coap.POST, 0, nil, "ace-group", "sensors", "nodes", status[1].Node); r.Code != coap.Changed {
		t.Errorf("key renewal: %v", r.Code)
	}
}

func subject(t *testing.T, key string) coap.Subject {
	t.Helper()
	id, err := hex.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	return coap.Subject{Kind: coap.SubjectPoP, ID: string(id)}
}

// pskIdentity is {8: {1: {1: 4, 2: kid}}} (RFC 9202, Section 3.3.2); the kid is
// the first eight bytes of these subjects.
func pskIdentity(t *testing.T, key string) []byte {
	t.Helper()
	b, err := hex.DecodeString(fmt.Sprintf("a108a101a2010402%s%s", "48", key[:16]))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
