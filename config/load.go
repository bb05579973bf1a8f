package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds the configuration file. 10,000 groups spelled out fit.
const maxFile = 8 << 20

// Load reads and validates a configuration file. Nothing else is read, nothing
// is created. All faults are reported at once, as a [*FaultError].
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("config: %s is larger than %d bytes", path, maxFile)
	}
	c, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if info.Mode().Perm()&0o044 != 0 && c.hasInlineSecrets() {
		c.warn("%s holds secrets and others can read it: chmod 600 %s, or name key files", path, filepath.Base(path))
	}
	return c, nil
}

// Parse reads and validates the text of a configuration file; name stands in
// faults.
func Parse(name string, data []byte) (*Config, error) {
	c := Default()
	c.file = name
	d := &decoder{lines: map[string]int{}}
	c.lines = d.lines
	d.faults = newFaults(name, d.lines)

	root, err := parseDocument(data)
	if err != nil {
		line, msg := syntaxFault(err)
		d.faults.addLine(line, "", "%s", msg)
		return nil, d.faults.err()
	}
	if root != nil {
		d.decode(root, "", c)
	}
	c.hideStorePassword()
	c.validate(d.faults)
	if err := d.faults.err(); err != nil {
		return nil, err
	}
	return c, nil
}

var errDocuments = errors.New("more than one YAML document")

// parseDocument returns the root of the only document in data, nil when there
// is none.
func parseDocument(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := dec.Decode(&second); err == nil {
		return nil, errDocuments
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, nil
	}
	return doc.Content[0], nil
}
