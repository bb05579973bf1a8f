package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

// nodeStory tells what a simulated node does: plain lines for people, or one
// JSON object per line. Keys are never told.
type nodeStory struct {
	mu   sync.Mutex // events come from several goroutines
	out  io.Writer
	json bool
}

func newNodeStory(out io.Writer, asJSON bool) *nodeStory { return &nodeStory{out: out, json: asJSON} }

// nodeStep is one step as JSON. Fields that a step lacks are left out.
type nodeStep struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Node     string    `json:"node,omitempty"`
	Group    string    `json:"group,omitempty"`
	Roles    string    `json:"roles,omitempty"`
	Addr     string    `json:"addr,omitempty"`
	NodeName string    `json:"node_name,omitempty"` // NODENAME, chosen by the Group Manager
	SenderID *string   `json:"sender_id,omitempty"`
	Gid      string    `json:"gid,omitempty"`
	Version  *uint64   `json:"version,omitempty"`
	Members  *int      `json:"members,omitempty"`
	Expires  string    `json:"expires,omitempty"`
	Via      string    `json:"via,omitempty"`
	Error    string    `json:"error,omitempty"`

	// Of messages in the group.
	Request      int    `json:"request,omitempty"` // number of the request sent
	Method       string `json:"method,omitempty"`
	Path         string `json:"path,omitempty"`
	Mode         string `json:"mode,omitempty"` // group or pairwise
	Code         string `json:"code,omitempty"`
	Payload      string `json:"payload,omitempty"` // in quotes
	Multicast    string `json:"multicast,omitempty"`
	ViaMulticast bool   `json:"via_multicast,omitempty"`
}

// tell writes a step, or its line. What cannot be written is nobody's to hear.
func (s *nodeStory) tell(step nodeStep, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.json {
		fmt.Fprintf(s.out, format+"\n", args...)
		return
	}
	step.Time = time.Now().UTC()
	line, err := json.Marshal(step)
	if err != nil {
		panic("gateway: internal error: " + err.Error())
	}
	fmt.Fprintf(s.out, "%s\n", line)
}

func (s *nodeStory) start(name, group string, roles groupcomm.Roles) {
	s.tell(nodeStep{Event: "start", Node: name, Group: group, Roles: roles.String()},
		"%s wants to join the group %q as %s.", name, group, roles)
}

func (s *nodeStory) token(addr, identity string, a *node.Access) {
	until := ""
	if !a.ExpiresAt.IsZero() {
		until = a.ExpiresAt.UTC().Format(time.RFC3339)
	}
	if a.PrivateKey != nil {
		s.tell(nodeStep{Event: "token", Addr: addr, Expires: until},
			"1  The Authorization Server at coaps://%s knows the client %q and issued an access token (%d bytes, until %s) for its public key, and told that of the Group Manager.",
			addr, identity, len(a.Token), orNever(until))
		return
	}
	what, name := "the key", a.KID
	if a.Material != nil {
		what, name = "the OSCORE input material", a.Material.ID
	}
	s.tell(nodeStep{Event: "token", Addr: addr, Expires: until},
		"1  The Authorization Server at coaps://%s knows the client %q and issued an access token (%d bytes, until %s) with %s %x [redacted].",
		addr, identity, len(a.Token), orNever(until), what, name)
}

func (s *nodeStory) posted(addr string, t *groupcomm.TokenTransferResponse) {
	s.tell(nodeStep{Event: "posted", Addr: addr},
		"2  The Group Manager at coap://%s/authz-info took the token and sent the challenge %x.", addr, t.KDCChallenge)
}

func (s *nodeStory) postedLegacy(addr string, i *groupcomm.LegacyInfo) {
	s.tell(nodeStep{Event: "posted", Addr: addr},
		"2  The Group Manager at coap://%s/authz-info took the token and sent the challenge %x, in the dialect %s.", addr, i.Challenge, i.Dialect)
}

func (s *nodeStory) joinedLegacy(st node.State, d groupcomm.Interface) {
	step, who := joinedStep(st)
	s.tell(step,
		"4  Proof of possession accepted: joined %q %s, in the dialect %s, at /group-oscore/%s.\n"+
			"5  The Group Manager proves nothing about itself in this dialect but what the DTLS association does.\n"+
			"   Gid %s, version %d, Master Secret %v, valid until %s, public keys of %d others.",
		st.Group, who, d, st.Group, st.Gid, st.Version, st.MasterSecret, step.Expires, len(st.Peers))
}

func (s *nodeStory) associated(addr string, a *node.Access) {
	if a.PrivateKey != nil {
		s.tell(nodeStep{Event: "associated", Addr: addr, Via: "raw public key"},
			"3  DTLS association with coaps://%s, each end shown by its raw public key.", addr)
		return
	}
	s.tell(nodeStep{Event: "associated", Addr: addr},
		"3  DTLS association with coaps://%s, by the key %x of the token.", addr, a.KID)
}

