package argv

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// Layout of help, in columns.
const (
	helpWidth  = 80
	leftColumn = 30 // longest name that has its text beside it
)

// usage is the help of a command, or of the program.
func (p *Parser) usage(n *node) string {
	var b strings.Builder
	b.WriteString("Usage: " + strings.TrimSpace(p.Name+" "+n.path))
	if len(n.cmds) > 0 {
		b.WriteString(" <command>")
	}
	for _, a := range n.args {
		b.WriteString(" " + a.shape())
	}
	for _, f := range n.flags {
		if f.required && f.xor == "" {
			b.WriteString(" --" + f.name + "=" + f.valueName())
		}
	}
	if len(n.flags) > 0 {
		b.WriteString(" [flags]")
	}
	b.WriteString("\n")
	for paragraph := range strings.SplitSeq(n.help, "\n\n") {
		b.WriteString("\n" + wrap(paragraph, 0))
	}

	var args, cmds [][2]string
	for _, a := range n.args {
		args = append(args, [2]string{a.shape(), a.help})
	}
	section(&b, "Arguments", args)
	flags := [][2]string{{"-h, --help", "Show this help."}}
	for _, f := range n.flags {
		flags = append(flags, [2]string{f.title(), p.describe(f)})
	}
	section(&b, "Flags", flags)
	var walk func(*node)
	walk = func(n *node) {
		for _, c := range n.cmds {
			if len(c.cmds) == 0 {
				cmds = append(cmds, [2]string{c.path, c.help})
			}
			walk(c)
		}
	}
	walk(n)
	section(&b, "Commands", cmds)
	if len(cmds) > 0 {
		fmt.Fprintf(&b, "\nRun \"%s <command> --help\" for more on a command.\n", strings.TrimSpace(p.Name+" "+n.path))
	}
	return b.String()
}

// section writes names with their texts in a column beside them.
func section(b *strings.Builder, title string, rows [][2]string) {
	if len(rows) == 0 {
		return
	}
	column := 0
	for _, r := range rows {
		if w := utf8.RuneCountInString(r[0]); w <= leftColumn {
			column = max(column, w+4)
		}
	}
	b.WriteString("\n" + title + ":\n")
	for _, r := range rows {
		gap := column - utf8.RuneCountInString(r[0]) - 2
		if gap < 2 {
			b.WriteString("  " + r[0] + "\n" + strings.Repeat(" ", column) + wrap(r[1], column))
			continue
		}
		b.WriteString("  " + r[0] + strings.Repeat(" ", gap) + wrap(r[1], column))
	}
}

// wrap breaks a text into lines, all but the first indented.
func wrap(text string, indent int) string {
	var b strings.Builder
	at := indent
	for i, word := range strings.Fields(text) {
		w := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+w > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += w
	}
	return b.String() + "\n"
}

// shape is an argument as help shows it.
func (v *value) shape() string {
	s := "<" + v.name + ">"
	if v.isSlice() {
		s += " ..."
	}
	if v.optional {
		s = "[" + s + "]"
	}
	return s
}

// title is a flag as help shows it.
func (v *value) title() string {
	s := "    --" + v.name
	switch {
	case v.negatable:
		s = "    --[no-]" + v.name
	case v.short != "":
		s = "-" + v.short + ", --" + v.name
	}
	if !v.isBool() {
		s += "=" + v.valueName()
	}
	return s
}

// valueName stands for the value of a flag.
func (v *value) valueName() string {
	switch t := v.target.Type(); {
	case v.placeholder != "":
		return v.placeholder
	case v.isSlice() && v.sep == ",":
		return strings.ToUpper(v.name) + ",..."
	case t == reflect.TypeFor[time.Duration]():
		return "DURATION"
	case t.Kind() == reflect.String || t.Kind() == reflect.Pointer || v.isSlice():
		return "STRING"
	default:
		return "NUMBER"
	}
}

// describe is the text of a flag, with its default and where else it comes from.
func (p *Parser) describe(v *value) string {
	s := v.help
	if preset := p.preset(v); preset != "" && !v.isBool() {
		s += " Default: " + preset + "."
	}
	if v.env != "" {
		s += " ($" + v.env + ")"
	}
	return s
}
