package gm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
	"github.com/seed4911071e/groupgate/store/storetest"
)

// events reads the log: "kind node version reason".
func (f *fixture) events() []string {
	f.t.Helper()
	var out []string
	err := f.st.View(f.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.Query(`SELECT kind, key, data FROM store_events ORDER BY id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var kind, key string
			var data []byte
			if err := rows.Scan(&kind, &key, &data); err != nil {
				return err
			}
			e, err := groupcomm.DecodeEvent(data)
			if err != nil {
				return err
			}
			if key != "g1" || e.Group != "g1" {
				f.t.Errorf("key %q, group %q", key, e.Group)
			}
			out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", kind, e.Node, e.Version, e.Reason)))
		}
		return rows.Err()
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// Each change has its event, in the order of the changes.
func TestEvents(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	a, b := f.member("a", "g1"), f.member("b", "g1")
	f.join(a, "g1", both)
	f.leave(a)
	if _, err := f.m.Evict(t.Context(), "g1", []string{b.Path[3]}, nil); err != nil {
		t.Fatal(err)
	}
	c := f.member("c", "g1") // runs the rekey that is due first
	if _, err := f.m.Rekey(t.Context(), "g1", "because"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"group.created  0",
		"group.joined " + a.Path[3] + " 0",
		"group.joined " + b.Path[3] + " 0",
		"group.joined " + a.Path[3] + " 0 rejoin",
		"group.left " + a.Path[3] + " 0 leave",
		"group.evicted " + b.Path[3] + " 0 eviction",
		"group.rekeyed  1 leave, eviction",
		"group.joined " + c.Path[3] + " 1",
		"group.rekeyed  2 because",
	}
	if got := f.events(); !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// No secret is written to a log or, but for its seal, to the disk
// (draft-ietf-ace-key-groupcomm-oscore-21, Section 15.1: what must not be
// logged).
func TestSecretsStayInside(t *testing.T) {
	var log bytes.Buffer
	st := storetest.Open(t, Migrations())
	f := newFixtureWith(t, st, nil, groupConfig("g1"))
	f.deps.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.reopen(st)
	j := f.joiner("a", "g1", both)
	secrets := [][]byte{f.join(j, "g1", both).Key.MasterSecret}
	f.rekey("g1")
	_, body, err := f.m.RekeyMessage(t.Context(), "g1")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := groupcomm.DecodeRekeyMessage(body)
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, msg.MasterSecret)
	f.leave(j)
	g, _ := f.m.group("g1")
	text := log.String() + fmt.Sprintf("%v %+v %#v", g.cur.Load(), g.cur.Load(), g)
	if !strings.Contains(text, "group rekeyed") {
		t.Error("the log is empty")
	}
	disk := strings.ToLower(f.dump())
	for _, s := range secrets {
		for _, form := range []string{string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s), fmt.Sprint(s)} {
			if strings.Contains(text, form) {
				t.Error("a secret can be printed")
			}
		}
		if strings.Contains(disk, hex.EncodeToString(s)) {
			t.Error("a secret is on disk unsealed")
		}
	}
}
