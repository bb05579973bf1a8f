//go:build interop

package broker

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/seed4911071e/groupgate/test/ports"
)

// rabbitProgram is the script rabbitmq-server, that of Debian's package itself and
// not the one that wraps it.
const rabbitProgram = "GROUPGATE_TEST_RABBITMQ"

// rabbitmq is that of Debian with its MQTT plugin. What is retained it keeps in memory.
var rabbitmq = product{
	name:      "rabbitmq",
	configure: rabbitConfig,
	command: func(s *server) *exec.Cmd {
		rabbitNames(s)
		cmd := exec.Command(program(s.t, rabbitProgram))
		cmd.Env = append(os.Environ(), rabbitEnv(s)...)
		return cmd
	},
	refuses: true, literal: true,
}

func rabbitEnv(s *server) []string {
	return []string{
		"HOME=" + s.dir, // its cookie
		"ERL_EPMD_PORT=" + strings.TrimSpace(s.read("names")), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RUNNING_UNDER_SYSTEMD=1", // the script becomes the server, and so can be killed
		"RABBITMQ_NODENAME=test@localhost", "RABBITMQ_DIST_PORT=" + strings.TrimSpace(s.read("dist")),
		"RABBITMQ_CONF_ENV_FILE=" + s.file("env.conf"), "RABBITMQ_CONFIG_FILE=" + s.file("rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE=" + s.file("advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + s.file("plugins"), "RABBITMQ_MNESIA_BASE=" + s.file("mnesia"), "RABBITMQ_LOGS=-",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
	}
}

// rabbitNames starts the name server of Erlang, a process that a node would start
// otherwise and leave behind.
func rabbitNames(s *server) {
	if s.cmd != nil {
		return // since the first start
	}
	names := exec.Command(find(s.t, "epmd", "erlang-base"), "-address", "127.0.0.1", "-port", strings.TrimSpace(s.read("names")))
	if err := names.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = names.Process.Kill(); _ = names.Wait() })
}

func rabbitConfig(s *server, rules []rule) {
	program(s.t, rabbitProgram)
	if _, err := os.Stat(s.file("names")); err != nil {
		s.write("names", fmt.Sprint(ports.Free(s.t)))
		s.write("dist", fmt.Sprint(ports.Free(s.t)))
	}
	s.write("env.conf", "")
	s.write("plugins", "[rabbitmq_mqtt, rabbitmq_auth_mechanism_ssl].\n")
	s.write("rabbitmq.conf", fmt.Sprintf(`listeners.tcp = none
mqtt.allow_anonymous = false
mqtt.ssl_cert_login = true
ssl_cert_login_from = common_name
mqtt.listeners.tcp.1 = %[1]s
mqtt.listeners.ssl.1 = %[2]s
ssl_options.cacertfile = %[3]s/ca.pem
ssl_options.certfile = %[3]s/server.pem
ssl_options.keyfile = %[3]s/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
load_definitions = %[3]s/definitions.json
`, s.plain, s.tls, s.dir))

	type object map[string]any
	d := map[string][]object{"vhosts": {{"name": "/"}}}
	subjects := strings.NewReplacer("/", `\.`, "+", `[^.]+`, "#", ".*")
	for _, user := range []string{adminID, memberID, sensorID} {
		var read, write []string
		for _, r := range rules {
			if r.user != user {
				continue
			}
			if strings.HasPrefix(r.may, "read") {
				read = append(read, subjects.Replace(r.filter))
			}
			if strings.HasSuffix(r.may, "write") {
				write = append(write, subjects.Replace(r.filter))
			}
		}
		hash := ""
		if user != adminID {
			sum := sha256.Sum256([]byte("salt" + password))
			hash = string(append([]byte("salt"), sum[:]...))
		}
		d["users"] = append(d["users"], object{"name": user, "password_hash": []byte(hash), "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []string{}})
		const own = `^(mqtt-subscription-.*|amq\.topic)$`
		d["permissions"] = append(d["permissions"], object{"user": user, "vhost": "/", "configure": own, "write": own, "read": own})
		d["topic_permissions"] = append(d["topic_permissions"], object{"user": user, "vhost": "/", "exchange": "amq.topic", "write": anyOf(write), "read": anyOf(read)})
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(d); err != nil {
		s.t.Fatal(err)
	}
	s.write("definitions.json", b.String())
}

// anyOf is an expression that matches what one of them does; none: nothing.
func anyOf(patterns []string) string {
	out := "^(" + strings.Join(patterns, "|") + ")$"
	return regexp.MustCompile(out).String()
}
