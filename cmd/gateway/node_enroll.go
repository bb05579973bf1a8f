package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/durable"
	"github.com/seed4911071e/groupgate/node"
)

// nodeEnrollCmd makes nodes clients of the embedded Authorization Server.
type nodeEnrollCmd struct {
	where
	CSV      string        `name:"csv" required:"" type:"existingfile" placeholder:"FILE" help:"The nodes: a line identity,key,groups,roles, then one line for each. Key: hexadecimal, or empty to have one made. Groups: names separated by spaces. Roles: separated by spaces, for all groups, or separated by | for each."`
	KeysOut  string        `type:"path" placeholder:"FILE" help:"Where keys that were made are written, once, readable by you alone. Default: the name of the --csv file with -keys before the ending."`
	Audience string        `help:"Audience of the nodes' tokens. Default: the only one that the embedded Authorization Server can issue for."`
	Lifetime time.Duration `default:"24h" help:"Lifetime of the nodes' tokens."`
	Replace  bool          `help:"Give nodes that are enrolled already the key and the rights of the file. With another key, or fewer rights, what they have ends."`
	DryRun   bool          `help:"Find every mistake, change nothing."`
	JSON     bool          `help:"Print JSON."`
}

// Run enrolls the nodes of a file. Keys that it makes are on disk before the
// gateway knows them, so that none is lost.
func (c *nodeEnrollCmd) Run(e *env) error {
	nodes, err := c.read(e.stderr)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	made, err := c.saveKeys(nodes)
	if err != nil {
		return err
	}
	result, err := client.EnrollNodes(e.ctx, nodes, admin.EnrollOptions{
		Audience: c.Audience, Lifetime: c.Lifetime, Replace: c.Replace, DryRun: c.DryRun,
	})
	if err != nil {
		return c.undo(made, err)
	}
	for _, g := range result.UnknownGroups {
		_, _ = fmt.Fprintf(e.stderr, "warning: there is no group %s yet\n", g)
	}
	if c.JSON {
		return printJSON(e.stdout, result)
	}
	verb := "enrolled"
	if c.DryRun {
		verb = "would be enrolled"
	}
	text := fmt.Sprintf("%s %s for audience %s", count(result.Enrolled, "node"), verb, result.Audience)
	if result.Replaced > 0 {
		text += fmt.Sprintf(", %d replaced, the tokens of %d of them revoked", result.Replaced, result.Revoked)
	}
	if made != "" {
		text += "\nkeys that were made: " + made + "  (secret)"
	}
	_, err = fmt.Fprintln(e.stdout, text)
	return err
}

// read reads the file. Its mistakes are told as the gateway tells them.
func (c *nodeEnrollCmd) read(stderr io.Writer) ([]admin.NodeSpec, error) {
	f, err := os.Open(c.CSV)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	nodes, faults := admin.ParseNodes(f, true)
	if len(faults) > 0 {
		for _, x := range faults {
			_, _ = fmt.Fprintf(stderr, "%s:%d: %s\n", c.CSV, x.Line, x.Detail)
		}
		return nil, fmt.Errorf("%s in %s, nothing is changed", count(len(faults), "mistake"), c.CSV)
	}
	if st, err := f.Stat(); err == nil && st.Mode().Perm()&0o077 != 0 {
		for _, n := range nodes {
			if !n.Generated {
				_, _ = fmt.Fprintf(stderr, "warning: %s holds keys and can be read by others: chmod 600\n", c.CSV)
				break
			}
		}
	}
	return nodes, nil
}

// saveKeys writes the nodes whose keys were made to a new file and returns its
// name, "" when there is nothing to write.
func (c *nodeEnrollCmd) saveKeys(nodes []admin.NodeSpec) (name string, err error) {
	var made []admin.NodeSpec
	for _, n := range nodes {
		if n.Generated {
			made = append(made, n)
		}
	}
	if len(made) == 0 || c.DryRun {
		return "", nil
	}
	name = c.KeysOut
	if name == "" {
		ext := filepath.Ext(c.CSV)
		name = strings.TrimSuffix(c.CSV, ext) + "-keys" + ext
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return "", withHint(err, "it may hold keys of nodes: name another file by --keys-out")
	}
	if err != nil {
		return "", err
	}
	err = admin.WriteNodes(f, made)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close(), durable.SyncDir(filepath.Dir(name))); err != nil {
		return "", errors.Join(err, os.Remove(name))
	}
	return name, nil
}

