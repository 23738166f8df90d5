package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// app is one run of the command: its streams, its environment and the flags that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string

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

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused.
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
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoint, "endpoint", "", "where hvd listens: unix:PATH or http://HOST:PORT (default $HV_ENDPOINT, else the system daemon's socket, else the user's)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with the bearer token for an http endpoint (default: the token in $HV_TOKEN)")
	flags.StringVarP(&a.output, "output", "o", "table", "output form: table or json")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef("output form %q: use table or json", a.output)
		}
		return nil
	}
	group(root)
	root.AddCommand(newStatus(a), newVolume(a), newSnapshot(a), newStore(a), newToken(a), newSupport(a), newVersion(a))
	return root
}

// group makes a command that only holds others: alone it shows its help, with an unknown word it is wrong usage.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return usagef("unknown command %q for %q", args[0], c.CommandPath())
	}
	return c
}

// exactly wants that many arguments; names are for the message.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usagef("%s needs %s, got %d arguments", c.CommandPath(), strings.Join(names, " and "), len(args))
		}
		return nil
	}
}

// connect returns a client of the endpoint that the user chose. Nothing is sent yet.
func (a *app) connect() (*client.Client, error) {
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	return client.New(a.chooseEndpoint(), token)
}

func (a *app) chooseEndpoint() string {
	if a.endpoint != "" {
		return a.endpoint
	}
	if endpoint := a.getenv("HV_ENDPOINT"); endpoint != "" {
		return endpoint
	}
	system := filepath.Join(config.SystemDataDir, "hvd.sock")
	if _, err := os.Stat(system); err == nil {
		return "unix:" + system
	}
	if dir := config.UserDataDir(); dir != "" {
		if user := filepath.Join(dir, "hvd.sock"); os.Geteuid() != 0 || exists(user) {
			return "unix:" + user
		}
	}
	return "unix:" + system
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
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

// terminal reports whether a stream is one, and its width in columns.
func terminal(stream any) (width int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		width = 80
	}
	return width, true
}

// note tells something on the error stream.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// usageError is a command line that makes no sense.
type usageError struct{ error }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errRefused means that the user, or the lack of one, did not confirm.
var errRefused = errors.New("refused")
