package groupgate_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/seed4911071e/groupgate"

// arrows says which packages of this module a package may import; what is
// missing here may import nothing of ours. Arrows point down only: leaves know
// no rooms, rooms do not know each other and meet in plugin.
var arrows = map[string][]string{
	"coap":                   {},
	"coap/serve":             {"coap", "journal/rec", "rarely", "table"},
	"coap/secure":            {"coap", "cose", "journal/rec", "oscore"},
	"coap/coaptest":          {"coap", "coap/serve"},
	"cose":                   {},
	"groupcomm":              {"coap", "cose", "groupcomm/keytree"},
	"groupcomm/keytree":      {"cose"},
	"oscore":                 {"coap", "cose", "durable"},
	"journal":                {"durable", "rarely"},
	"journal/rec":            {},
	"record":                 {},
	"datagram":               {},
	"durable":                {},
	"spell":                  {},
	"rarely":                 {},
	"table":                  {},
	"dtls12":                 {"record"},
	"store":                  {"durable", "rarely"},
	"store/storetest":        {"store", "store/storetest/pgtest"},
	"store/storetest/pgtest": {},
	"bridge/packetid":        {},

	"gm":        {"coap", "cose", "groupcomm", "store"},
	"gm/gmtest": {"coap", "cose", "groupcomm", "gm", "store"},
	"ace/cwt":   {"cose", "oscore"},
	"ace":       {"ace/cwt", "coap", "coap/secure", "cose", "groupcomm", "oscore", "rarely", "store"},
	"bridge":    {"bridge/packetid", "coap", "cose", "groupcomm", "groupcomm/keytree", "store"},
	"delegate":  {"coap", "coap/serve", "cose", "groupcomm", "node", "oscore", "rarely", "store"},
	"node":      {"coap", "coap/serve", "cose", "dtls12", "durable", "groupcomm", "groupcomm/keytree", "oscore"},
	"endpoint":  {"coap", "datagram", "dtls12", "journal/rec", "rarely", "record", "table"},
	"admin":     {"coap", "cose", "groupcomm"},
	"audit":     {"coap", "groupcomm", "rarely", "store"},
	"proxy":     {"coap", "coap/serve", "rarely"},
	"rd":        {"coap"},
	"relay":     {},
	"rd/rdtest": {"coap"},

	"config":      {"coap", "cose", "durable", "groupcomm", "groupcomm/keytree", "node", "spell", "store"},
	"plugin":      {"ace", "admin", "audit", "bridge", "coap", "coap/secure", "coap/serve", "config", "cose", "delegate", "dtls12", "endpoint", "gm", "groupcomm", "journal", "node", "proxy", "rarely", "rd", "relay", "store"},
	"plugin/host": {"admin", "coap", "config", "endpoint", "plugin"},
	"bench":       {"ace", "admin", "bench/peer", "bridge", "coap", "coap/serve", "config", "cose", "endpoint", "gm", "gm/gmtest", "groupcomm", "groupcomm/keytree", "node", "node/swarm", "oscore", "plugin", "plugin/host", "store"},
	"cmd/gateway": {"admin", "bench", "bench/peer", "cmd/gateway/argv", "coap", "config", "cose", "durable", "groupcomm", "node", "node/swarm", "oscore", "plugin", "plugin/host", "rarely", "store"},

	"cmd/gateway/argv": {"spell"},

	"node/swarm": {"coap", "coap/serve", "datagram", "record"},
	"bench/peer": {"coap", "coap/serve", "datagram", "endpoint", "journal", "record"},

	"examples/host": {"config", "plugin"},

	"groupcomm/keytree/keytreetest": {"cose", "groupcomm", "groupcomm/keytree"},
}

// doors says who may import the libraries that would otherwise leak into every
// room: the first match of the path's beginning decides.
var doors = []struct {
	prefix string
	who    []string
}{
	{"github.com/plgd-dev/go-coap/", []string{"plugin", "plugin/host", "node", "bench/peer", "examples/host"}},
	{"github.com/pion/dtls/", []string{"endpoint", "plugin", "plugin/host", "node", "proxy", "node/swarm", "bench/peer", "examples/host"}},
	{"github.com/eclipse/paho.mqtt.golang", []string{"bridge", "node"}},
	{"github.com/mochi-mqtt/", []string{"bridge", "bridge/packetid"}},
	{"modernc.org/", []string{"store", "store/storetest"}},
	{"github.com/jackc/pgx/", []string{"store", "store/storetest/pgtest"}},
	{"database/sql", []string{"store", "store/storetest"}},
	{"github.com/fxamacker/cbor/", []string{"cose", "coap", "groupcomm", "ace", "gm", "bridge"}},
	{"github.com/veraison/go-cose", []string{"cose"}},
	{"go.yaml.in/yaml/", []string{"config"}},
}

// TestArrows holds the direction of dependencies.
func TestArrows(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if name == "" {
			continue // this test's own package
		}
		seen[name] = true
		allowed, known := arrows[name]
		if !known && !strings.HasPrefix(name, "test/") {
			t.Errorf("package %s has no row in the table of arrows", name)
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
				if !slices.Contains(allowed, ours) && known {
					t.Errorf("%s must not import %s", name, ours)
				}
				continue
			}
			for _, d := range doors {
				if strings.HasPrefix(imp, d.prefix) {
					if !slices.Contains(d.who, name) && known {
						t.Errorf("%s must not import %s", name, imp)
					}
					break
				}
			}
		}
	}
	for name := range arrows {
		if !seen[name] {
			t.Errorf("the table of arrows has a row for %s, which does not exist", name)
		}
	}
}
