package gm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/coap"
	"github.com/seed4911071e/groupgate/gm/gmtest"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// TestLegacyPermittedMethods asks for every method on every resource as every
// type of client, as TestPermittedMethods does. For hackathon-109 the table is
// that of draft-ietf-ace-key-groupcomm-oscore-09, Section 5.5. Who may not gets
// 4.01, where a member that is a monitor has no Sender ID to renew 4.00, and 4.05
// where nobody may.
func TestLegacyPermittedMethods(t *testing.T) {
	t.Parallel()
	type row struct {
		path    []string
		allowed [4]string // member, monitor, verifier, other
	}
	for d, rows := range map[groupcomm.Interface][]row{
		groupcomm.Draft03: {
			{nil, [4]string{"GP", "GP", "P", "P"}},
			{[]string{"pub-key"}, [4]string{"GP", "GP", "", ""}},
			{[]string{"node"}, [4]string{"GP", "gP", "", ""}},
			{[]string{"policies"}, [4]string{"G", "G", "", ""}},
			{[]string{"ctx-num"}, [4]string{"G", "G", "", ""}},
		},
		groupcomm.Hackathon109: {
			{nil, [4]string{"GP", "GP", "P", "P"}},
			{[]string{"active"}, [4]string{"G", "G", "", ""}},
			{[]string{"pub-key"}, [4]string{"GF", "GF", "GF", ""}},
			{[]string{"policies"}, [4]string{"G", "G", "", ""}},
			{[]string{"num"}, [4]string{"G", "G", "", ""}},
			{[]string{"nodes", "NODENAME"}, [4]string{"GUD", "GuD", "", ""}},
			{[]string{"nodes", "NODENAME", "pub-key"}, [4]string{"P", "p", "", ""}},
		},
	} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			letters := map[coap.Code]string{coap.GET: "G", coap.POST: "P", coap.FETCH: "F", coap.DELETE: "D", coap.PUT: "U"}
			for _, r := range rows {
				for _, method := range []coap.Code{coap.GET, coap.POST, coap.PUT, coap.DELETE, coap.FETCH, coap.PATCH, coap.IPATCH} {
					f := newFixture(t, legacyConfig("g1", d))
					clients := []*gmtest.Joiner{
						f.joiner("member", "g1", both), f.joiner("monitor", "g1", groupcomm.Monitor),
						f.joiner("verifier", "g1", groupcomm.Verifier|groupcomm.Requester), f.joiner("other", "g1", groupcomm.Requester),
					}
					f.legacyJoin(clients[0], d, "g1", both)
					f.legacyJoin(clients[1], d, "g1", groupcomm.Monitor)
					letter := letters[method]
					may := func(s string) bool { return letter != "" && strings.Contains(s, letter) }
					for i, c := range clients {
						path := append([]string{"g1"}, r.path...)
						if len(r.path) > 1 {
							path[2] = "elsewhere"
							if i < 2 {
								path[2] = c.Path[3]
							}
						}
						want := coap.Unauthorized
						switch {
						case may(r.allowed[i]):
							want = 0
						case letter != "" && strings.Contains(r.allowed[i], strings.ToLower(letter)):
							want = coap.BadRequest
						case !slices.ContainsFunc(r.allowed[:], may):
							want = coap.MethodNotAllowed
						}
						body := f.legacyBody(c, d, method, r.path, i)
						got := f.legacy(c, method, body, path...)
						denied := got.Code == coap.Unauthorized || got.Code == coap.MethodNotAllowed || got.Code == coap.Forbidden
						if want == 0 && denied || want != 0 && got.Code != want {
							t.Errorf("%v %v by %s: %v, want %v", method, path, c.Peer.Subject.ID, got.Code, want)
						}
						if got.Code == coap.Unauthorized && len(got.Payload) > 0 {
							t.Errorf("%v %v: 4.01 with a body", method, path)
						}
						// The table in the code says the same, and what a right request is
						// answered with.
						row := legacyRow(d, r.path, method)
						if mayHere := row != nil && row.who[i] == allow; mayHere != (want == 0) {
							t.Errorf("%v %v by %s: the table in the code says %v", method, path, c.Peer.Subject.ID, mayHere)
						}
						if want != 0 {
							continue
						}
						if format, ok := got.Options.ContentFormat(); got.Code != row.ok.code || ok != (row.ok.format != noFormat) || ok && format != row.ok.format {
							t.Errorf("%v %v by %s: %v in format %d", method, path, c.Peer.Subject.ID, got.Code, format)
						}
					}
				}
			}
		})
	}
}

