package gm

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

var updateDocs = flag.Bool("update", false, "write the table of permitted methods into docs/spec-map.md")

var clientTypeNames = [clientTypes]string{"member", "monitor", "verifier", "other"}

// methods are all methods of CoAP.
var methods = []coap.Code{coap.GET, coap.POST, coap.PUT, coap.DELETE, coap.FETCH, coap.PATCH, coap.IPATCH}

// expect is the code, the Content-Format and the error identifier (-1: none) of
// the answer to a well-formed request of a type of client: what a cell means.
func expect(res resource, method coap.Code, c clientType) (code coap.Code, format coap.Format, id int) {
	r, ok := permitted[res][method]
	if !ok {
		return coap.MethodNotAllowed, noFormat, -1
	}
	err := r.who[c].err()
	if err == nil {
		if r.ok.joined != 0 && c >= typeVerifier {
			return r.ok.joined, r.ok.format, -1
		}
		return r.ok.code, r.ok.format, -1
	}
	resp := coap.ErrorResponse(err)
	if f, ok := resp.Options.ContentFormat(); ok && f == coap.ProblemDetails {
		if p, err := coap.DecodeProblem(resp.Payload); err == nil {
			return resp.Code, f, p.ID
		}
	}
	return resp.Code, noFormat, -1
}

