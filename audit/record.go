package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Record is one line of the audit log. Node, Peer, Subject and SenderID are
// pseudonyms unless full records were asked for.
type Record struct {
	ID   int64     `json:"-"`
	At   time.Time `json:"-"`
	Kind string    `json:"-"`

	Group    string   `json:"-"`
	Node     string   `json:"node,omitempty"`
	Peer     string   `json:"peer,omitempty"`    // address of the client
	Subject  string   `json:"subject,omitempty"` // what it proved, for instance pop:HEX
	SenderID *string  `json:"sender_id,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	Version  *uint64  `json:"version,omitempty"`
	Gid      string   `json:"gid,omitempty"`
	Reason   string   `json:"reason,omitempty"`

	// Of refusals.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"` // with {group} and {node} for names
	Code   string `json:"code,omitempty"`
	Error  *int   `json:"error,omitempty"` // of the ACE Groupcomm Errors registry
	Count  int    `json:"count,omitempty"`

	event int64 // of the event log; 0: none
}

// refused says whether a record is one of refusals, of which anybody can cause
// any number.
func (r *Record) refused() bool { return r.Kind == KindRefused || r.Kind == KindSuppressed }

func fromEvent(kind string, e groupcomm.Event) Record {
	r := Record{Kind: kind, Group: e.Group, Node: e.Node, Peer: e.Addr, Subject: subjectText(e.Subject), Reason: clip(e.Reason)}
	if e.SenderID != nil {
		id := e.SenderID.String()
		r.SenderID = &id
	}
	if e.Roles != 0 {
		r.Roles = strings.Split(e.Roles.String(), ",")
	}
	if e.Gid != nil {
		r.Gid = e.Gid.String()
	}
	switch kind {
	case groupcomm.EventConfigured, groupcomm.EventState, groupcomm.EventTokenExpired, groupcomm.NoteRekeyFailed:
	default:
		v := e.Version
		r.Version = &v
	}
	return r
}

func subjectText(s coap.Subject) string {
	name, ok := subjectNames[s.Kind]
	if !ok || s.ID == "" {
		return ""
	}
	return name + ":" + hex.EncodeToString([]byte(s.ID))
}

// fromReply makes the record of an error reply. Of the request it takes nothing
// that a peer may choose freely.
func fromReply(req *coap.Request, resp *coap.Response) Record {
	r := Record{
		At: time.Now(), Kind: KindRefused, Subject: subjectText(req.Peer.Subject),
		Method: req.Code.String(), Code: resp.Code.String(),
	}
	if a := req.Peer.Addr; a.IsValid() {
		r.Peer = a.String()
	}
	r.Path, r.Group, r.Node = template(req.Path())
	if f, ok := resp.Options.ContentFormat(); ok && f == coap.ProblemDetails {
		if p, err := coap.DecodeProblem(resp.Payload); err == nil {
			if p.ID >= 0 {
				r.Error = &p.ID
			}
			r.Reason = clip(p.Detail)
		}
	} else if !ok {
		r.Reason = clip(string(resp.Payload)) // a diagnostic message
	}
	return r
}

// known are the segments that paths of ours have besides names.
var known = map[string]bool{
	"ace-group": true, "group-oscore": true, "authz-info": true, "token": true, ".well-known": true, "core": true,
	"nodes": true, "cred": true, "creds": true, "kdc-cred": true, "verif-data": true, "num": true, "active": true,
	"policies": true, "stale-sids": true, "pub-key": true, "node": true, "ctx-num": true, "gw": true, "me": true,
}

const maxSegments = 6

// template takes the names out of a path.
func template(path []string) (text, group, node string) {
	for i, s := range path {
		switch {
		case i == maxSegments:
			return text + "/…", group, node
		case i == 1 && (path[0] == "ace-group" || path[0] == "group-oscore"):
			text += "/{group}"
			if groupcomm.ValidGroupName(s) {
				group = s
			}
		case i == 3 && path[2] == "nodes" && path[0] == "ace-group":
			text += "/{node}"
			node = clip(s)
		case known[s]:
			text += "/" + s
		default:
			text += "/{…}"
		}
	}
	return text, group, node
}

// clip bounds a text, and makes it valid.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r >= ' ' && r != 0x7f {
			return r
		}
		return ' '
	}, s)
}

// encode gives the stored form of what has no column.
func (r *Record) encode() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic("audit: internal error: " + err.Error())
	}
	return string(b)
}

// pseudonym stands for a value of one kind: equal values have equal ones, in
// this installation only.
func (l *Log) pseudonym(kind, value string) string {
	if value == "" {
		return ""
	}
	h := hmac.New(sha256.New, l.key)
	_, _ = fmt.Fprintf(h, "%s\x00%s", kind, value) // a hash takes everything
	return "~" + hex.EncodeToString(h.Sum(nil)[:6])
}

// redact replaces what is personal by pseudonyms, and drops texts that may hold
// it. The port of an address is left out: it would make each association a
// stranger.
func (l *Log) redact(r *Record) {
	peer := r.Peer
	if a, err := netip.ParseAddrPort(peer); err == nil {
		peer = a.Addr().Unmap().String()
	}
	r.Peer = l.pseudonym("peer", peer)
	if r.Node != "" {
		r.Node = l.pseudonym("node", r.Group+"/"+r.Node)
	}
	r.Subject = l.pseudonym("subject", r.Subject)
	if r.SenderID != nil {
		id := l.pseudonym("sender_id", r.Group+"/"+*r.SenderID)
		r.SenderID = &id
	}
	if r.refused() || r.Kind == groupcomm.NoteRekeyFailed {
		r.Reason = ""
	}
}
