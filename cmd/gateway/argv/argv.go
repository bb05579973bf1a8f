// Package argv reads a command line into a struct whose tags describe it.
//
// A field with the tag cmd is a command, and what its struct holds are that
// command's own commands, or its flags and arguments. Embedded structs count as
// if their fields stood there. The tags:
//
//	cmd          a command; its struct has further commands, or flags and arguments
//	arg          an argument; of a slice all that follow
//	name         name, where the field's own in kebab-case does not fit
//	short        letter of the flag
//	help         what it is for
//	placeholder  what stands for the value in help
//	default      value when none is given; ${NAME} is replaced from Parser.Vars
//	env          environment variable that gives the value when no flag does
//	enum         the values allowed, separated by commas
//	sep          what separates the elements of a slice in one flag, a comma without it; none: nothing does
//	required     must be given
//	optional     an argument that may be left out
//	xor          flags with the same word exclude each other; all required: one must be given
//	negatable    a flag --no-NAME sets it to false
//	type         path: made absolute, ~ is the home folder; existingfile: such a path of a file
//
// It exists because of what it does not do: it never looks a method up by a
// name. A program that contains one reflect.Value.Method or MethodByName whose
// name is not constant keeps every exported method of every type, for the linker
// cannot tell which of them is called: 3 MB of this one.
package argv

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/seed4911071e/groupgate/spell"
)

// Parser describes a program.
type Parser struct {
	Name  string            // of the program
	About string            // shown by --help, paragraphs separated by empty lines
	Vars  map[string]string // for ${NAME} in defaults
}

// HelpError says that help was asked for; its message is the help.
type HelpError struct{ Text string }

func (e *HelpError) Error() string { return e.Text }

// UsageError is a wrong command line. Command is how far it was understood,
// "gateway group": its help is where to look.
type UsageError struct {
	Command string
	err     error
}

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

// node is a command, or the program.
type node struct {
	path   string // "group show"
	help   string
	target reflect.Value // its struct
	cmds   []*node
	flags  []*value
	args   []*value
}

func (n *node) name() string { return n.path[strings.LastIndexByte(n.path, ' ')+1:] }

// Parse reads args into the struct that root points to, and returns a pointer
// to the struct of the command that was named. When that has a method Validate,
// it is asked, too. Every error is a *UsageError or a *HelpError: asked for by
// --help, or by the word help before a command or in its place. A wrong tag panics.
func (p *Parser) Parse(root any, args []string) (any, error) {
	n := p.tree(root)
	command, err := p.parse(&n, args)
	if _, help := errors.AsType[*HelpError](err); err != nil && !help {
		err = &UsageError{Command: strings.TrimSpace(p.Name + " " + n.path), err: err}
	}
	return command, err
}

// parse leaves in at the command that was understood.
func (p *Parser) parse(at **node, args []string) (any, error) {
	n := *at
	given := map[*value]bool{}
	var plain []string
	help := false
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			plain = append(plain, args[i+1:]...)
			i = len(args)
		case arg == "-h" || arg == "--help":
			return nil, &HelpError{Text: p.usage(n)}
		case len(arg) > 1 && arg[0] == '-':
			rest, err := n.readFlag(arg, args[i+1:], given)
			if err != nil {
				return nil, err
			}
			i = len(args) - len(rest) - 1
		case len(n.cmds) > 0:
			which := slices.IndexFunc(n.cmds, func(c *node) bool { return c.name() == arg })
			switch {
			case which >= 0:
				n = n.cmds[which]
				*at = n
			case arg == "help" && !help:
				help = true
			default:
				return nil, fmt.Errorf("unexpected argument %s%s", arg, n.suggestCommand(arg))
			}
		default:
			plain = append(plain, arg)
		}
	}
	if help {
		return nil, &HelpError{Text: p.usage(n)}
	}
	if len(n.cmds) > 0 {
		return nil, fmt.Errorf("expected one of %s", quoted(n.names()))
	}
	return p.finish(n, plain, given)
}

// Commands returns pointers to the structs of all commands that can be run.
func (p *Parser) Commands(root any) []any {
	var all []any
	var walk func(*node)
	walk = func(n *node) {
		if len(n.cmds) == 0 {
			all = append(all, n.target.Addr().Interface())
		}
		for _, c := range n.cmds {
			walk(c)
		}
	}
	walk(p.tree(root))
	return all
}

func (p *Parser) tree(root any) *node {
	n := &node{help: p.About, target: reflect.ValueOf(root).Elem()}
	n.build(n.target)
	return n
}

// build adds what the fields of a struct describe.
func (n *node) build(s reflect.Value) {
	for i := range s.NumField() {
		f, v := s.Type().Field(i), s.Field(i)
		_, isCommand := f.Tag.Lookup("cmd")
		switch {
		case isCommand:
			c := &node{path: strings.TrimSpace(n.path + " " + fieldName(f)), help: f.Tag.Get("help"), target: v}
			c.build(v)
			n.cmds = append(n.cmds, c)
		case f.Anonymous:
			n.build(v)
		case f.IsExported():
			x := newValue(f, v)
			if x.arg {
				n.args = append(n.args, x)
			} else {
				n.flags = append(n.flags, x)
			}
		}
	}
	if len(n.cmds) > 0 && len(n.flags)+len(n.args) > 0 {
		panic("argv: " + n.path + " has both commands and flags")
	}
}