// legacyRow is the row of the table in the code; nil when nobody may.
func legacyRow(d groupcomm.Interface, path []string, method coap.Code) *methodRow {
	table, leaves := draft03Permitted, draft03Leaves
	if d == groupcomm.Hackathon109 {
		table, leaves = hackathonPermitted, hackathonLeaves
	}
	res := resGroup
	switch len(path) {
	case 1:
		res = leaves[path[0]]
	case 2:
		res = resNode
	case 3:
		res = resNodeCred
	}
	row, ok := table[res][method]
	if !ok {
		return nil
	}
	return &row
}

// legacyBody makes the body of a well-formed request of the i-th client.
func (f *fixture) legacyBody(c *gmtest.Joiner, d groupcomm.Interface, method coap.Code, path []string, i int) []byte {
	f.t.Helper()
	switch {
	case len(path) == 0 && method == coap.POST:
		roles := groupcomm.Requester
		if i == int(typeMonitor) {
			roles = groupcomm.Monitor
		}
		msg, err := c.LegacyJoinMessage(d, "g1", roles)
		if err != nil {
			f.t.Fatal(err)
		}
		return msg.Encode()
	case len(path) == 1 && path[0] == "pub-key" && method != coap.GET:
		q := &groupcomm.GetCreds{Roles: []groupcomm.Roles{}, IDs: []groupcomm.SenderID{{}}}
		return groupcomm.EncodeLegacyPubKeyRequest(d, q)
	case len(path) == 1 && path[0] == "node" && method == coap.POST:
		return []byte{groupcomm.LegacyLeave}
	case len(path) == 3 && method == coap.POST:
		msg, err := c.LegacyJoinMessage(d, "g1", both)
		if err != nil {
			f.t.Fatal(err)
		}
		return groupcomm.EncodeLegacyPubKeyUpdate(&groupcomm.CredUpdate{
			ClientCred: msg.ClientCred, CNonce: msg.CNonce, ClientCredVerify: msg.ClientCredVerify,
		})
	}
	return nil
}

// legacyMatrix prints the tables of the older dialects in Markdown, as matrix
// does.
func legacyMatrix() string {
	var b strings.Builder
	for _, d := range []groupcomm.Interface{groupcomm.Draft03, groupcomm.Hackathon109} {
		fmt.Fprintf(&b, "| %s | method |", d)
		for _, n := range clientTypeNames {
			b.WriteString(" " + n + " |")
		}
		b.WriteString("\n|---|---|" + strings.Repeat("---|", int(clientTypes)) + "\n")
		paths := [][]string{nil, {"pub-key"}, {"node"}, {"policies"}, {"ctx-num"}}
		if d == groupcomm.Hackathon109 {
			paths = [][]string{nil, {"active"}, {"pub-key"}, {"policies"}, {"num"}, {"nodes", "NODE"}, {"nodes", "NODE", "pub-key"}}
		}
		for _, path := range paths {
			for _, m := range methods {
				row := legacyRow(d, path, m)
				if row == nil {
					continue
				}
				fmt.Fprintf(&b, "| `%s` | %s |", strings.Join(append([]string{"/group-oscore/GROUP"}, path...), "/"), m)
				for c := range clientTypes {
					code, format := row.ok.code, row.ok.format
					if err := row.who[c].err(); err != nil {
						if code, format = coap.ErrorResponse(err).Code, noFormat; code == coap.Forbidden {
							code = coap.Unauthorized
						}
					}
					fmt.Fprintf(&b, " %s", code)
					if format != noFormat {
						fmt.Fprintf(&b, ", %d", format)
					}
					b.WriteString(" |")
				}
				b.WriteString("\n")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

const (
	legacyBegin = "<!-- methods of the older dialects: written by `go test ./gm -run TestLegacyMatrixIsDocumented -update` -->\n"
	legacyEnd   = "<!-- end of methods of the older dialects -->\n"
)

// TestLegacyMatrixIsDocumented: docs/spec-map.md shows the tables that the gate
// decides by. TestLegacyPermittedMethods asks for every cell.
func TestLegacyMatrixIsDocumented(t *testing.T) {
	documented(t, legacyBegin, legacyMatrix(), legacyEnd)
}