// undo removes the file of keys when the gateway refused. When it is not known
// what the gateway did, the keys stay.
func (c *nodeEnrollCmd) undo(made string, err error) error {
	_, refused := errors.AsType[*admin.Problem](err)
	if refused || errors.Is(err, admin.ErrNotRunning) {
		if made != "" {
			err = errors.Join(err, os.Remove(made))
		}
		return err
	}
	hint := "it is not known whether the nodes were enrolled: `gateway node list` tells"
	if made != "" {
		hint += "; the keys that were made are in " + made
	}
	return withHint(err, hint)
}

type nodeListCmd struct {
	where
	JSON bool `help:"Print JSON."`
}

// Run lists the enrolled nodes.
func (c *nodeListCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	nodes, err := client.Nodes(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, nodes)
	}
	t := table(e.stdout, "IDENTITY", "STATE", "AUDIENCE", "GROUPS", "LIFETIME", "ENROLLED")
	for _, n := range nodes {
		var groups []string
		for _, s := range n.Scope {
			groups = append(groups, s.Group+"="+strings.Join(s.Roles, ","))
		}
		row(t, n.Identity, n.State, n.Audience, strings.Join(groups, " "), n.Lifetime, ago(n.Enrolled))
	}
	return t.Flush()
}

// nodesArg is what disable, enable and remove share.
type nodesArg struct {
	where
	Identities []string `arg:"" name:"identity" help:"Identities of nodes, as node list prints them."`
}

func (c *nodesArg) change(e *env, what, done string) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.ChangeNodes(e.ctx, what, c.Identities)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s %s\n", count(r.Changed, "node"), done)
	return err
}

type nodeDisableCmd struct{ nodesArg }

// Run shuts nodes out.
func (c *nodeDisableCmd) Run(e *env) error { return c.change(e, "disable", "disabled") }

type nodeEnableCmd struct{ nodesArg }

// Run lets nodes in again.
func (c *nodeEnableCmd) Run(e *env) error { return c.change(e, "enable", "enabled") }

type nodeRemoveCmd struct{ nodesArg }

// Run forgets nodes.
func (c *nodeRemoveCmd) Run(e *env) error { return c.change(e, "remove", "removed") }

// maxKeyFile bounds what enrolledCredential reads.
const maxKeyFile = 8 << 20

// enrolledCredential reads the key of a node from a file with the key alone, or
// from one that node enroll wrote or read.
func enrolledCredential(identity, file string) (node.Client, error) {
	if identity == "" || file == "" {
		return node.Client{}, errors.New("--identity and --key-file go together")
	}
	f, err := os.Open(file)
	if err != nil {
		return node.Client{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return node.Client{}, err
	}
	if m := st.Mode(); !m.IsRegular() || m.Perm()&0o077 != 0 {
		return node.Client{}, withHint(fmt.Errorf("%s has mode %v, and it holds keys", file, m.Perm()), "make it readable by its owner alone: chmod 600")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return node.Client{}, err
	}
	client := node.Client{Identity: identity}
	if key, err := hex.DecodeString(string(bytes.TrimSpace(b))); err == nil {
		client.Key = cose.NewSecret(key)
		return client, nil
	}
	nodes, faults := admin.ParseNodes(bytes.NewReader(b), true)
	if len(faults) > 0 {
		return client, fmt.Errorf("%s holds neither a hexadecimal key nor nodes with their keys", file)
	}
	for _, n := range nodes {
		if n.Identity == identity && !n.Generated {
			client.Key = n.Key
			return client, nil
		}
	}
	return client, fmt.Errorf("%s has no key for %q", file, identity)
}