// fieldName is a field's name on the command line: that of its tag, or its own
// in kebab-case, a run of capitals being one word.
func fieldName(f reflect.StructField) string {
	if name := f.Tag.Get("name"); name != "" {
		return name
	}
	var b strings.Builder
	runes := []rune(f.Name)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) &&
			(unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// readFlag reads the flag arg, and its value from what follows when it needs
// one; it returns what is left.
func (n *node) readFlag(arg string, follow []string, given map[*value]bool) ([]string, error) {
	name, text, hasText := strings.Cut(arg, "=")
	long := strings.HasPrefix(arg, "--")
	if !long && len(arg) > 2 { // -oFILE, -o=FILE
		name, text, hasText = arg[:2], strings.TrimPrefix(arg[2:], "="), true
	}
	var v *value
	for _, f := range n.flags {
		switch {
		case name == "--"+f.name, f.short != "" && name == "-"+f.short:
			v = f
		case f.negatable && name == "--no-"+f.name && !hasText:
			v, text, hasText = f, "false", true
		}
	}
	if v == nil {
		return nil, fmt.Errorf("unknown flag %s%s", name, n.suggestFlag(name))
	}
	if !hasText {
		switch {
		case v.isBool():
			text = "true"
		case len(follow) == 0:
			return nil, fmt.Errorf("--%s: a value is missing", v.name)
		case looksLikeFlag(follow[0]):
			return nil, fmt.Errorf("--%s: a value is missing; one that begins with - is written --%s=%s", v.name, v.name, follow[0])
		default:
			text, follow = follow[0], follow[1:]
		}
	}
	if err := v.set(text, given[v]); err != nil {
		return nil, fmt.Errorf("--%s: %w", v.name, err)
	}
	given[v] = true
	return follow, nil
}

// looksLikeFlag reports whether an argument is no value, by its look: -5 is one.
func looksLikeFlag(arg string) bool {
	return len(arg) > 1 && arg[0] == '-' && (arg[1] < '0' || arg[1] > '9')
}

// finish gives the arguments and all that was not given their values, and
// checks that nothing is missing.
func (p *Parser) finish(n *node, plain []string, given map[*value]bool) (any, error) {
	for _, a := range n.args {
		for len(plain) > 0 && (!given[a] || a.isSlice()) {
			if err := a.setOne(plain[0]); err != nil {
				return nil, fmt.Errorf("<%s>: %w", a.name, err)
			}
			plain, given[a] = plain[1:], true
		}
		if !given[a] && !a.optional {
			return nil, fmt.Errorf("expected %q", a.shape())
		}
	}
	if len(plain) > 0 {
		return nil, fmt.Errorf("unexpected argument %s", plain[0])
	}
	for _, f := range n.flags {
		if given[f] {
			continue
		}
		text, from := p.preset(f), "default"
		if env := os.Getenv(f.env); f.env != "" && env != "" {
			text, from = env, "$"+f.env
			given[f] = true
		}
		if text == "" {
			continue
		}
		if err := f.set(text, false); err != nil {
			return nil, fmt.Errorf("--%s: %s: %w", f.name, from, err)
		}
	}
	if err := n.checkFlags(given); err != nil {
		return nil, err
	}
	command := n.target.Addr().Interface()
	if v, ok := command.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", n.path, err)
		}
	}
	return command, nil
}

// preset is the default of a flag.
func (p *Parser) preset(f *value) string {
	text := f.preset
	for name, to := range p.Vars {
		text = strings.ReplaceAll(text, "${"+name+"}", to)
	}
	return text
}

// checkFlags holds required and xor.
func (n *node) checkFlags(given map[*value]bool) error {
	for i, f := range n.flags {
		choice := []string{"--" + f.name}
		missing := f.required && !given[f]
		for j, g := range n.flags {
			if f.xor == "" || f.xor != g.xor || i == j {
				continue
			}
			if given[f] && given[g] {
				return fmt.Errorf("--%s and --%s exclude each other", f.name, g.name)
			}
			missing = missing && !given[g]
			choice = append(choice, "--"+g.name)
		}
		if missing {
			return errors.New("missing flag: " + strings.Join(choice, " or "))
		}
	}
	return nil
}

func (n *node) names() []string {
	var names []string
	for _, c := range n.cmds {
		names = append(names, c.name())
	}
	return names
}

// suggestCommand says what a misspelled command may have been.
func (n *node) suggestCommand(word string) string {
	names := n.names()
	if s := spell.Suggest(word, names); s != "" {
		return fmt.Sprintf(", did you mean %q?", s)
	}
	return ", expected one of " + quoted(names)
}

// suggestFlag says what a misspelled flag may have been.
func (n *node) suggestFlag(word string) string {
	names := []string{"help"}
	for _, f := range n.flags {
		names = append(names, f.name)
	}
	if s := spell.Suggest(strings.TrimLeft(word, "-"), names); s != "" {
		return fmt.Sprintf(", did you mean %q?", "--"+s)
	}
	return ""
}

func quoted(words []string) string {
	return `"` + strings.Join(words, `", "`) + `"`
}
