//go:build interop

package broker

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// hivemqJars is the folder that has the jars of hivemq/pom.xml.
const hivemqJars = "GROUPGATE_TEST_HIVEMQ"

// hivemq is HiveMQ CE in hivemq/Broker.java. It keeps on disk what is retained.
var hivemq = product{
	name: "hivemq",
	configure: func(s *server, rules []rule) {
		program(s.t, hivemqJars)
		var lines strings.Builder
		for _, r := range rules {
			fmt.Fprintln(&lines, r.user, r.may, r.filter)
		}
		s.write("rules", lines.String())
		if err := os.MkdirAll(s.file("conf"), 0o700); err != nil {
			s.t.Fatal(err)
		}
		s.write("conf/config.xml", fmt.Sprintf(`<?xml version="1.0"?>
<hivemq>
  <listeners>
    <tcp-listener><port>%[1]s</port><bind-address>127.0.0.1</bind-address></tcp-listener>
    <tls-tcp-listener><port>%[2]s</port><bind-address>127.0.0.1</bind-address><tls>
      <keystore><path>%[3]s/server.jks</path><password>changeit</password><private-key-password>changeit</private-key-password></keystore>
      <truststore><path>%[3]s/ca.jks</path><password>changeit</password></truststore>
      <client-authentication-mode>REQUIRED</client-authentication-mode>
    </tls></tls-tcp-listener>
  </listeners>
  <anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics>
</hivemq>
`, port(s.plain), port(s.tls), s.dir))
	},
	command: func(s *server) *exec.Cmd {
		jars := program(s.t, hivemqJars)
		if err := compileHiveMQ(jars); err != nil {
			s.t.Fatal(err)
		}
		return exec.Command("java", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-cp", jars+"/*:"+jars+"/classes", "Broker", s.dir)
	},
	keeps: true, refuses: true,
}

var compiled struct {
	once sync.Once
	err  error
}

func compileHiveMQ(jars string) error {
	compiled.once.Do(func() {
		if out, err := exec.Command("javac", "-cp", jars+"/*", "-d", jars+"/classes", "hivemq/Broker.java").CombinedOutput(); err != nil {
			compiled.err = fmt.Errorf("javac: %w\n%s", err, out)
		}
	})
	return compiled.err
}
