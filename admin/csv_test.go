package admin

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/groupcomm"
)

const goodNodes = "identity,key,groups,roles\n" +
	"meter-7,00112233445566778899aabbccddeeff,sensors,requester responder\n" +
	"\n" +
	"\"meter, \"\"8\"\"\",,sensors actors,responder | monitor\n" +
	"meter-9,ffeeddccbbaa99887766554433221100,a  b, requester\n"

func TestParseNodes(t *testing.T) {
	for _, file := range []string{goodNodes, "\xef\xbb\xbf" + strings.ReplaceAll(goodNodes, "\n", "\r\n")} {
		nodes, faults := ParseNodes(strings.NewReader(file), true)
		if len(faults) > 0 || len(nodes) != 3 {
			t.Fatalf("%d nodes, faults %v", len(nodes), faults)
		}
		want := []struct {
			line     int
			identity string
			made     bool
			first    byte
			scope    groupcomm.Scope
		}{
			{2, "meter-7", false, 0, groupcomm.Scope{{Group: "sensors", Roles: 6}}},
			{4, `meter, "8"`, true, 0, groupcomm.Scope{{Group: "sensors", Roles: 4}, {Group: "actors", Roles: 8}}},
			{5, "meter-9", false, 0xff, groupcomm.Scope{{Group: "a", Roles: 2}, {Group: "b", Roles: 2}}},
		}
		for i, n := range nodes {
			w := want[i]
			if n.Line != w.line || n.Identity != w.identity || n.Generated != w.made || !reflect.DeepEqual(n.Scope, w.scope) ||
				len(n.Key.Bytes()) != 16 || !w.made && n.Key.Bytes()[0] != w.first {
				t.Errorf("node %d: line %d, %q, made %v, %v", i, n.Line, n.Identity, n.Generated, n.Scope)
			}
		}
		var out bytes.Buffer
		if err := WriteNodes(&out, nodes); err != nil {
			t.Fatal(err)
		}
		again, faults := ParseNodes(&out, false)
		if len(faults) > 0 || len(again) != len(nodes) {
			t.Fatalf("what was written is not read: %v", faults)
		}
		for i := range again {
			if again[i].Identity != nodes[i].Identity || !again[i].Key.Equal(nodes[i].Key) || !reflect.DeepEqual(again[i].Scope, nodes[i].Scope) {
				t.Errorf("node %d is written as another", i)
			}
		}
	}
	// Columns in another order.
	nodes, faults := ParseNodes(strings.NewReader("roles,groups,identity,key\nmonitor,g,n,\n"), true)
	if len(faults) > 0 || len(nodes) != 1 || nodes[0].Identity != "n" || nodes[0].Scope[0].Roles != groupcomm.Monitor {
		t.Errorf("%+v, %v", nodes, faults)
	}
}

// Every mistake is found, with its line, and no fault quotes a key.
func TestParseNodesFaults(t *testing.T) {
	const key = "00112233445566778899aabbccddeeff"
	file := "identity,key,groups,roles\n" +
		"a," + key + ",g,monitor\n" +
		"b,,g,monitor\n" + // 3
		"c," + key + "0,g,monitor\n" + // 4: an odd number of digits
		"a," + key + ",g,monitor\n" + // 5
		"d," + key + ",g\n" + // 6
		"e," + key + ",,monitor\n" + // 7
		"f," + key + ",g,\n" + // 8
		"g," + key + ",g," + key + "\n" + // 9: mixed up
		"h," + key + ",g h i,monitor|monitor\n" + // 10
		"i," + key + ",a/b,monitor\n" + // 11
		"j," + key + ",g,\"monitor\"x\n" + // 12
		"\xff," + key + ",g,monitor\n" + // 13
		"k," + strings.Repeat("00", 65) + ",g,monitor\n" + // 14
		"l," + key + ",g,monitor\n"
	nodes, faults := ParseNodes(strings.NewReader(file), false)
	var lines []int
	for _, f := range faults {
		lines = append(lines, f.Line)
		if strings.Contains(f.Detail, key) {
			t.Errorf("line %d quotes the key: %s", f.Line, f.Detail)
		}
	}
	if want := []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}; !reflect.DeepEqual(lines, want) {
		t.Errorf("faults %v", faults)
	}
	if last := nodes[len(nodes)-1]; last.Identity != "l" || last.Line != 15 {
		t.Errorf("the last line is %+v", last)
	}
	for want, file := range map[string]string{
		"first line must be":       "identity,groups,roles\n",
		"the first line must be":   "",
		"first line must be: iden": "identity,key,groups,roles,more\n",
		"no node follows":          "identity,key,groups,roles\n",
		"a quote is misplaced":     "identity,key,groups,roles\n\"n,,g,monitor\nm,,g,monitor\n",
		"more than 20000 nodes":    "identity,key,groups,roles\n" + numbered(maxNodes+1),
		"larger than 8 MiB":        "identity,key,groups,roles\n" + strings.Repeat(strings.Repeat("x", 100)+",,g,monitor\n", 80_000),
	} {
		_, faults := ParseNodes(strings.NewReader(file), true)
		told := fmt.Sprint(faults)
		if len(faults) == 0 || !strings.Contains(told, want) && !strings.Contains(want, "larger") {
			t.Errorf("want %q, got %.200s", want, told)
		}
		if len(faults) > maxFaults {
			t.Errorf("%d faults", len(faults))
		}
	}
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "n%d,,g,monitor\n", i)
	}
	return b.String()
}

// Every prefix of a good file is read or refused, without a panic, and none of
// a line that is cut.
func TestParseNodesPrefixes(t *testing.T) {
	for i := range len(goodNodes) {
		nodes, faults := ParseNodes(strings.NewReader(goodNodes[:i]), true)
		if whole := strings.HasSuffix(goodNodes[:i], "\n"); whole && i > 26 && len(faults) > 0 || len(nodes) == 0 && len(faults) == 0 {
			t.Errorf("%q: %d nodes, %v", goodNodes[:i], len(nodes), faults)
		}
	}
}

// FuzzParseNodes: what is read without faults is written and read as the same.
func FuzzParseNodes(f *testing.F) {
	f.Add(goodNodes)
	f.Add("identity,key,groups,roles\n\"a\nb\",00,g,monitor|monitor\n")
	f.Fuzz(func(t *testing.T, file string) {
		nodes, faults := ParseNodes(strings.NewReader(file), true)
		if len(faults) > maxFaults {
			t.Fatalf("%d faults", len(faults))
		}
		if len(faults) > 0 {
			return
		}
		var out bytes.Buffer
		if err := WriteNodes(&out, nodes); err != nil {
			t.Fatal(err)
		}
		again, faults := ParseNodes(&out, false)
		if len(faults) > 0 || len(again) != len(nodes) {
			t.Fatalf("%v of %q", faults, out.String())
		}
		for i := range again {
			if !again[i].Key.Equal(nodes[i].Key) || !reflect.DeepEqual(again[i].Scope, nodes[i].Scope) {
				t.Fatalf("node %d", i)
			}
		}
	})
}
