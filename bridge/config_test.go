package bridge

import (
	"strings"
	"testing"
)

func TestConfigValidate(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		want string // key that is named; "": valid
	}{
		"nothing":             {Config{}, ""},
		"loopback":            {Config{Listen: "127.0.0.1:1883"}, ""},
		"loopback 6":          {Config{Listen: "[::1]:1883"}, ""},
		"plain for all":       {Config{Listen: ":1883"}, "listen.mqtt"},
		"plain for a net":     {Config{Listen: "192.0.2.1:1883"}, "listen.mqtt"},
		"plain, a name":       {Config{Listen: "gateway:1883"}, "listen.mqtt"},
		"plain, insecure":     {Config{Listen: ":1883", InsecurePlain: true}, ""},
		"tls":                 {Config{ListenTLS: ":8883", TLSCertFile: "c", TLSKeyFile: "k"}, ""},
		"tls, no certificate": {Config{ListenTLS: ":8883"}, "listen.mqtts"},
		"broker, tls":         {Config{Broker: "mqtts://broker.example:8883"}, ""},
		"broker, plain":       {Config{Broker: "tcp://broker.example:1883"}, "mqtt.broker"},
		"broker, loopback":    {Config{Broker: "ws://127.0.0.1:9001"}, ""},
		"broker, account":     {Config{Broker: "mqtts://u:p@broker.example"}, "mqtt.broker"},
		"broker, scheme":      {Config{Broker: "http://127.0.0.1"}, "mqtt.broker"},
		"broker, no uri":      {Config{Broker: "127.0.0.1:1883"}, "mqtt.broker"},
		"public, plain":       {Config{Listen: "127.0.0.1:1883", PublicURI: "mqtt://gw.example:1883"}, "mqtt.public_uri"},
		"wildcard prefix":     {Config{Prefix: "a/+"}, "mqtt.topic_prefix"},
		"system prefix":       {Config{Prefix: "$SYS"}, "mqtt.topic_prefix"},
		"slash":               {Config{Prefix: "a/"}, "mqtt.topic_prefix"},
		"half a certificate":  {Config{Broker: "mqtts://b", CertFile: "c"}, "mqtt.cert_file"},
	} {
		err := c.cfg.Validate()
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q named", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: the error shows an account: %v", name, err)
		}
	}
}
