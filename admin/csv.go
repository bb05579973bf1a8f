package admin

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/groupcomm"
)

// Columns of a file of nodes. Each line after the header is one node:
//
//	identity,key,groups,roles
//	meter-7,00112233445566778899aabbccddeeff,sensors,requester responder
//	meter-8,,sensors actors,responder | monitor
//
// key is hexadecimal. groups are names, separated by spaces; roles are names,
// separated by spaces, for all of the groups or, separated by |, for each in
// turn.
var nodeColumns = []string{"identity", "key", "groups", "roles"}

// Bounds of a file of nodes.
const (
	maxNodes     = 20_000  // nodes in one file
	maxNodesBody = 8 << 20 // its size in bytes
	maxFaults    = 100     // told of one file
	generatedKey = 16      // bytes of a key that is made here
	maxNodeKey   = 64      // bytes of a key
)

const tooLarge = "the file is larger than 8 MiB: split it"

// NodeSpec is one node of a file.
type NodeSpec struct {
	Line     int // where it begins, from 1
	Identity string
	Key      cose.Secret // empty: none was given, and none was to be made
	Scope    groupcomm.Scope

	Generated bool // Key was made here
}

// LineFault is a mistake in one line of a file.
type LineFault struct {
	Line   int    `json:"line"`
	Detail string `json:"detail"` // quotes no key
}

// ParseNodes reads a file of nodes and finds every mistake in it; with generate
// an empty key is made, else it is a mistake. It is strict: a header with
// exactly the four columns, in any order; UTF-8 (a byte order mark is passed
// over); quotes as in RFC 4180, and nothing around values but the spaces of
// lists.
func ParseNodes(r io.Reader, generate bool) ([]NodeSpec, []LineFault) {
	in := bufio.NewReader(io.LimitReader(r, maxNodesBody+1))
	if mark, err := in.Peek(3); err == nil && bytes.Equal(mark, []byte("\xef\xbb\xbf")) {
		_, _ = in.Discard(len(mark)) // what Peek showed is there
	}
	counted := &countingReader{r: in}
	p := &nodeParser{csv: csv.NewReader(counted), generate: generate, seen: map[string]int{}}
	p.csv.ReuseRecord = true
	if !p.header() {
		return nil, p.faults
	}
	for p.next() {
	}
	switch {
	case counted.n > maxNodesBody:
		return nil, []LineFault{{1, tooLarge}}
	case len(p.nodes) == 0 && len(p.faults) == 0:
		p.fault(1, "no node follows the header")
	}
	return p.nodes, p.faults
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

type nodeParser struct {
	csv      *csv.Reader
	generate bool
	column   [4]int // of nodeColumns[i]
	seen     map[string]int
	nodes    []NodeSpec
	faults   []LineFault
}

func (p *nodeParser) fault(line int, format string, args ...any) {
	p.faults = append(p.faults, LineFault{line, fmt.Sprintf(format, args...)})
}

// header reads the first line.
func (p *nodeParser) header() bool {
	names, err := p.csv.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		p.fault(1, "%s", csvFault(err))
		return false
	}
	for i, want := range nodeColumns {
		if p.column[i] = slices.Index(names, want); p.column[i] < 0 || len(names) != len(nodeColumns) {
			p.fault(1, "the first line must be: %s", strings.Join(nodeColumns, ","))
			return false
		}
	}
	return true
}

