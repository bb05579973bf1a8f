package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// checkMachine holds the configuration against this machine: folders that have to
// be there, which are faults, and network interfaces, which may come later.
func (c *Config) checkMachine(f *faults) {
	if !c.isPostgres() {
		c.folder(f, "store", strings.TrimPrefix(c.Store, "sqlite:"))
	}
	if _, ok := os.LookupEnv(SealKeyEnv); !ok {
		c.folder(f, "seal.key_file", c.Seal.KeyFile)
	}
	for i, t := range c.Tokens {
		if c.issuing(t) {
			c.folder(f, fmt.Sprintf("tokens[%d].symmetric_key_file", i), t.SymmetricKeyFile)
		}
	}
	c.needInterface("multicast.interface", c.Multicast.Interface)
	for i, g := range c.Groups {
		c.needInterface(fmt.Sprintf("groups[%d].network.interface", i), g.Network.Interface)
	}
	for i, d := range c.Delegates {
		c.needInterface(fmt.Sprintf("delegates[%d].auth.interface", i), d.Auth.Interface)
	}
	for i, r := range c.Proxy.Allow {
		c.needInterface(fmt.Sprintf("proxy.allow[%d].interface", i), r.Interface)
	}
	for i, r := range c.Proxy.Reverse {
		c.needInterface(fmt.Sprintf("proxy.reverse[%d].interface", i), r.Interface)
	}
}

func (c *Config) needInterface(key, name string) {
	if name == "" {
		return
	}
	if _, err := net.InterfaceByName(name); err != nil {
		c.warn("%s: this machine has no network interface %q now", key, name)
	}
}

// folder: a file that the gateway creates needs its folder. The data folder is
// created too.
func (c *Config) folder(f *faults, key, file string) {
	dir := filepath.Dir(c.Path(file))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && dir != filepath.Clean(c.DataDir) {
		f.add(key, "there is no folder %s (names are relative to data_dir)", dir)
	}
}
