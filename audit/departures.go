package audit

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/store"
)

// Departure is the end of a membership.
type Departure struct {
	Node    string
	At      time.Time
	Evicted bool   // it did not leave by itself
	Reason  string // of an eviction
}

// maxDepartures bounds the records that one question looks through, from the newest
// on.
const maxDepartures = 20_000

// Departures finds, for each group, the newest end of a membership of whom is says
// so. It shows nothing that who asks does not name, so that it is no reading of full
// records.
func (l *Log) Departures(ctx context.Context, is func(node string, s coap.Subject) bool) (map[string]Departure, error) {
	found := map[string]Departure{}
	err := l.st.View(ctx, func(tx *store.Tx) error {
		clear(found)
		rows, err := tx.Query(`SELECT at, kind, group_name, data FROM audit_records WHERE class = 0 AND kind IN (?, ?) ORDER BY id DESC LIMIT ?`,
			groupcomm.EventLeft, groupcomm.EventEvicted, maxDepartures)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Record
			var at int64
			var data string
			if err := rows.Scan(&at, &r.Kind, &r.Group, &data); err != nil {
				return err
			}
			if _, known := found[r.Group]; known {
				continue
			}
			if err := json.Unmarshal([]byte(data), &r); err != nil {
				return err
			}
			if is(r.Node, subjectOf(r.Subject)) {
				found[r.Group] = Departure{r.Node, time.UnixMilli(at), r.Kind == groupcomm.EventEvicted, r.Reason}
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("audit: departures: %w", err)
	}
	return found, nil
}

// subjectNames are the kinds of subjects in records.
var subjectNames = map[coap.SubjectKind]string{
	coap.SubjectPoP: "pop", coap.SubjectPSK: "psk", coap.SubjectKeyHash: "key", coap.SubjectOSCORE: "oscore",
}

// subjectOf reads what subjectText wrote.
func subjectOf(text string) (s coap.Subject) {
	name, id, _ := strings.Cut(text, ":")
	for kind, n := range subjectNames {
		if b, err := hex.DecodeString(id); n == name && err == nil {
			return coap.Subject{Kind: kind, ID: string(b)}
		}
	}
	return s
}
