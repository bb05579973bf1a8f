package gm

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestPermittedMethods asks for every method on every resource as every type of
// client (draft-ietf-ace-key-groupcomm-oscore-21, Section 8.5; docs/protocol.md,
// Section 3). The table here is written from the specification, not from the code: for
// each client G(ET), P(OST), F(ETCH), D(ELETE) where the method is permitted.
// Where a type may not what another may, the answer is 4.03; where none may,
// 4.05.
func TestPermittedMethods(t *testing.T) {
	resources := []struct {
		path    []string
		allowed [4]string // member, monitor, verifier, other
		outside [4]int    // error identifier for those who may not; -1: plain 4.03
	}{
		{[]string{}, [4]string{"F", "F", "F", "F"}, [4]int{}},
		{[]string{"g1"}, [4]string{"GP", "GP", "P", "P"}, [4]int{-1, -1, 0, 0}},
		{[]string{"g1", "active"}, [4]string{"G", "G", "", ""}, [4]int{-1, -1, 0, 0}},
		{[]string{"g1", "verif-data"}, [4]string{"", "", "G", ""}, [4]int{8, 8, -1, 8}},
		{[]string{"g1", "creds"}, [4]string{"GF", "GF", "GF", ""}, [4]int{-1, -1, -1, -1}},
		{[]string{"g1", "stale-sids"}, [4]string{"F", "F", "", ""}, [4]int{-1, -1, 0, 0}},
		{[]string{"g1", "policies"}, [4]string{"G", "G", "", ""}, [4]int{-1, -1, 0, 0}},
		{[]string{"g1", "num"}, [4]string{"G", "G", "", ""}, [4]int{-1, -1, 0, 0}},
	}
	letters := map[coap.Code]string{coap.GET: "G", coap.POST: "P", coap.FETCH: "F", coap.DELETE: "D"}
	methods := []coap.Code{coap.GET, coap.POST, coap.PUT, coap.DELETE, coap.FETCH, coap.PATCH, coap.IPATCH}
	f := newFixture(t, groupConfig("g1"))
	clients := []*gmtest.Joiner{
		f.member("member", "g1"),
		f.joiner("monitor", "g1", groupcomm.Monitor),
		f.joiner("verifier", "g1", groupcomm.Verifier|groupcomm.Requester),
		f.joiner("other", "g1", groupcomm.Requester),
	}
	f.join(clients[1], "g1", groupcomm.Monitor)

	for _, res := range resources {
		path := append([]string{"ace-group"}, res.path...)
		for _, method := range methods {
			anybody := false
			for _, a := range res.allowed {
				anybody = anybody || bytes.ContainsAny([]byte(a), letters[method]) && letters[method] != ""
			}
			for i, c := range clients {
				name := fmt.Sprintf("%v %v %s", method, path, c.Peer.Subject.ID)
				var body []byte
				switch {
				case method == coap.FETCH && len(res.path) == 0:
					body = (&groupcomm.GidRequest{Gids: []groupcomm.Gid{{1}}}).Encode()
				case method == coap.FETCH:
					body = groupcomm.EncodeCredsRequest(&groupcomm.GetCreds{Inclusion: true, Roles: []groupcomm.Roles{both}})
				}
				r := f.do(c, method, body, path...)
				switch {
				case !anybody:
					if r.Code != coap.MethodNotAllowed {
						t.Errorf("%s: %v, want 4.05", name, r.Code)
					}
				case letters[method] != "" && bytes.Contains([]byte(res.allowed[i]), []byte(letters[method])):
					// Permitted: what the handler says to the body is not the matter here.
					if r.Code == coap.Forbidden || r.Code == coap.MethodNotAllowed {
						t.Errorf("%s: %v, though permitted", name, r.Code)
					}
				default:
					if r.Code != coap.Forbidden {
						t.Errorf("%s: %v, want 4.03", name, r.Code)
					} else {
						checkRefusal(t, r, res.outside[i], false)
					}
				}
			}
		}
	}
}