// matrix prints the table in Markdown. Rows that are 4.05 for all are left out.
func matrix() string {
	var b strings.Builder
	b.WriteString("| resource | method |")
	for _, n := range clientTypeNames {
		b.WriteString(" " + n + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", int(clientTypes)) + "\n")
	for _, r := range resourcePaths {
		for _, m := range methods {
			if _, ok := permitted[r.res][m]; !ok {
				continue
			}
			fmt.Fprintf(&b, "| `%s` | %s |", r.path, m)
			for c := range clientTypes {
				code, format, id := expect(r.res, m, c)
				fmt.Fprintf(&b, " %s", code)
				switch {
				case id >= 0:
					fmt.Fprintf(&b, " error %d", id)
				case format != noFormat:
					fmt.Fprintf(&b, ", %d", format)
				}
				b.WriteString(" |")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

const (
	specMap     = "../docs/spec-map.md"
	matrixBegin = "<!-- permitted methods: written by `go test ./gm -run TestMatrixIsDocumented -update` -->\n"
	matrixEnd   = "<!-- end of permitted methods -->\n"
)

// TestMatrixIsDocumented: docs/spec-map.md shows the table that the gate decides
// by.
func TestMatrixIsDocumented(t *testing.T) { documented(t, matrixBegin, matrix(), matrixEnd) }

// documented compares what docs/spec-map.md has between two lines, and writes it
// anew with -update.
func documented(t *testing.T, begin, text, end string) {
	t.Helper()
	b, err := os.ReadFile(specMap)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	shown, tail, ended := strings.Cut(rest, end)
	switch {
	case !ok || !ended:
		t.Fatalf("%s has no place for %s", specMap, begin)
	case shown == text:
		return
	case !*updateDocs:
		t.Fatalf("%s shows something else; write it anew with -update", specMap)
	}
	if err := os.WriteFile(specMap, []byte(head+begin+text+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// matrixClient makes a client of a type that no request was made for yet.
func (f *fixture) matrixClient(name string, c clientType) *gmtest.Joiner {
	f.t.Helper()
	switch c {
	case typeMember:
		return f.member(name, "g1")
	case typeMonitor:
		j := f.joiner(name, "g1", groupcomm.Monitor)
		f.join(j, "g1", groupcomm.Monitor)
		return j
	case typeVerifier:
		return f.joiner(name, "g1", groupcomm.Verifier|groupcomm.Requester)
	}
	return f.joiner(name, "g1", both)
}

// matrixRequest is a well-formed request for a cell. A client that has no node
// resource of its own asks for that of somebody else.
func (f *fixture) matrixRequest(j, somebody *gmtest.Joiner, c clientType, res resource, path string, method coap.Code) *coap.Request {
	f.t.Helper()
	owner := j
	if len(j.Path) == 0 {
		owner = somebody
	}
	path = strings.NewReplacer("GROUP", "g1", "NODE", owner.Path[3]).Replace(strings.TrimPrefix(path, "/"))
	var body []byte
	format := coap.ACEGroupcomm
	switch {
	case method == coap.FETCH && res == resRoot:
		body = (&groupcomm.GidRequest{Gids: []groupcomm.Gid{f.status().Gid}}).Encode()
	case method == coap.FETCH && res == resCreds:
		body = groupcomm.EncodeCredsRequest(&groupcomm.GetCreds{Roles: []groupcomm.Roles{groupcomm.Responder}})
	case method == coap.FETCH && res == resKDCCred:
		body = groupcomm.EncodeKDCCredRequest(make([]byte, 8))
	case method == coap.FETCH && res == resStaleSIDs:
		body, format = groupcomm.EncodeNum(f.status().Version-1), coap.CBOR
	case method == coap.POST && res == resGroup:
		roles := groupcomm.Requester
		if c == typeMonitor {
			roles = groupcomm.Monitor
		}
		msg, err := j.JoinMessage("g1", roles)
		if err != nil {
			f.t.Fatal(err)
		}
		body = msg.Encode()
	case method == coap.POST && res == resNodeCred:
		key, err := cose.GenerateKey(cose.AlgEdDSA)
		if err != nil {
			f.t.Fatal(err)
		}
		u := &groupcomm.CredUpdate{ClientCred: cose.EncodeCCS("new", key.Public()), CNonce: []byte("12345678")}
		scope := groupcomm.ScopeEntry{Group: "g1", Roles: both}.Encode()
		if u.ClientCredVerify, err = key.Sign(groupcomm.ClientPoPInput(scope, j.NS, u.CNonce)); err != nil {
			f.t.Fatal(err)
		}
		body = u.Encode()
	}
	req := j.Request(method, body, strings.Split(path, "/")...)
	if body != nil {
		req.Options.SetContentFormat(format)
	}
	return req
}

// TestMatrix asks a Group Manager for every method on every resource as every
// type of client, and holds code, Content-Format and error identifier against
// the table.
func TestMatrix(t *testing.T) {
	t.Parallel()
	cfg := groupConfig("g1")
	f := newFixture(t, cfg)
	f.rekey("g1")
	somebody := f.member("somebody", "g1")
	outsider := f.joiner("outsider", "g2", both)
	stranger, err := gmtest.NewJoiner("stranger", cose.AlgEdDSA)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, r *coap.Response, code coap.Code, format coap.Format, id int) {
		t.Helper()
		got, formatted := r.Options.ContentFormat()
		if r.Code != code || formatted != (format != noFormat) || formatted && got != format {
			t.Errorf("%s: %v with format %d (%v), want %v with %d", what, r.Code, got, formatted, code, format)
			return
		}
		if format == noFormat && len(r.Payload) != 0 {
			t.Errorf("%s: %v with payload %x", what, r.Code, r.Payload)
		}
		if id < 0 {
			return
		}
		if p, err := coap.DecodeProblem(r.Payload); err != nil || p.ID != id {
			t.Errorf("%s: problem details %x, want error %d", what, r.Payload, id)
		}
	}
	cells := 0
	for _, res := range resourcePaths {
		for _, method := range methods {
			for c := range clientTypes {
				j := f.matrixClient(fmt.Sprintf("n%d", cells), c)
				req := f.matrixRequest(j, somebody, c, res.res, res.path, method)
				code, format, id := expect(res.res, method, c)
				check(fmt.Sprintf("%v %s by a %s", method, res.path, clientTypeNames[c]), gmtest.Serve(t.Context(), f.m, req), code, format, id)
				cells++
			}
			// A token for other groups opens nothing but /ace-group, and none opens
			// nothing at all.
			code, format, id := coap.Forbidden, noFormat, -1
			if res.res == resRoot {
				code, format, id = expect(resRoot, method, typeOther)
			}
			check(fmt.Sprintf("%v %s by an outsider", method, res.path),
				gmtest.Serve(t.Context(), f.m, f.matrixRequest(outsider, somebody, typeOther, res.res, res.path, method)), code, format, id)
			r := gmtest.Serve(t.Context(), f.m, f.matrixRequest(stranger, somebody, typeOther, res.res, res.path, method))
			check(fmt.Sprintf("%v %s by a stranger", method, res.path), r, coap.Unauthorized, coap.ACE, -1)
		}
	}
	if want := len(resourcePaths) * len(methods) * int(clientTypes); cells != want || len(resourcePaths) != len(permitted) {
		t.Errorf("%d cells of %d, %d resources of %d", cells, want, len(resourcePaths), len(permitted))
	}
}

// In a group that is not active, joins, key renewals and new credentials are
// 5.03 error 9, whoever asks, and everything else is as in an active group
// (draft-ietf-ace-key-groupcomm-oscore-21, Sections 6.2, 9.2 and 9.4).
func TestMatrixInactive(t *testing.T) {
	t.Parallel()
	f := newFixture(t, groupConfig("g1"))
	f.rekey("g1")
	somebody := f.member("somebody", "g1")
	for _, res := range resourcePaths {
		for method := range permitted[res.res] {
			for c := range clientTypes {
				j := f.matrixClient(fmt.Sprintf("%v%d%d", method, res.res, c), c)
				req := f.matrixRequest(j, somebody, c, res.res, res.path, method)
				if err := f.m.SetActive(t.Context(), "g1", false); err != nil {
					t.Fatal(err)
				}
				r := gmtest.Serve(t.Context(), f.m, req)
				if err := f.m.SetActive(t.Context(), "g1", true); err != nil {
					t.Fatal(err)
				}
				code, _, id := expect(res.res, method, c)
				owns := c <= typeMonitor && (res.res == resNode || res.res == resNodeCred)
				if method == coap.POST && (res.res == resGroup || owns) {
					code, id = coap.ServiceUnavailable, 9
				}
				got := -1
				if p, err := coap.DecodeProblem(r.Payload); err == nil {
					got = p.ID
				}
				if r.Code != code || id >= 0 && got != id {
					t.Errorf("%v %s by a %s: %v error %d, want %v error %d", method, res.path, clientTypeNames[c], r.Code, got, code, id)
				}
			}
		}
	}
}
