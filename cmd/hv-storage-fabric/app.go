package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/helptext"
)

// app is one run of the command: its streams, its environment and the flags that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	environ  []string // all of the environment, to find what is misspelled

	endpoint  string
	tokenFile string
	output    string
}

func newApp(in io.Reader, out, err io.Writer, getenv func(string) string) *app {
	return &app{in: in, out: out, err: err, getenv: getenv}
}

// run executes the arguments and returns the exit code. Errors are one line on the error stream.
func run(ctx context.Context, a *app, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%s: interrupted", command.CommandPath())
	}
	code, hint := judge(command, err)
	if ctx.Err() != nil {
		code = console.InterruptCode(ctx)
	}
	line := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if hint != "" {
		line += "; " + hint
	}
	fmt.Fprintf(a.err, "hv-storage-fabric: %s\n", strings.TrimPrefix(line, "hv-storage-fabric "))
	return code
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "hv-storage-fabric",
		Short: "Control the volumes, snapshots and tokens of a running hvd",
		Long: `hv-storage-fabric controls the storage of Hyper-NixOS: it asks the daemon hvd for what you want.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 6 hvd cannot be reached, 130 interrupted.
With -o json one JSON document is printed on standard output and nothing else; progress and messages go to standard error.`,
		Example: `  hv-storage-fabric status --wait 10s
  hv-storage-fabric volume create web1 --size 20GiB
  hv-storage-fabric volume attach web1`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(console.FlagError)
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", "", "where hvd listens: unix:PATH or http://HOST:PORT (default $HV_ENDPOINT, else the system daemon's socket, else the user's)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with the bearer token for an http endpoint (default: the token in $HV_TOKEN)")
	flags.StringVarP(&a.output, "output", "o", "table", "output form: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef("output form %q: use table or json", a.output)
		}
		return nil
	}
	versionCommand := newVersion(a)
	console.VersionFlag(group(root), versionCommand)
	root.AddCommand(newStatus(a), newVolume(a), newSnapshot(a), newStore(a), newDisk(a), newToken(a), newSupport(a), versionCommand)
	helptext.Fit(root)
	return root
}

// What the commands share with other programs.
var (
	group   = console.Group
	exactly = console.Exactly
	usagef  = console.Usagef
)

type usageError = console.UsageError

// counted is a number and its noun.
func counted[N int | uint64](n N, noun string) string { return console.Counted(n, noun) }

// connect returns a client of the endpoint that the user chose. Nothing is sent yet.
func (a *app) connect() (*client.Client, error) {
	a.tellMisspelled()
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	return client.New(config.Endpoint(a.endpoint, a.getenv), token)
}

// tellMisspelled names, once, the variables that would have been this program's if they were spelled right.
func (a *app) tellMisspelled() {
	for _, m := range config.Misspelled(a.environ) {
		if m.Meant == "HV_ENDPOINT" || m.Meant == "HV_TOKEN" {
			a.note("note: the environment variable %s has no effect; did you mean %s?", m.Name, m.Meant)
		}
	}
	a.environ = nil
}

// token reads the bearer token, which is needed for http endpoints only.
func (a *app) token() (string, error) {
	if a.tokenFile == "" {
		return a.getenv("HV_TOKEN"), nil
	}
	f, err := os.Open(a.tokenFile)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fmt.Errorf("read token file %s: %w", a.tokenFile, err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", usagef("token file %s is empty", a.tokenFile)
	}
	return token, nil
}

// note tells something on the error stream.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// errRefused means that the user, or the lack of one, did not confirm.
var errRefused = errors.New("refused")
