package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/config"
	"github.com/seed4911071e/groupgate/store"
)

// where says which gateway is meant. Its flags are the same on every command.
type where struct {
	Config  string `type:"path" placeholder:"FILE" env:"GROUPGATE_CONFIG" help:"Configuration file. Without one: loopback only, one group, keys made at first run."`
	DataDir string `type:"path" placeholder:"DIR" env:"GROUPGATE_DATA_DIR" help:"Data folder, in place of the configuration's data_dir (groupgate-data)."`
}

// load reads the configuration.
func (w *where) load() (*config.Config, error) {
	c := config.Embedded()
	if w.Config != "" {
		var err error
		if c, err = config.Load(w.Config); errors.Is(err, fs.ErrNotExist) {
			return nil, withHint(err, "name the configuration by --config or $GROUPGATE_CONFIG; `gateway run` without one is a gateway on loopback")
		} else if err != nil {
			return nil, err
		}
	}
	if w.DataDir != "" {
		c.DataDir = w.DataDir
	}
	return c, nil
}

// flags repeats the flags for commands that output suggests.
func (w *where) flags() string {
	var b strings.Builder
	if w.Config != "" {
		fmt.Fprintf(&b, " --config %s", w.Config)
	}
	if w.DataDir != "" {
		fmt.Fprintf(&b, " --data-dir %s", w.DataDir)
	}
	return b.String()
}

// adminAddrFile, in the data folder, holds the address of the admin API when
// the configuration leaves the port to the system.
const adminAddrFile = "admin.addr"

// client returns a client for the running gateway.
func (w *where) client() (*admin.Client, error) {
	c, err := w.load()
	if err != nil {
		return nil, err
	}
	addr := c.Listen.HTTP
	if addr == "" {
		return nil, withHint(errors.New("the gateway has no admin API: listen.http is empty"), "set listen.http to 127.0.0.1:8080")
	}
	if portZero(c) {
		b, err := os.ReadFile(c.Path(adminAddrFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s does not exist", admin.ErrNotRunning, c.Path(adminAddrFile))
		}
		if err != nil {
			return nil, err
		}
		addr = strings.TrimSpace(string(b))
	}
	token, err := c.ReadAdminToken()
	if errors.Is(err, fs.ErrNotExist) {
		dir, absErr := filepath.Abs(c.DataDir)
		if absErr != nil {
			dir = c.DataDir
		}
		return nil, withHint(fmt.Errorf("%s holds no admin token: no gateway ever ran with this data folder", dir),
			"start one with `gateway run`, or name its data folder by --data-dir or its file by --config")
	}
	if err != nil {
		return nil, err
	}
	return admin.NewClient(addr, string(token.Bytes())), nil
}

// hinted is an error with advice for the person at the terminal.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func withHint(err error, hint string) error { return &hinted{err, hint} }

// hintFor says what to do about an error, "" when we do not know.
func hintFor(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	if p, ok := errors.AsType[*admin.Problem](err); ok {
		if p.Status == 401 {
			return "this is another gateway's data folder: name the right one by --data-dir or --config"
		}
		return p.Hint
	}
	switch {
	case errors.Is(err, admin.ErrNotRunning):
		return "start it with `gateway run`; if it runs with a configuration file, name that by --config"
	case errors.Is(err, store.ErrLocked):
		return "another gateway runs with this data folder or database: stop it, or give this one its own by --data-dir or `store`"
	case errors.Is(err, store.ErrWrongKey):
		return "restore the seal.key that belongs to this database (gateways that share one have the same), or set " + config.SealKeyEnv
	case errors.Is(err, store.ErrNewerSchema):
		return "a newer gateway wrote this database: run that version, or restore a backup"
	case errors.Is(err, store.ErrRolledBack):
		return "put the newest copy back; or start with --accept-rollback, which rekeys every group; " +
			"to begin anew on purpose, remove groupgate.mark too"
	case errors.Is(err, store.ErrNoMark):
		return "if the database was put back from a backup, start once with --accept-rollback, which rekeys every group; " +
			"if it is the newest copy and was moved here, move groupgate.mark along"
	case errors.Is(err, store.ErrMoved):
		return "name the database that goes on by `store`"
	case errors.Is(err, store.ErrNotEmpty):
		return "name a database, or a schema by ?search_path=, that nothing was ever in"
	case errors.Is(err, store.ErrServerFull):
		return "free space where the PostgreSQL server of `store` keeps its data"
	case errors.Is(err, store.ErrFull), errors.Is(err, syscall.ENOSPC):
		return "free space on the disk of the data folder"
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("this is user %d: run the command as the user that the file or folder belongs to, or change its owner", os.Geteuid())
	case errors.Is(err, store.ErrAway):
		return "see that the PostgreSQL server runs, and that host, role and password of `store` are right"
	}
	return ""
}

// printError tells an error, one line for each fault, and what to do.
func printError(w io.Writer, err error) {
	if fe, ok := errors.AsType[*config.FaultError](err); ok {
		n := len(fe.Faults)
		things := "mistakes"
		if n == 1 {
			things = "mistake"
		}
		_, _ = fmt.Fprintf(w, "%s\ngateway: %d %s in the configuration\n", fe, n, things)
		return
	}
	if p, ok := errors.AsType[*admin.Problem](err); ok {
		for _, f := range p.Faults {
			_, _ = fmt.Fprintf(w, "line %d: %s\n", f.Line, f.Detail)
		}
	}
	_, _ = fmt.Fprintf(w, "gateway: %s\n", err)
	if hint := hintFor(err); hint != "" {
		_, _ = fmt.Fprintf(w, "hint: %s\n", hint)
	}
}
