package config

import (
	"net/url"
	"strconv"
	"strings"
)

// storeParams are the parameters that a PostgreSQL URL may have; what else
// there could be would change how the store works.
var storeParams = map[string]bool{
	"host": true, "port": true, // a folder with a socket
	"sslmode": true, "sslrootcert": true, "sslcert": true, "sslkey": true,
	"passfile": true, "search_path": true, "target_session_attrs": true,
}

// isPostgres says whether the store is a PostgreSQL database.
func (c *Config) isPostgres() bool {
	scheme, _, _ := strings.Cut(c.Store, ":")
	return scheme == "postgres" || scheme == "postgresql"
}

// StoreDSN names the store, with its password. It is a secret.
func (c *Config) StoreDSN() Secret {
	dsn := c.Store
	if !c.StorePassword.IsZero() {
		if u, err := url.Parse(dsn); err == nil {
			u.User = url.UserPassword(u.User.Username(), string(c.StorePassword.Bytes()))
			dsn = u.String()
		}
	}
	return newSecret([]byte(dsn))
}

// hideStorePassword moves a password from the URL to where it is not printed.
func (c *Config) hideStorePassword() {
	if !c.isPostgres() {
		return
	}
	u, err := url.Parse(c.Store)
	if err != nil {
		return // validation will say so
	}
	if password, ok := u.User.Password(); ok {
		c.StorePassword = newSecret([]byte(password))
		u.User = url.User(u.User.Username())
		c.Store = u.String()
	}
}

// validateStore never shows the URL: it may hold a password.
func (c *Config) validateStore(f *faults) {
	scheme, rest, _ := strings.Cut(c.Store, ":")
	switch {
	case c.isPostgres():
		c.validatePostgres(f)
	case scheme != "sqlite" || rest == "":
		f.add("store", "must be sqlite:FILE, with FILE relative to data_dir, or postgres://USER@HOST/DATABASE")
	}
}

func (c *Config) validatePostgres(f *faults) {
	const form = "must be postgres://USER@HOST/DATABASE"
	u, err := url.Parse(c.Store)
	if err != nil || u.Opaque != "" || u.Fragment != "" {
		f.add("store", form)
		return
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		f.add("store", form)
		return
	}
	for name := range q {
		switch {
		case name == "password":
			f.add("store", "takes no parameter password: set PGPASSWORD, or use a .pgpass file")
		case !storeParams[name]:
			f.add("store", "takes no parameter %q", name)
		}
	}
	if u.Host == "" && q.Get("host") == "" || strings.Trim(u.Path, "/") == "" || strings.Count(u.Path, "/") > 1 {
		f.add("store", form)
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			f.add("store", "port must be 1 to 65535")
		}
	}
}

// WithStore is the configuration with another store, checked like the key store.
// A password in a URL does not come to be printed.
func (c *Config) WithStore(store string) (*Config, error) {
	out := *c
	out.Store, out.StorePassword = store, Secret{}
	out.hideStorePassword()
	f := newFaults("", nil)
	out.validateStore(f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return &out, nil
}