// kdc-cred has two methods for disjoint clients, and node resources depend on
// whose they are.
func TestPermittedMethodsPerClient(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	member, monitor := f.member("member", "g1"), f.joiner("monitor", "g1", groupcomm.Monitor)
	f.join(monitor, "g1", groupcomm.Monitor)
	verifier := f.joiner("verifier", "g1", groupcomm.Verifier)
	other := f.joiner("other", "g1", both)
	nonce := groupcomm.EncodeKDCCredRequest(make([]byte, 8))
	kdc := []string{"ace-group", "g1", "kdc-cred"}
	cred := func(j *gmtest.Joiner) []string { return append(append([]string{}, j.Path...), "cred") }
	for _, tc := range []struct {
		who  *gmtest.Joiner
		code coap.Code
		body []byte
		path []string
		want coap.Code
		id   int // with 4.00 and 4.03
	}{
		{member, coap.GET, nil, kdc, coap.Content, 0},
		{monitor, coap.GET, nil, kdc, coap.Content, 0},
		{verifier, coap.GET, nil, kdc, coap.Forbidden, 0},
		{other, coap.GET, nil, kdc, coap.Forbidden, 0},
		{member, coap.FETCH, nonce, kdc, coap.Forbidden, 8},
		{monitor, coap.FETCH, nonce, kdc, coap.Forbidden, 8},
		{other, coap.FETCH, nonce, kdc, coap.Forbidden, 8},
		{verifier, coap.FETCH, nonce, kdc, coap.Content, 0},
		{verifier, coap.GET, nil, []string{"ace-group", "g1", "verif-data"}, coap.Content, 0},
		// A token for nothing but verification does not admit to Join Requests.
		{verifier, coap.POST, nil, []string{"ace-group", "g1"}, coap.Forbidden, -1},
		{other, coap.POST, nil, []string{"ace-group", "g1"}, coap.BadRequest, -2},

		{member, coap.GET, nil, member.Path, coap.Content, 0},
		{monitor, coap.GET, nil, monitor.Path, coap.Content, 0},
		{member, coap.GET, nil, monitor.Path, coap.Forbidden, -1},
		{member, coap.DELETE, nil, monitor.Path, coap.Forbidden, -1},
		{member, coap.GET, nil, []string{"ace-group", "g1", "nodes", "nobody"}, coap.Forbidden, -1},
		{other, coap.GET, nil, member.Path, coap.Forbidden, 0},
		{other, coap.DELETE, nil, member.Path, coap.Forbidden, 0},
		{verifier, coap.GET, nil, member.Path, coap.Forbidden, 0},
		{monitor, coap.POST, nil, monitor.Path, coap.BadRequest, 1},
		{monitor, coap.POST, nil, cred(monitor), coap.BadRequest, 1},
		{member, coap.POST, nil, cred(member), coap.BadRequest, -1},
		// RFC 9594, Section 4.8: whose resource it is goes before roles.
		{monitor, coap.POST, nil, member.Path, coap.Forbidden, -1},
		{monitor, coap.POST, nil, cred(member), coap.Forbidden, -1},
		{member, coap.POST, nil, cred(monitor), coap.Forbidden, -1},
		{other, coap.POST, nil, cred(member), coap.Forbidden, 0},
		{member, coap.PUT, nil, member.Path, coap.MethodNotAllowed, 0},
		{member, coap.GET, nil, cred(member), coap.MethodNotAllowed, 0},

		{member, coap.GET, nil, []string{"ace-group", "g1", "nodes"}, coap.NotFound, 0},
		{member, coap.GET, nil, []string{"ace-group", "g1", "nowhere"}, coap.NotFound, 0},
		{member, coap.GET, nil, []string{"ace-group", "g1", "nodes", "x", "cred", "y"}, coap.NotFound, 0},
		{member, coap.GET, nil, []string{"elsewhere"}, coap.NotFound, 0},
	} {
		before := f.dump()
		r := f.do(tc.who, tc.code, tc.body, tc.path...)
		if r.Code != tc.want {
			t.Errorf("%v %v by %s: %v, want %v", tc.code, tc.path, tc.who.Peer.Subject.ID, r.Code, tc.want)
			continue
		}
		if tc.want == coap.Forbidden || tc.want == coap.BadRequest {
			checkRefusal(t, r, tc.id, false)
		}
		if f.dump() != before {
			t.Errorf("%v %v by %s changed the state", tc.code, tc.path, tc.who.Peer.Subject.ID)
		}
	}
}

// draft-ietf-ace-key-groupcomm-oscore-21, Sections 9.2 and 9.4: in an inactive
// group error 9 goes before error 1.
func TestInactiveBeforeRoles(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	monitor := f.joiner("monitor", "g1", groupcomm.Monitor)
	f.join(monitor, "g1", groupcomm.Monitor)
	if err := f.m.SetActive(t.Context(), "g1", false); err != nil {
		t.Fatal(err)
	}
	for _, path := range [][]string{monitor.Path, append(append([]string{}, monitor.Path...), "cred")} {
		if r := f.do(monitor, coap.POST, nil, path...); r.Code != coap.ServiceUnavailable {
			t.Errorf("POST %v: %v, want 5.03", path, r.Code)
		} else {
			checkRefusal(t, r, 9, false)
		}
	}
}

// docs/protocol.md, Section 3: a group outside the token's scope is 4.03, known or
// not, whatever is asked of it.
func TestScopeBeforeExistence(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.joiner("n", "elsewhere", both)
	for _, group := range []string{"g1", "unknown"} {
		for _, rest := range [][]string{{}, {"num"}, {"nowhere"}, {"nodes", "x"}, {"a", "b", "c", "d"}} {
			for _, method := range []coap.Code{coap.GET, coap.POST, coap.PUT} {
				path := append([]string{"ace-group", group}, rest...)
				if r := f.do(j, method, nil, path...); r.Code != coap.Forbidden {
					t.Errorf("%v %v: %v, want 4.03", method, path, r.Code)
				}
			}
		}
	}
	if r := f.do(j, coap.GET, nil, "ace-group", "elsewhere"); r.Code != coap.NotFound {
		t.Errorf("a group in scope that does not exist: %v, want 4.04", r.Code)
	}
	f.auth.Revoke(j.Peer.Subject)
	r := f.do(j, coap.GET, nil, "ace-group", "g1")
	if cf, _ := r.Options.ContentFormat(); r.Code != coap.Unauthorized || cf != coap.ACE {
		t.Errorf("without token: %v, content format %d", r.Code, cf)
	}
}

// RFC 9594, Section 4.1.2: the rights are those of the token of now.
func TestNarrowerToken(t *testing.T) {
	f := newFixture(t, groupConfig("g1"))
	j := f.member("n", "g1")
	f.auth.Allow(j.Peer.Subject, groupcomm.Scope{{Group: "g1", Roles: groupcomm.Requester}}, time.Time{})
	if r := f.do(j, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Forbidden {
		t.Errorf("GET with a token that lacks a role: %v", r.Code)
	}
	f.join(j, "g1", groupcomm.Requester)
	if r := f.do(j, coap.GET, nil, "ace-group", "g1"); r.Code != coap.Content {
		t.Errorf("GET after joining with the roles left: %v", r.Code)
	}
}
