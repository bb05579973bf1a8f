package groupcomm

import (
	"errors"
	"slices"

	"github.com/seed4911071e/groupgate/cose"
)

// Channels over which a member can ask to be told of rekeys, as they stand in an
// [Announcement]: notifications of what it observes, requests to its
// control_uri, MQTT, and poll for none: it asks by itself.
const (
	ChannelObserve = "observe"
	ChannelControl = "control"
	ChannelMQTT    = "mqtt"
	ChannelPoll    = "poll"
)

// ValidChannel reports whether c is one of the channels.
func ValidChannel(c string) bool {
	return slices.Contains([]string{ChannelObserve, ChannelControl, ChannelMQTT, ChannelPoll}, c)
}

// maxSleep bounds the times of an announcement, in seconds: ten years.
const maxSleep = 10 * 366 * 24 * 3600

// Labels of an announcement and its answer (docs/protocol.md, Section 7).
const (
	labelAwakeFor int64 = 0
	labelNextWake int64 = 1
	labelChannel  int64 = 2

	labelPending       int64 = 0
	labelPendingGroups int64 = 1
)

// Announcement is the body of PUT /gw/me: how long a node stays awake, and when it
// wakes again, both in seconds from now (docs/protocol.md, Section 7).
type Announcement struct {
	AwakeFor uint64 // 0
	NextWake uint64 // 1; 0: it does not know
	// Channel over which it wants to be told of rekeys from now on; "": as before.
	Channel string // 2, optional
}

// Encode gives the map.
func (a *Announcement) Encode() []byte {
	m := map[int64]any{labelAwakeFor: a.AwakeFor, labelNextWake: a.NextWake}
	if a.Channel != "" {
		m[labelChannel] = a.Channel
	}
	return cose.MustMarshal(m)
}

// DecodeAnnouncement reads the map.
func DecodeAnnouncement(b []byte) (*Announcement, error) {
	f := decodeFields("announcement", b)
	f.need(labelAwakeFor, labelNextWake)
	a := &Announcement{AwakeFor: f.uint(labelAwakeFor), NextWake: f.uint(labelNextWake), Channel: f.text(labelChannel)}
	if a.AwakeFor > maxSleep || a.NextWake > maxSleep {
		f.failf("a time of more than ten years")
	}
	if f.m.Has(labelChannel) && !ValidChannel(a.Channel) {
		f.failf("unknown channel")
	}
	if f.err != nil {
		return nil, f.err
	}
	return a, nil
}

// Pending is the answer to an [Announcement]: the groups of which the node did not
// show yet that it has the newest keying material. None: it may sleep now.
type Pending struct {
	Groups []PendingGroup
}

// PendingGroup is one of them, with the version that is to be had.
type PendingGroup struct {
	Name string
	Num  Version
}

// Encode gives the map of the number of groups and their list.
func (p *Pending) Encode() []byte {
	list := make([][]any, len(p.Groups))
	for i, g := range p.Groups {
		list[i] = []any{g.Name, g.Num}
	}
	return cose.MustMarshal(map[int64]any{labelPending: uint64(len(p.Groups)), labelPendingGroups: list})
}

// DecodePending reads the map.
func DecodePending(b []byte) (*Pending, error) {
	f := decodeFields("pending", b)
	f.need(labelPending, labelPendingGroups)
	p := &Pending{Groups: array(f, labelPendingGroups, asPendingGroup)}
	if n := f.uint(labelPending); f.err == nil && n != uint64(len(p.Groups)) {
		f.failf("%d groups announced, %d listed", n, len(p.Groups))
	}
	if f.err != nil {
		return nil, f.err
	}
	return p, nil
}

func asPendingGroup(b []byte) (PendingGroup, error) {
	items, err := cose.DecodeArray(b)
	if err != nil {
		return PendingGroup{}, err
	}
	if len(items) != 2 {
		return PendingGroup{}, errors.New("not a name and a version")
	}
	name, err := cose.AsText(items[0])
	if err != nil {
		return PendingGroup{}, err
	}
	num, err := cose.AsUint(items[1])
	return PendingGroup{name, num}, err
}
