package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed4911071e/groupgate/cose"
)

func TestClientFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ClientFile)
	c := Client{Identity: "node", Key: cose.NewSecret([]byte("0123456789abcdef")), Audience: "rs2", AS: "coaps://127.0.0.1:5684/token"}
	if err := SaveClient(path, c); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	got, err := LoadClient(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Identity != c.Identity || got.Audience != c.Audience || got.AS != c.AS || !got.Key.Equal(c.Key) {
		t.Errorf("got %+v", got)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadClient(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestClientFileRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"not JSON":    `identity: node`,
		"no identity": `{"key":"30313233343536373839616263646566","audience":"a"}`,
		"no audience": `{"identity":"n","key":"30313233343536373839616263646566"}`,
		"short key":   `{"identity":"n","key":"3031","audience":"a"}`,
		"key not hex": `{"identity":"n","key":"sesame-open-the-door","audience":"a"}`,
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadClient(path); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadClient(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if err := SaveClient(filepath.Join(dir, "c"), Client{Identity: "n"}); err == nil {
		t.Error("an incomplete credential was saved")
	}
}