func (s *nodeStory) derived(addr string, a *node.Access, t *groupcomm.TokenTransferResponse) {
	s.tell(nodeStep{Event: "associated", Addr: addr, Via: "oscore"},
		"3  OSCORE Security Context with coap://%s, from the material %x of the token; our Sender ID is %x.", addr, a.Material.ID, t.ID2)
}

func (s *nodeStory) joined(st node.State) {
	step, who := joinedStep(st)
	s.tell(step,
		"4  Proof of possession accepted: joined %q %s, node resource /ace-group/%s/nodes/%s.\n"+
			"5  The Group Manager's proof of possession verifies (credential of %d bytes).\n"+
			"   Gid %s, version %d, Master Secret %v, valid until %s, %s.",
		st.Group, who, st.Group, st.Node, len(st.KDCCred), st.Gid, st.Version, st.MasterSecret, step.Expires, others(st.Peers))
}

func (s *nodeStory) resumed(st node.State, file string) {
	step, who := joinedStep(st)
	step.Event = "resumed"
	s.tell(step,
		"1  Goes on with the membership that %s keeps: in %q %s, at /ace-group/%s/nodes/%s.\n"+
			"   Gid %s, version %d, Master Secret %v, valid until %s, %s.",
		file, st.Group, who, st.Group, st.Node, st.Gid, st.Version, st.MasterSecret, step.Expires, others(st.Peers))
}

// joinedStep is the step of a join, and as whom for people.
func joinedStep(st node.State) (step nodeStep, who string) {
	sid, members, version := st.SenderID.String(), len(st.Peers), st.Version
	step = nodeStep{
		Event: "joined", Group: st.Group, Roles: st.Roles.String(), NodeName: st.Node, Gid: st.Gid.String(),
		Version: &version, Members: &members, Expires: st.Expires.UTC().Format(time.RFC3339),
	}
	who = "without a Sender ID (monitor)"
	if st.SenderID != nil {
		step.SenderID = &sid
		who = "as Sender ID " + shown(st.SenderID)
	}
	return step, who
}

func others(peers []node.Peer) string {
	if len(peers) == 0 {
		return "no other member's credential"
	}
	list := ""
	for i, p := range peers {
		if i == 8 {
			list += fmt.Sprintf(" and %d more", len(peers)-i)
			break
		}
		list += " " + shown(p.SenderID)
	}
	return "credentials of Sender IDs" + list
}

// shown is a Sender ID for people.
func shown(id groupcomm.SenderID) string { return shownHex(id.String()) }

// shownHex is the same in hex: one may have length zero.
func shownHex(id string) string { return cmp.Or(id, "(empty)") }

func (s *nodeStory) waiting(sleep time.Duration, mqtt bool) {
	how := "observes the group"
	if mqtt {
		how = "listens to MQTT"
	}
	if sleep > 0 {
		how = fmt.Sprintf("sleeps %v at a time and asks when it wakes", sleep)
	}
	s.tell(nodeStep{Event: "following"}, "   The node now %s. Ctrl-C ends it.", how)
}

func (s *nodeStory) stays() {
	s.tell(nodeStep{Event: "disconnected"}, "   Disconnected; the membership stays.")
}

// event tells what happens after the join.
func (s *nodeStory) event(e node.Event) {
	version := e.Version
	step := nodeStep{Event: e.Kind, Group: e.Group, Gid: e.Gid.String(), Version: &version, Via: e.Via}
	switch e.Kind {
	case node.Joined: // told with the whole state
	case node.Prepared:
		s.tell(step, "%s  Prepared: version %d, Gid %s is held beside the one in use (via %s).", clock(), e.Version, e.Gid, e.Via)
	case node.Rekeyed:
		s.tell(step, "%s  Rekeyed: version %d, Gid %s, new Master Secret [redacted] (via %s).", clock(), e.Version, e.Gid, e.Via)
	case node.Missed:
		s.tell(step, "%s  Version %d is outdated: its material is deleted, the node asks which Sender IDs became stale.", clock(), e.Version)
	case node.Reconnected:
		s.tell(nodeStep{Event: e.Kind}, "%s  New DTLS association.", clock())
	case node.Left:
		s.tell(step, "%s  Left the group; keys deleted.", clock())
	case node.Evicted:
		s.tell(step, "%s  Evicted from the group; keys deleted.", clock())
	case node.Deleted:
		s.tell(step, "%s  The group was deleted; keys deleted.", clock())
	case node.Refused:
		s.tell(nodeStep{Event: e.Kind, Via: e.Via, Error: fmt.Sprint(e.Err)}, "%s  Dropped, or tried again: %v", clock(), e.Err)
	}
}

func clock() string { return time.Now().Format("15:04:05") }

func orNever(s string) string {
	if s == "" {
		return "an unknown time"
	}
	return s
}
