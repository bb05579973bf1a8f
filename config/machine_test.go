package config

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What this machine lacks: folders are faults of check and of the start, and are
// told before anything is created; interfaces are warnings of both.
func TestMachine(t *testing.T) {
	ifs, err := net.Interfaces()
	if err != nil || len(ifs) == 0 {
		t.Fatal("no network interface", err)
	}
	data := filepath.Join(t.TempDir(), "data")
	c, err := Parse("f", []byte("data_dir: "+data+"\nstore: sqlite:/no/such/g.db\nseal: {key_file: keys/seal.key}\n"+
		"tokens: [{issuer: as1, audience: rs, symmetric_key_file: keys/as.key}]\n"+
		"multicast: {interface: nosuch0}\ngroups: [{name: g, network: {multicast: '239.1.2.3:5693', interface: "+ifs[0].Name+"}}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]func() error{"check": c.CheckKeys, "start": c.Bootstrap} {
		fe, ok := errors.AsType[*FaultError](check())
		if !ok || len(fe.Faults) != 3 || !hasFault(fe, "2", "store", "there is no folder /no/such") ||
			!hasFault(fe, "3", "seal.key_file", "there is no folder "+filepath.Join(data, "keys")) ||
			!hasFault(fe, "4", "tokens[0].symmetric_key_file", "there is no folder") {
			t.Errorf("%s: %v", name, fe)
		}
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], `multicast.interface: this machine has no network interface "nosuch0"`) {
		t.Errorf("warnings %q", w)
	}
	if err := os.Mkdir(filepath.Join(data, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.Store = "sqlite:g.db"
	for _, check := range []func() error{c.CheckKeys, c.Bootstrap, c.CheckKeys} {
		if err := check(); err != nil {
			t.Error(err)
		}
	}
}

func TestSuspectGroup(t *testing.T) {
	for name, want := range map[string]int{"snesors": 1, "Sensors": 1, "sensors": 0, "sensors-2": 0, "lamps": 0, "floor2": 0} {
		c, err := Parse("f", []byte("tokens: [{issuer: as1, audience: rs, symmetric_key_file: as.key}]\npsk: [{identity: x, key_file: x.key, may: [token]}]\n"+
			"authorization_server: {policies: [{client: x, audience: rs, scope: [{group: "+name+", roles: [requester]}]}]}\n"+
			"groups: [{name: sensors}, {name: floor1}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Warnings(); len(got) != want || want == 1 && !strings.Contains(got[0], `did you mean "sensors"?`) {
			t.Errorf("%s: warnings %q", name, got)
		}
	}
}
