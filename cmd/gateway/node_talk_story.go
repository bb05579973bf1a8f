package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/groupcomm"
	"github.com/seed4911071e/groupgate/node"
)

func (s *nodeStory) serving(at, multicast netip.AddrPort) {
	step := nodeStep{Event: "serving", Addr: at.String()}
	if !multicast.IsValid() {
		s.tell(step, "6  Serves /name, /temperature and /echo at %s. Ctrl-C ends it.", at)
		return
	}
	step.Multicast = multicast.String()
	s.tell(step, "6  Serves /name, /temperature and /echo at %s and at the multicast address %s. Ctrl-C ends it.", at, multicast)
}

// served tells of a request that came.
func (s *nodeStory) served(v node.Served) {
	step := nodeStep{
		Event: "request", Addr: v.From.String(), Gid: hex.EncodeToString(v.Gid), ViaMulticast: v.Multicast,
	}
	if v.Code != coap.Empty {
		step.Code = v.Code.String()
	}
	if v.Err != nil {
		step.Error = v.Err.Error()
	}
	if v.Request == nil {
		s.tell(step, "%s  Request of %s not read: %v.", clock(), v.From, v.Err)
		return
	}
	id := hex.EncodeToString(v.KID)
	step.SenderID, step.Mode, step.Method = &id, v.Mode.String(), v.Request.Code.String()
	step.Path = pathText(v.Request)
	how := "unicast"
	if v.Multicast {
		how = "multicast"
	}
	if v.Err != nil {
		s.tell(step, "%s  %s %s of Sender ID %s, not answered: %v.", clock(), step.Method, step.Path, shown(v.KID), v.Err)
		return
	}
	s.tell(step, "%s  %s %s of Sender ID %s, in %s mode by %s under Gid %s: %v.",
		clock(), step.Method, step.Path, shown(v.KID), v.Mode, how, step.Gid, v.Code)
}

func (s *nodeStory) sending(n int, method, path string, dst netip.AddrPort, to *groupcomm.SenderID) {
	step := nodeStep{Event: "sending", Request: n, Method: method, Path: path, Addr: dst.String(), Mode: "group"}
	if to == nil {
		s.tell(step, "%s  Request %d: %s %s to %s, in group mode.", clock(), n, method, path, dst)
		return
	}
	id := to.String()
	step.Mode, step.SenderID = "pairwise", &id
	s.tell(step, "%s  Request %d: %s %s to %s, in pairwise mode for Sender ID %s.", clock(), n, method, path, dst, shown(*to))
}

// answer tells of a response that came.
func (s *nodeStory) answer(n int, a node.Answer) {
	step := nodeStep{Event: "answer", Request: n}
	of, at := "", "" // a proxy does not say where a server is that was named to it
	if a.From.IsValid() {
		step.Addr = a.From.String()
		of, at = " of "+step.Addr, " at "+step.Addr
	}
	if a.Err != nil {
		step.Error = a.Err.Error()
		s.tell(step, "%s  Answer%s not read: %v.", clock(), of, a.Err)
		return
	}
	id := hex.EncodeToString(a.Who.KID)
	step.SenderID, step.Gid, step.Mode = &id, hex.EncodeToString(a.Who.Gid), a.Who.Mode.String()
	step.Code, step.Payload = a.Message.Code.String(), fmt.Sprintf("%.200q", a.Message.Payload)
	s.tell(step, "%s  Sender ID %s%s answers in %s mode under Gid %s: %v %s.",
		clock(), shown(a.Who.KID), at, a.Who.Mode, step.Gid, a.Message.Code, step.Payload)
}

func (s *nodeStory) silence(n int) {
	s.tell(nodeStep{Event: "silence", Request: n}, "%s  Nobody answers request %d.", clock(), n)
}

// pathText is a path for people.
func pathText(m *coap.Message) string {
	text := ""
	for _, segment := range m.Options.Path() {
		text += "/" + segment
	}
	if text == "" {
		return "/"
	}
	// Segments are data of the peer.
	return fmt.Sprintf("%.100s", strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text))
}
