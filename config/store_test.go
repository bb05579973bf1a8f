package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestStorePassword(t *testing.T) {
	c, err := Parse("t.yaml", []byte("store: postgres://gate:hunter%202@db.example/groupgate?sslmode=verify-full\n"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "postgres://gate:hunter%202@db.example/groupgate?sslmode=verify-full"
	if got := string(c.StoreDSN().Bytes()); got != want {
		t.Errorf("DSN %s", got)
	}
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if strings.Contains(fmt.Sprintf(verb, *c), "hunter") {
			t.Errorf("%s shows the password", verb)
		}
	}
	if !c.hasInlineSecrets() {
		t.Error("the password is not told as a secret in the file")
	}
	c, err = Parse("t.yaml", []byte("store: postgres://gate@db.example/groupgate\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.StoreDSN().Bytes()); got != "postgres://gate@db.example/groupgate" {
		t.Errorf("DSN %s", got)
	}
}

func TestStore(t *testing.T) {
	for store, ok := range map[string]bool{
		"sqlite:x.db":                        true,
		"postgres://u@h/d":                   true,
		"postgresql://u@h:99/d":              true,
		"postgres:///d?host=/run/postgresql": true,
		"postgres://u@h/d?search_path=gate":  true,
		"postgres://u@h/d?passfile=/etc/pw":  true,
		"postgres://u@h":                     false,
		"postgres:///d":                      false,
		"postgres:d":                         false,
		"postgres://u:hunter2@h/d/e":         false,
		"postgres://u:hunter2@h/d?%zz":       false,
		"postgres://u:hunter2@h:x/d":         false,
		"postgres://u@h:70000/d":             false,
		"postgres://u@h/d?password=hunter2":  false,
		"postgres://u@h/d?options=-c":        false,
		"postgres://u:hunter2@h/d#x":         false,
		"mysql://u:hunter2@h/d":              false,
	} {
		_, err := Parse("t.yaml", []byte("store: \""+store+"\"\n"))
		if (err == nil) != ok {
			t.Errorf("%s: %v", store, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: the password is in the error", store)
		}
	}
}