// csvFault says what is wrong with the form of a line, without quoting it.
func csvFault(err error) string {
	switch {
	case errors.Is(err, csv.ErrFieldCount):
		return fmt.Sprintf("not %d values", len(nodeColumns))
	case errors.Is(err, csv.ErrQuote), errors.Is(err, csv.ErrBareQuote):
		return "a quote is misplaced or missing"
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	return "the file cannot be read"
}

// next reads one line and says whether there may be more.
func (p *nodeParser) next() bool {
	record, err := p.csv.Read()
	if errors.Is(err, io.EOF) {
		return false
	}
	if err != nil {
		pe, ok := errors.AsType[*csv.ParseError](err)
		if !ok {
			p.fault(1, "%s", csvFault(err))
			return false
		}
		p.fault(pe.StartLine, "%s", csvFault(err))
		return len(p.faults) < maxFaults
	}
	line, _ := p.csv.FieldPos(0)
	if len(p.nodes) == maxNodes {
		p.fault(line, "more than %d nodes: split the file", maxNodes)
		return false
	}
	n := NodeSpec{Line: line, Identity: strings.Clone(record[p.column[0]])}
	if first, ok := p.seen[n.Identity]; ok && n.Identity != "" {
		p.fault(line, "%q is in line %d already", n.Identity, first)
	} else if !utf8.ValidString(n.Identity) {
		p.fault(line, "identity is not UTF-8")
	}
	p.seen[n.Identity] = line
	p.key(&n, record[p.column[1]])
	p.scope(&n, record[p.column[2]], record[p.column[3]])
	p.nodes = append(p.nodes, n)
	return len(p.faults) < maxFaults
}

func (p *nodeParser) key(n *NodeSpec, text string) {
	switch {
	case text == "" && p.generate:
		key := make([]byte, generatedKey)
		rand.Read(key)
		n.Key, n.Generated = cose.NewSecret(key), true
	case text == "":
		p.fault(n.Line, "no key: those that `gateway node enroll` made are in the file that it named")
	case len(text) > 2*maxNodeKey:
		p.fault(n.Line, "a key has at most %d bytes", maxNodeKey)
	default:
		key, err := hex.DecodeString(text)
		if err != nil {
			p.fault(n.Line, "key is not hexadecimal") // the cause may quote it
			return
		}
		n.Key = cose.NewSecret(key)
	}
}

func (p *nodeParser) scope(n *NodeSpec, groups, roles string) {
	names := strings.Fields(groups)
	if len(names) == 0 {
		p.fault(n.Line, "no group")
		return
	}
	lists := strings.Split(roles, "|")
	if len(lists) != 1 && len(lists) != len(names) {
		p.fault(n.Line, "%d groups and %d lists of roles: give one list, or one for each group", len(names), len(lists))
		return
	}
	for i, name := range names {
		list := lists[min(i, len(lists)-1)]
		bits, err := groupcomm.ParseRoles(strings.Join(strings.Fields(list), ","))
		switch {
		case strings.TrimSpace(list) == "":
			p.fault(n.Line, "no roles")
		case err != nil:
			// Not quoted, like the group: in a file whose columns are mixed up
			// it may be the key.
			p.fault(n.Line, "roles must be of requester, responder, monitor, verifier")
		case !groupcomm.ValidGroupName(name):
			p.fault(n.Line, "value %d of groups is no group name", i+1)
		default:
			n.Scope = append(n.Scope, groupcomm.ScopeEntry{Group: name, Roles: bits})
			continue
		}
		return
	}
}

// WriteNodes writes a file of nodes, with their keys, that ParseNodes reads.
func WriteNodes(w io.Writer, nodes []NodeSpec) error {
	out := csv.NewWriter(w)
	if err := out.Write(nodeColumns); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	for _, n := range nodes {
		groups, roles := listScope(n.Scope)
		if err := out.Write([]string{n.Identity, hex.EncodeToString(n.Key.Bytes()), groups, roles}); err != nil {
			return fmt.Errorf("admin: %w", err)
		}
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// listScope writes a scope as the columns groups and roles.
func listScope(s groupcomm.Scope) (groups, roles string) {
	var names, lists []string
	for _, e := range s {
		names = append(names, e.Group)
		lists = append(lists, strings.ReplaceAll(e.Roles.String(), ",", " "))
	}
	if len(slices.Compact(slices.Clone(lists))) == 1 {
		lists = lists[:1]
	}
	return strings.Join(names, " "), strings.Join(lists, " | ")
}
