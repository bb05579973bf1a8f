//go:build interop

package broker

import (
	"fmt"
	"os/exec"
	"strings"
)

// natsProgram is the NATS server.
const natsProgram = "GROUPGATE_TEST_NATS"

// nats has one listener for MQTT: either all clients show a certificate or none has to.
// Here all have passwords, and JetStream keeps what is retained.
var nats = product{
	name:      "nats",
	configure: func(s *server, rules []rule) { natsConfig(s, rules, "") },
	command:   natsCommand,
	oneDoor:   true, password: true, keeps: true, refuses: true,
}

// natsMapped is the same with certificates that tell who the clients are. The password
// of a member, who sends one, is looked at too.
var natsMapped = product{
	name:      "nats-certificates",
	configure: func(s *server, rules []rule) { natsConfig(s, rules, "verify_and_map: true") },
	command:   natsCommand,
	oneDoor:   true, mapped: true, keeps: true, refuses: true,
}

func natsCommand(s *server) *exec.Cmd {
	return exec.Command(program(s.t, natsProgram), "-c", s.file("nats.conf"))
}

func natsConfig(s *server, rules []rule, verify string) {
	program(s.t, natsProgram)
	subjects := strings.NewReplacer("/", ".", "+", "*", "#", ">")
	var users strings.Builder
	for _, user := range []string{adminID, memberID, sensorID} {
		var publish, subscribe []string
		for _, r := range rules {
			if r.user != user {
				continue
			}
			subject := fmt.Sprintf("%q", subjects.Replace(r.filter))
			if strings.HasSuffix(r.may, "write") {
				publish = append(publish, subject)
			}
			if strings.HasPrefix(r.may, "read") {
				subscribe = append(subscribe, subject)
			}
		}
		name, secret := user, fmt.Sprintf("password: %q, ", password)
		if verify != "" {
			name = "CN=" + user
			if user == adminID {
				secret = "" // none comes
			}
		}
		fmt.Fprintf(&users, "  {user: %q, %spermissions: {publish: [%s], subscribe: [%s]}}\n", name, secret, strings.Join(publish, ", "), strings.Join(subscribe, ", "))
	}
	s.write("nats.conf", fmt.Sprintf(`server_name: test
listen: "127.0.0.1:-1"
jetstream {store_dir: %[2]q}
mqtt {
  listen: %[1]q
  tls {ca_file: %[3]q, cert_file: %[4]q, key_file: %[5]q, %[6]s}
}
authorization {users: [
%[7]s]}
`, s.tls, s.file("jetstream"), s.file("ca.pem"), s.file("server.pem"), s.file("server.key"), verify, users.String()))
}
