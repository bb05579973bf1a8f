//go:build interop

package broker

import (
	"fmt"
	"os/exec"
	"strings"
)

// mosquitto is that of Debian. It keeps nothing on disk.
var mosquitto = product{
	name: "mosquitto",
	configure: func(s *server, rules []rule) {
		s.write("passwords", "")
		for _, user := range []string{memberID, sensorID} {
			if out, err := exec.Command(find(s.t, "mosquitto_passwd", "mosquitto"), "-b", s.file("passwords"), user, password).CombinedOutput(); err != nil {
				s.t.Fatalf("mosquitto_passwd: %v: %s", err, out)
			}
		}
		var acl strings.Builder
		for _, r := range rules {
			fmt.Fprintf(&acl, "user %s\ntopic %s %s\n", r.user, r.may, r.filter)
		}
		s.write("acl", acl.String())
		s.write("mosquitto.conf", fmt.Sprintf(`per_listener_settings true
user root
listener %[1]s 127.0.0.1
cafile %[3]s/ca.pem
certfile %[3]s/server.pem
keyfile %[3]s/server.key
require_certificate true
use_identity_as_username true
acl_file %[3]s/acl
listener %[2]s 127.0.0.1
allow_anonymous false
password_file %[3]s/passwords
acl_file %[3]s/acl
`, port(s.tls), port(s.plain), s.dir))
	},
	command: func(s *server) *exec.Cmd {
		return exec.Command(find(s.t, "mosquitto", "mosquitto"), "-c", s.file("mosquitto.conf"))
	},
}
