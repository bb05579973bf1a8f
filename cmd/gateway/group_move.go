package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/seed4911071e/groupgate/admin"
	"github.com/seed4911071e/groupgate/durable"
)

// Bounds of the files that the commands read.
const (
	maxImportFile = 64 << 20
	maxPhraseFile = 1024
)

type groupExportCmd struct {
	where
	Name           string `arg:"" help:"Name of the group."`
	Move           bool   `xor:"kind" required:"" help:"The group ends here: another gateway goes on with it. To be imported once."`
	Backup         bool   `xor:"kind" required:"" help:"The group stays: the file is for when this gateway is lost."`
	Output         string `short:"o" required:"" type:"path" placeholder:"FILE" help:"File to write; it must not exist."`
	PassphraseFile string `type:"path" placeholder:"FILE" help:"Passphrase that opens the file, 12 bytes at least. Without one: the gateway's sealing key."`
}

// Run exports a group.
func (c *groupExportCmd) Run(e *env) (err error) {
	phrase, err := readPhrase(c.PassphraseFile)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	// The file is there before anything is moved.
	f, err := os.OpenFile(c.Output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(c.Output)
		}
	}()
	r, err := client.Export(e.ctx, c.Name, admin.ExportAsk{Move: c.Move, Passphrase: phrase})
	if err != nil {
		return err
	}
	_, err = f.Write(r.File)
	if err = errors.Join(err, f.Sync(), f.Close(), durable.SyncDir(filepath.Dir(c.Output))); err != nil {
		if c.Move {
			return withHint(err, "the group is moved: run the same command again, it gives the same file")
		}
		return err
	}
	what := "is saved"
	if c.Move {
		what = "is over here, and goes on where the file is imported"
	}
	_, printErr := fmt.Fprintf(e.stdout, "group %s, version %d, %s: %s\n", r.Group, r.Version, what, c.Output)
	if printErr != nil {
		_, _ = fmt.Fprintln(e.stderr, printErr)
	}
	return nil
}

type groupImportCmd struct {
	where
	File           string `arg:"" optional:"" type:"path" help:"File of a group export."`
	Fixture        string `type:"path" placeholder:"FILE.json" help:"Make a new group from plain JSON with its keys: for tests only."`
	PassphraseFile string `type:"path" placeholder:"FILE" help:"Passphrase that the file was exported with."`
	JSON           bool   `help:"Print JSON."`
}

// Validate wants one file; argv calls it, so that a lack is a usage error.
func (c *groupImportCmd) Validate() error {
	if (c.File == "") == (c.Fixture == "") || c.Fixture != "" && c.PassphraseFile != "" {
		return errors.New("name the file to import, or a fixture by --fixture")
	}
	return nil
}

// Run imports a group.
func (c *groupImportCmd) Run(e *env) error {
	phrase, err := readPhrase(c.PassphraseFile)
	if err != nil {
		return err
	}
	ask := admin.ImportAsk{Passphrase: phrase}
	if c.Fixture != "" {
		text, err := readBounded(c.Fixture, maxImportFile)
		if err != nil {
			return err
		}
		if !json.Valid(text) {
			return fmt.Errorf("%s is not JSON", c.Fixture)
		}
		ask.Fixture = text
	} else if ask.File, err = readBounded(c.File, maxImportFile); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	r, err := client.Import(e.ctx, ask)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(e.stdout, r)
	}
	_, err = fmt.Fprintf(e.stdout, "group %s is here at version %d\n", r.Group, r.Version)
	return err
}

// readPhrase reads a passphrase; a line end at its end is none of it.
func readPhrase(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	b, err := readBounded(name, maxPhraseFile)
	if err != nil {
		return "", err
	}
	if b = bytes.TrimRight(b, "\r\n"); len(b) == 0 {
		return "", fmt.Errorf("%s holds no passphrase", name)
	}
	return string(b), nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}
