package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/seed4911071e/groupgate/spell"
)

// decoder walks the node tree of a YAML document into a struct. It works on
// nodes, not on decoded values, to know the line of every key and the text of
// every scalar as it was written: the key 0011 is not the number 9.
type decoder struct {
	*faults
	lines map[string]int
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	secretType   = reflect.TypeFor[Secret]()
)

// decode fills *out, a pointer, from n. What n lacks keeps its value.
func (d *decoder) decode(n *yaml.Node, key string, out any) {
	d.value(n, key, reflect.ValueOf(out).Elem())
}

func (d *decoder) value(n *yaml.Node, key string, out reflect.Value) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.addLine(n.Line, key, "anchors and aliases are not supported: write the value out")
		return
	}
	t := out.Type()
	isScalar := t == secretType || t.Kind() != reflect.Struct && t.Kind() != reflect.Slice
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		// `groups:` with every entry commented out is an empty list, but
		// `coap:` may mean "none" as well as "the default".
		if isScalar {
			d.addLine(n.Line, key, `has no value: remove the key for the default, or write "" for none`)
		}
	case isScalar && n.Kind != yaml.ScalarNode:
		d.addLine(n.Line, key, "must be a single value, not a %s", kindName(n))
	case isScalar:
		d.scalar(n, key, out)
	case t.Kind() == reflect.Slice && n.Kind != yaml.SequenceNode:
		d.addLine(n.Line, key, "must be a list, not a %s", kindName(n))
	case t.Kind() == reflect.Slice:
		d.list(n, key, out)
	case n.Kind != yaml.MappingNode && key == "":
		d.addLine(n.Line, key, "the file must hold `key: value` pairs, not a %s", kindName(n))
	case n.Kind != yaml.MappingNode:
		d.addLine(n.Line, key, "must be a section of `key: value` pairs, not a %s", kindName(n))
	default:
		d.section(n, key, out)
	}
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "section"
	case yaml.SequenceNode:
		return "list"
	default:
		return "single value"
	}
}

func (d *decoder) list(n *yaml.Node, key string, out reflect.Value) {
	list := reflect.MakeSlice(out.Type(), 0, len(n.Content))
	for i, child := range n.Content {
		item := reflect.New(out.Type().Elem())
		if v, ok := item.Interface().(interface{ setDefaults() }); ok {
			v.setDefaults()
		}
		k := fmt.Sprintf("%s[%d]", key, i)
		d.lines[k] = child.Line
		d.value(child, k, item.Elem())
		list = reflect.Append(list, item.Elem())
	}
	if list.Len() == 0 {
		list = reflect.Zero(out.Type()) // `[]` is the default of every list
	}
	out.Set(list)
}

func (d *decoder) section(n *yaml.Node, key string, out reflect.Value) {
	fields := map[string][]int{}
	var names []string
	for _, f := range reflect.VisibleFields(out.Type()) { // those of embedded structs as well
		if name := f.Tag.Get("yaml"); name != "" && name != "-" {
			fields[name] = f.Index
			names = append(names, name)
		}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.addLine(k.Line, key, "a key must be a single word")
			continue
		}
		path := k.Value
		if key != "" {
			path = key + "." + k.Value
		}
		if first, ok := seen[k.Value]; ok {
			d.addLine(k.Line, path, "given twice, first on line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		field, ok := fields[k.Value]
		if !ok {
			d.unknown(k, path, names)
			continue
		}
		d.lines[path] = k.Line
		d.value(v, path, out.FieldByIndex(field))
	}
}

func (d *decoder) unknown(k *yaml.Node, path string, names []string) {
	switch {
	case k.Value == "mode" || k.Value == "upstream": // as earlier designs had it
		d.addLine(k.Line, path, "unknown key: `gm:` says where the Group Manager is")
	default:
		msg := "unknown key"
		if s := spell.Suggest(k.Value, names); s != "" {
			msg += fmt.Sprintf(", did you mean %q?", s)
		} else {
			msg += "; known here: " + strings.Join(names, ", ")
		}
		d.addLine(k.Line, path, "%s", msg)
	}
}

func (d *decoder) scalar(n *yaml.Node, key string, out reflect.Value) {
	if err := setScalar(n.Value, out); err != nil {
		d.addLine(n.Line, key, "%s", err)
	}
}

// setScalar parses the text of a scalar. Its errors never quote a secret.
func setScalar(text string, out reflect.Value) error {
	switch out.Type() {
	case durationType:
		v, err := parseDuration(text)
		if err != nil {
			return err
		}
		out.SetInt(int64(v))
		return nil
	case secretType:
		v, err := parseHex(text)
		if err != nil {
			return err
		}
		out.Set(reflect.ValueOf(newSecret(v)))
		return nil
	}
	switch out.Kind() {
	case reflect.String:
		out.SetString(text)
	case reflect.Bool:
		switch text {
		case "true", "false":
			out.SetBool(text == "true")
		default:
			return fmt.Errorf("must be true or false, not %q", text)
		}
	case reflect.Int:
		v, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return fmt.Errorf("must be a whole number, not %q", text)
		}
		out.SetInt(v)
	case reflect.Uint64:
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return fmt.Errorf("must be a whole number, not negative, not %q", text)
		}
		out.SetUint(v)
	case reflect.Float64:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("must be a number, not %q", text)
		}
		out.SetFloat(v)
	default:
		panic("config: no parser for " + out.Type().String())
	}
	return nil
}

// days is a leading number of days, which Go's durations lack: 30d, 1d12h.
var days = regexp.MustCompile(`^(\d{1,5})d`)

func parseDuration(text string) (time.Duration, error) {
	rest, sum := text, time.Duration(0)
	if m := days.FindStringSubmatch(text); m != nil {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, err
		}
		sum = time.Duration(n) * 24 * time.Hour
		rest = text[len(m[0]):]
	}
	if rest != "" || text == "" {
		v, err := time.ParseDuration(rest)
		if err != nil || v < 0 {
			return 0, fmt.Errorf("must be a duration such as 2s, 24h or 30d, not %q", text)
		}
		sum += v
	}
	if sum < 0 {
		return 0, fmt.Errorf("duration %q is too long", text)
	}
	return sum, nil
}

func parseHex(text string) ([]byte, error) {
	v, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("must be hexadecimal digits, an even number of them")
	}
	return v, nil
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntaxFault takes the line out of an error of the YAML parser.
func syntaxFault(err error) (line int, msg string) {
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = "not YAML: " + m[2]
		if strings.Contains(msg, "cannot start any token") {
			msg += "; is it a tab? YAML is indented by spaces"
		}
		return line, msg
	}
	return 0, "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
}
