package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestNodeUsage: a wrong command line of a simulated node is told before anything is
// looked for, with the status that docs/operations.md has for it, and the flag's name.
func TestNodeUsage(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"join --roles boss":                                  "--roles",
		"join --coaps-port 99999":                            "--coaps-port",
		"join --identity a":                                  "--key-file",
		"join --cert-file a":                                 "--cert-key-file",
		"join --mqtt --broker-key-file a":                    "--broker-cert-file",
		"join --broker-ca-file a":                            "--mqtt",
		"join --poll -1s":                                    "--poll",
		"join --sleep -1s":                                   "--sleep",
		"join --mqtt --rekey-multicast lo":                   "--rekey-multicast",
		"join --interface draft-03 --mqtt":                   "--interface current",
		"join --interface hackathon-109 --oscore":            "--interface current",
		"join --proxy 127.0.0.1:5 --proxy-name a":            "--oscore",
		"join --oscore --proxy 127.0.0.1:5":                  "--proxy-name",
		"join --oscore --rpk":                                "--rpk",
		"join --oscore --rpk-key-file a":                     "--rpk",
		"send --count -1":                                    "--count",
		"send --roles monitor":                               "--roles",
		"send --poll -1s":                                    "--poll",
		"serve --roles requester":                            "--roles",
		"serve --once":                                       "--once",
		"swarm":                                              "--csv",
		"swarm --key-file node_usage_test.go":                "--nodes",
		"swarm --key-file node_usage_test.go --nodes 999999": "--nodes",
		"swarm --csv node_usage_test.go --every -1s":         "--every",
		"swarm --csv node_usage_test.go --report 0s":         "--report",
		"swarm --csv node_usage_test.go --at-once 0":         "--at-once",
		"swarm --csv node_usage_test.go --coap-port 0":       "--coap-port",
	} {
		var out, stderr bytes.Buffer
		args := append([]string{"node"}, strings.Fields(line)...)
		if code := run(args, &out, &stderr); code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d, %s", line, code, &stderr)
		}
	}
}
