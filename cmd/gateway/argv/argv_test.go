package argv

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

type common struct {
	Config string `type:"path" env:"ARGV_TEST_CONFIG" placeholder:"FILE" help:"Configuration."`
}

type program struct {
	Group struct {
		Show struct {
			Name string `arg:"" help:"Name of the group."`
			common
			JSON bool `help:"Print JSON."`
		} `cmd:"" help:"Show a group."`
		Evict evict `cmd:"" help:"Remove members."`
		Move  struct {
			Move   bool   `xor:"kind" required:"" help:"Move."`
			Backup bool   `xor:"kind" required:"" help:"Back up."`
			Output string `short:"o" required:"" type:"path" placeholder:"FILE" help:"File."`
		} `cmd:"" help:"Move a group."`
	} `cmd:"" help:"Look at groups."`
	Send struct {
		To      string        `default:"${where}" help:"Where to."`
		Method  string        `default:"GET" enum:"GET,POST" help:"Method."`
		Wait    time.Duration `default:"2s" help:"How long."`
		Count   int           `default:"1" help:"Number."`
		Delta   uint64        `help:"Seconds."`
		Peer    *string       `placeholder:"HEX" help:"To whom."`
		Kind    []string      `help:"Kinds."`
		Scope   []string      `sep:"none" help:"Scopes."`
		Creds   bool          `default:"true" negatable:"" help:"Ask."`
		File    string        `type:"existingfile" help:"A file."`
		GpEnc   string        `help:"A name of three words is gp-enc."`
		HTTPUrl string        `help:"Capitals are one word."`
	} `cmd:"" help:"Send."`
}

type evict struct {
	Name  string   `arg:"" help:"Name of the group."`
	Nodes []string `arg:"" optional:"" name:"node" help:"Node names."`
}

func (e *evict) Validate() error {
	if len(e.Nodes) == 0 {
		return errors.New("name the members")
	}
	return nil
}

var parser = Parser{Name: "prog", About: "A program.\n\nOf two paragraphs.", Vars: map[string]string{"where": "224.0.1.187"}}

func TestParse(t *testing.T) {
	abs, err := filepath.Abs("x.yaml")
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	hex := "0a"
	send := func(change func(p *program)) program {
		var p program
		p.Send.To, p.Send.Method, p.Send.Wait, p.Send.Count, p.Send.Creds = "224.0.1.187", "GET", 2*time.Second, 1, true
		change(&p)
		return p
	}
	for _, test := range []struct {
		args string
		want program
	}{
		{"send", send(func(*program) {})},
		{"send --to=a=b --method POST --wait 1m --count -5 --delta 7 --peer 0a", send(func(p *program) {
			s := &p.Send
			s.To, s.Method, s.Wait, s.Count, s.Delta, s.Peer = "a=b", "POST", time.Minute, -5, 7, &hex
		})},
		{"send --wait 1d12h", send(func(p *program) { p.Send.Wait = 36 * time.Hour })},
		{"send --wait=30d", send(func(p *program) { p.Send.Wait = 720 * time.Hour })},
		{"send --kind a,b --kind c --scope a,b --scope=c", send(func(p *program) {
			p.Send.Kind, p.Send.Scope = []string{"a", "b", "c"}, []string{"a,b", "c"}
		})},
		{"send --no-creds --gp-enc x --http-url=y", send(func(p *program) { p.Send.Creds, p.Send.GpEnc, p.Send.HTTPUrl = false, "x", "y" })},
		{"send --creds=false --to=-x --gp-enc -", send(func(p *program) { p.Send.Creds, p.Send.To, p.Send.GpEnc = false, "-x", "-" })},
		{"group show pumps --json --config x.yaml", func() (p program) {
			p.Group.Show.Name, p.Group.Show.JSON, p.Group.Show.Config = "pumps", true, abs
			return p
		}()},
		{"group show --config=~/x --json=false -- --odd", func() (p program) {
			p.Group.Show.Name, p.Group.Show.Config = "--odd", filepath.Join(home, "x")
			return p
		}()},
		{"group evict pumps a b,c", func() (p program) {
			p.Group.Evict = evict{Name: "pumps", Nodes: []string{"a", "b,c"}}
			return p
		}()},
		{"group move --backup -o/tmp/x", func() (p program) {
			p.Group.Move.Backup, p.Group.Move.Output = true, "/tmp/x"
			return p
		}()},
		{"group move --move -o /tmp/x", func() (p program) {
			p.Group.Move.Move, p.Group.Move.Output = true, "/tmp/x"
			return p
		}()},
	} {
		var p program
		if _, err := parser.Parse(&p, strings.Fields(test.args)); err != nil {
			t.Errorf("%s: %v", test.args, err)
		} else if !reflect.DeepEqual(p, test.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.args, p, test.want)
		}
	}
}

