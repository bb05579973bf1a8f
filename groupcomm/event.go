package groupcomm

import (
	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
)

// Keys of an encoded event: stored, so never given another meaning.
const (
	eventGroup       int64 = 0
	eventNode        int64 = 1
	eventVersion     int64 = 2
	eventSubjectKind int64 = 3
	eventSubjectID   int64 = 4
	eventReason      int64 = 5
	eventExpires     int64 = 6
	eventSenderID    int64 = 7
	eventGid         int64 = 8
	eventRoles       int64 = 9
	eventAddr        int64 = 10
	eventControlURI  int64 = 11
)

// Encode gives the stored form of an event.
func (e Event) Encode() []byte {
	m := map[int64]any{}
	for label, v := range map[int64]string{
		eventGroup: e.Group, eventNode: e.Node, eventReason: e.Reason, eventAddr: e.Addr, eventControlURI: e.ControlURI,
	} {
		if v != "" {
			m[label] = v
		}
	}
	if e.Version != 0 {
		m[eventVersion] = e.Version
	}
	if e.Subject != (coap.Subject{}) {
		m[eventSubjectKind] = uint8(e.Subject.Kind)
		m[eventSubjectID] = []byte(e.Subject.ID)
	}
	putInt(m, eventExpires, e.Expires)
	if e.SenderID != nil {
		m[eventSenderID] = []byte(e.SenderID)
	}
	if e.Gid != nil {
		m[eventGid] = []byte(e.Gid)
	}
	if e.Roles != 0 {
		m[eventRoles] = uint64(e.Roles)
	}
	return cose.MustMarshal(m)
}

// DecodeEvent reads the stored form of an event.
func DecodeEvent(b []byte) (*Event, error) {
	f := decodeFields("event", b)
	e := &Event{
		Group:   f.text(eventGroup),
		Node:    f.text(eventNode),
		Version: f.uint(eventVersion),
		Reason:  f.text(eventReason),
		Expires: f.int(eventExpires),
		Addr:    f.text(eventAddr),

		ControlURI: f.text(eventControlURI),
	}
	if id := f.bytes(eventSenderID); id != nil {
		e.SenderID = id
	}
	if gid := f.bytes(eventGid); gid != nil {
		e.Gid = gid
	}
	roles := f.uint(eventRoles)
	if roles > 0xffffffff {
		f.failf("roles out of range")
	}
	e.Roles = Roles(roles)
	kind := f.uint(eventSubjectKind)
	if kind > 0xff {
		f.failf("unknown kind of subject")
	}
	e.Subject = coap.Subject{Kind: coap.SubjectKind(kind), ID: string(f.bytes(eventSubjectID))}
	if f.err != nil {
		return nil, f.err
	}
	return e, nil
}
