package argv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value is a flag or an argument.
type value struct {
	name, short, help, placeholder, env, preset, sep, xor, kind string
	enum                                                        []string
	arg, required, optional, negatable                          bool
	target                                                      reflect.Value
}

func newValue(f reflect.StructField, target reflect.Value) *value {
	has := func(key string) bool { _, ok := f.Tag.Lookup(key); return ok }
	v := &value{
		name: fieldName(f), short: f.Tag.Get("short"), help: f.Tag.Get("help"),
		placeholder: f.Tag.Get("placeholder"), env: f.Tag.Get("env"), preset: f.Tag.Get("default"),
		sep: f.Tag.Get("sep"), xor: f.Tag.Get("xor"), kind: f.Tag.Get("type"),
		arg: has("arg"), required: has("required"), optional: has("optional"), negatable: has("negatable"),
		target: target,
	}
	if e := f.Tag.Get("enum"); e != "" {
		v.enum = strings.Split(e, ",")
	}
	if v.sep == "" {
		v.sep = ","
	}
	if !slices.Contains([]string{"", "path", "existingfile"}, v.kind) {
		panic("argv: field " + f.Name + ": unknown type " + v.kind)
	}
	return v
}

func (v *value) isBool() bool  { return v.target.Kind() == reflect.Bool }
func (v *value) isSlice() bool { return v.target.Kind() == reflect.Slice }

// set takes the text of a flag; of a slice its elements, which go after those
// of the same flag before when more is true.
func (v *value) set(text string, more bool) error {
	if !v.isSlice() {
		return v.setOne(text)
	}
	if !more {
		v.target.SetZero()
	}
	elements := []string{text}
	if v.sep != "none" {
		elements = strings.Split(text, v.sep)
	}
	for _, e := range elements {
		if err := v.setOne(e); err != nil {
			return err
		}
	}
	return nil
}

// setOne takes the text of one value; it goes to the end of a slice.
func (v *value) setOne(text string) error {
	if v.enum != nil && !slices.Contains(v.enum, text) {
		return fmt.Errorf("must be one of %s, not %q", quoted(v.enum), text)
	}
	if v.kind != "" && text != "" {
		var err error
		if text, err = absolute(text); err != nil {
			return err
		}
		if v.kind == "existingfile" {
			if err := isFile(text); err != nil {
				return err
			}
		}
	}
	switch v.target.Kind() {
	case reflect.Slice:
		e := reflect.New(v.target.Type().Elem()).Elem()
		if err := scan(e, text); err != nil {
			return err
		}
		v.target.Set(reflect.Append(v.target, e))
		return nil
	case reflect.Pointer:
		e := reflect.New(v.target.Type().Elem())
		v.target.Set(e)
		return scan(e.Elem(), text)
	default:
		return scan(v.target, text)
	}
}

// scan reads text as what target is.
func scan(target reflect.Value, text string) error {
	if target.Type() == reflect.TypeFor[time.Duration]() {
		d, err := duration(text)
		if err != nil {
			return fmt.Errorf("must be a duration such as 90s, 24h or 30d, not %q", text)
		}
		target.SetInt(int64(d))
		return nil
	}
	switch target.Kind() {
	case reflect.String:
		target.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("must be true or false, not %q", text)
		}
		target.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(text, 10, target.Type().Bits())
		if err != nil {
			return fmt.Errorf("must be a whole number, not %q", text)
		}
		target.SetInt(i)
	case reflect.Uint64:
		u, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("must be a whole number from 0 on, not %q", text)
		}
		target.SetUint(u)
	default:
		panic("argv: no flag can be of type " + target.Type().String())
	}
	return nil
}

// absolute returns a path that does not depend on the working folder.
func absolute(path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		return filepath.Join(home, rest), nil
	}
	return filepath.Abs(path)
}

func isFile(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist", path)
	}
	if err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder, not a file", path)
	}
	return err
}

// duration reads what configuration files have, too: days before the rest, as in
// 30d and 1d12h.
func duration(text string) (time.Duration, error) {
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, err
	}
	d := time.Duration(n) * 24 * time.Hour
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err == nil && more < 0 {
		err = strconv.ErrSyntax
	}
	return d + more, err
}