// TestEnv holds the order: flag, environment, default.
func TestEnv(t *testing.T) {
	t.Setenv("ARGV_TEST_CONFIG", "/from/env")
	for args, want := range map[string]string{"group show x": "/from/env", "group show x --config /flag": "/flag"} {
		var p program
		if _, err := parser.Parse(&p, strings.Fields(args)); err != nil || p.Group.Show.Config != want {
			t.Errorf("%s: %q, %v, want %q", args, p.Group.Show.Config, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for args, want := range map[string]string{
		"":                                `expected one of "group", "send"`,
		"grup":                            `unexpected argument grup, did you mean "group"?`,
		"zzzzzzz":                         `unexpected argument zzzzzzz, expected one of "group", "send"`,
		"group":                           `expected one of "show", "evict", "move"`,
		"group show":                      `expected "<name>"`,
		"group show a b":                  "unexpected argument b",
		"group show a --jsno":             `unknown flag --jsno, did you mean "--json"?`,
		"group show a --zzzzzzzzz":        "unknown flag --zzzzzzzzz",
		"group show a --no-json":          "unknown flag --no-json",
		"group show a -=x":                "unknown flag -=",
		"group show a -x":                 "unknown flag -x",
		"--json group show a":             "unknown flag --json",
		"group evict pumps":               "group evict: name the members",
		"group move --move":               "missing flag: --output",
		"group move -o x":                 "missing flag: --move or --backup",
		"group move --move --backup -o x": "--move and --backup exclude each other",
		"send --to":                       "--to: a value is missing",
		"send --to --count":               "--to: a value is missing; one that begins with - is written --to=--count",
		"send --method PUT":               `--method: must be one of "GET", "POST", not "PUT"`,
		"send --wait 5":                   `--wait: must be a duration such as 90s, 24h or 30d, not "5"`,
		"send --wait d":                   `--wait: must be a duration`,
		"send --wait -1d":                 `--wait: must be a duration`,
		"send --wait 99999d":              `--wait: must be a duration`,
		"send --wait 1d-2h":               `--wait: must be a duration`,
		"send --count x":                  `--count: must be a whole number, not "x"`,
		"send --delta -1":                 `--delta: must be a whole number from 0 on, not "-1"`,
		"send --creds=perhaps":            `--creds: must be true or false, not "perhaps"`,
		"send --no-creds=x":               "unknown flag --no-creds",
		"send --file " + dir + "/x":       "--file: " + dir + "/x does not exist",
		"send --file " + dir:              "--file: " + dir + " is a folder, not a file",
	} {
		_, err := parser.Parse(&program{}, strings.Fields(args))
		if err == nil || !strings.HasPrefix(err.Error(), want) || errors.As(err, new(*HelpError)) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
}

func TestHelp(t *testing.T) {
	for args, want := range map[string]string{
		"--help": `Usage: prog <command>

A program.

Of two paragraphs.

Flags:
  -h, --help  Show this help.

Commands:
  group show   Show a group.
  group evict  Remove members.
  group move   Move a group.
  send         Send.

Run "prog <command> --help" for more on a command.
`,
		"group evict -h": `Usage: prog group evict <name> [<node> ...]

Remove members.

Arguments:
  <name>        Name of the group.
  [<node> ...]  Node names.

Flags:
  -h, --help  Show this help.
`,
		"group move --help --nonsense": `Usage: prog group move --output=FILE [flags]

Move a group.

Flags:
  -h, --help         Show this help.
      --move         Move.
      --backup       Back up.
  -o, --output=FILE  File.
`,
		"send --help": `Usage: prog send [flags]

Send.

Flags:
  -h, --help             Show this help.
      --to=STRING        Where to. Default: 224.0.1.187.
      --method=STRING    Method. Default: GET.
      --wait=DURATION    How long. Default: 2s.
      --count=NUMBER     Number. Default: 1.
      --delta=NUMBER     Seconds.
      --peer=HEX         To whom.
      --kind=KIND,...    Kinds.
      --scope=STRING     Scopes.
      --[no-]creds       Ask.
      --file=STRING      A file.
      --gp-enc=STRING    A name of three words is gp-enc.
      --http-url=STRING  Capitals are one word.
`,
	} {
		_, err := parser.Parse(&program{}, strings.Fields(args))
		var help *HelpError
		if !errors.As(err, &help) {
			t.Fatalf("%s: %v", args, err)
		}
		if help.Text != want {
			t.Errorf("%s:\n%s\nwant\n%s", args, help.Text, want)
		}
	}
}

// The word help is as good as the flag, before commands and in place of one.
func TestHelpWord(t *testing.T) {
	ask := func(args string) string {
		_, err := parser.Parse(&program{}, strings.Fields(args))
		help, ok := errors.AsType[*HelpError](err)
		if !ok {
			t.Fatalf("%s: %v", args, err)
		}
		return help.Text
	}
	for word, flag := range map[string]string{
		"help": "--help", "help group": "group --help", "group help": "group --help",
		"help group evict": "group evict --help", "group help evict": "group evict --help", "help send": "send --help",
	} {
		if got, want := ask(word), ask(flag); got != want {
			t.Errorf("%s:\n%s\nwant that of %s:\n%s", word, got, flag, want)
		}
	}
	if _, err := parser.Parse(&program{}, []string{"help", "grup"}); err == nil || !strings.Contains(err.Error(), `did you mean "group"?`) {
		t.Errorf("help of what is no command: %v", err)
	}
}

// A mistake says whose help to read.
func TestUsageError(t *testing.T) {
	for args, want := range map[string]string{
		"": "prog", "grup": "prog", "group": "prog group", "group shw": "prog group", "group show": "prog group show", "send --to": "prog send",
	} {
		_, err := parser.Parse(&program{}, strings.Fields(args))
		if usage, ok := errors.AsType[*UsageError](err); !ok || usage.Command != want {
			t.Errorf("%q: %v, want the help of %s", args, err, want)
		}
	}
}

func TestCommands(t *testing.T) {
	if got := parser.Commands(&program{}); len(got) != 4 {
		t.Errorf("%d commands, want 4", len(got))
	}
}
