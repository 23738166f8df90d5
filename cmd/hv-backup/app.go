package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/helptext"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// Exit codes are part of the interface.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitDamaged     = 5
	exitUnreachable = 6 // hvd or the storage does not answer
	exitNoAnswer    = 7 // a guest that was booted to test a backup
)

// leastLimit is the smallest --limit-rate, bytes a second.
const leastLimit units.Size = 16 << 10

// app is one run of the command: its streams, its environment and the flags that all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string

	repo         string
	passwordFile string
	identities   []string
	endpoint     string
	output       string
	progress     bool
	limit        units.Size      // bytes a second; 0: none
	tls          mutualtls.Files // for hvd://

	told *toldAgain // shared with its copies
}

func newApp(in io.Reader, out, err io.Writer, getenv func(string) string) *app {
	return &app{in: in, out: out, err: err, getenv: getenv, told: &toldAgain{}}
}

// run executes the arguments and returns the exit code. Errors are one line on the error stream.
func run(ctx context.Context, a *app, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	serves := command.Name() == "attach" || command.Name() == "mount"
	interrupted := ctx.Err() != nil && (!serves || errors.Is(err, context.Canceled)) // those end well by an interrupt: what goes wrong then is said
	if interrupted {
		err = fmt.Errorf("%s: interrupted", command.CommandPath())
		if command.Name() == "run" || command.Name() == "copy" {
			err = fmt.Errorf("%w; what is stored already need not be stored again", err)
		}
		if flag := command.Flags().Lookup("live"); flag != nil && flag.Changed {
			err = fmt.Errorf("%w; what has come is kept, reads of the rest wait, and the same command goes on", err)
		}
	}
	code, hint := judge(command, err)
	if interrupted {
		code = console.InterruptCode(ctx)
	}
	line := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if hint != "" {
		line += "; " + hint
	}
	a.note("hv-backup: %s", strings.TrimPrefix(line, "hv-backup "))
	return code
}

// judge returns the exit code of an error, and what to do next.
func judge(command *cobra.Command, err error) (code int, hint string) {
	var usage *console.UsageError
	var said *client.Error
	var damaged *backup.DamagedError
	var step *stepError
	var unreachable *client.UnreachableError
	var otherName x509.HostnameError
	var notSigned x509.UnknownAuthorityError
	switch {
	case errors.As(err, &damaged):
		if len(damaged.Unreadable) > 0 {
			return exitDamaged, "`hv-backup forget NAME`, with the whole name, removes one whose manifest cannot be read"
		}
		return exitDamaged, "forget them, or `hv-backup prune --despite-damage` keeps what is left of them"
	case errors.As(err, &usage), errors.Is(err, block.ErrInvalid), strings.HasPrefix(err.Error(), "required flag"), strings.HasPrefix(err.Error(), "unknown "):
		return exitUsage, "see `" + command.CommandPath() + " --help`"
	case errors.As(err, &said):
		return saidCode(said.Code), saidHint(command, said.Code)
	case errors.As(err, &step):
		return step.code, ""
	case errors.As(err, &unreachable):
		if errors.Is(err, fs.ErrPermission) {
			return exitRefused, "its socket is for root and the user that hvd runs as"
		}
		return exitUnreachable, "start hvd, or say where it is with --endpoint or HV_ENDPOINT"
	case errors.As(err, &otherName):
		return exitFailed, "name the host in --repo as its certificate does"
	case errors.As(err, &notSigned):
		return exitFailed, "--tls-ca names the authorities that are believed for hvd://, the system's for object storage"
	case errors.Is(err, backend.ErrUnreachable):
		return exitUnreachable, "see whether the storage runs, whether its name and port in --repo are right, and whether this host reaches it; then run the same again"
	case errors.Is(err, errProblems):
		return exitDamaged, ""
	case errors.Is(err, repository.ErrUnreadableMark):
		return exitDamaged, "`hv-backup prune --alone`, while nobody else uses the repository, removes it"
	case errors.Is(err, block.ErrCorrupt), errors.Is(err, repository.ErrLost):
		return exitDamaged, "`hv-backup repo verify --read-data` says what else is damaged"
	case errors.Is(err, seal.ErrWrongKey):
		return exitRefused, "`hv-backup repo key list` shows whose keys open it"
	case errors.Is(err, seal.ErrReadKey):
		return exitRefused, "use an owner's passphrase or identity"
	case errors.Is(err, backend.ErrCannotLock):
		return exitRefused, "docs/hv-backup.md says how to make a bucket in which backups can be locked; without --lock it is backed up as before"
	case errors.Is(err, repository.ErrHidden):
		return exitDamaged, "somebody has tried to delete or replace it: `hv-backup repo repair` brings it back"
	case errors.Is(err, block.ErrVersion), errors.Is(err, block.ErrExists), errors.Is(err, block.ErrInUse), errors.Is(err, fs.ErrPermission):
		return exitRefused, ""
	case errors.Is(err, repository.ErrMarked):
		return exitFailed, "run it again: what was stored is found, and only what the prune has marked is stored anew"
	case errors.Is(err, block.ErrNoSpace):
		return exitFailed, "make room and run it again: what is stored already need not be stored again"
	case errors.Is(err, block.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return exitNotFound, ""
	}
	return exitFailed, ""
}

// saidCode is the exit code of what hvd said.
func saidCode(code string) int {
	switch code {
	case client.CodeInvalid:
		return exitUsage
	case client.CodeNotFound:
		return exitNotFound
	case client.CodeExists, client.CodeInUse, client.CodeRefused, client.CodeReadOnly, client.CodeForbidden, client.CodeUnauthenticated, client.CodeBusy:
		return exitRefused
	}
	return exitFailed
}

// saidHint is what to do next about what hvd said.
func saidHint(command *cobra.Command, code string) string {
	ofHistory := strings.HasPrefix(command.CommandPath(), "hv-backup cdp ")
	switch {
	case code == client.CodeNotFound && command.Name() == "detach":
		return "`hv-backup cdp exports` shows what is attached"
	case code == client.CodeNotFound && ofHistory:
		return "`hv-storage-fabric volume list` shows the volumes, `hv-storage-fabric volume history set VOLUME --window 1h` begins a history, `hv-backup cdp points VOLUME` lists its moments"
	case code == client.CodeNotFound:
		return "`hv-storage-fabric volume list` and `snapshot list VOLUME` show what there is"
	case code == client.CodeExists:
		return "choose another name, or delete what has it first"
	case code == client.CodeInUse && ofHistory:
		return "`hv-backup cdp exports` shows what is attached, `hv-backup cdp detach EXPORT` ends it"
	case code == client.CodeNoSpace:
		return "`hv-storage-fabric store stats` shows where the space of hvd's store is"
	}
	return ""
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "hv-backup",
		Short: "Back up images and volumes into a repository, and restore them",
		Long: `hv-backup keeps backups of raw images, block devices and volumes of hvd in a repository. What several backups have in common is stored once, compressed, and everything is
encrypted before it leaves this program.

The repository is --repo, or $HV_BACKUP_REPO. Its keys are opened by a passphrase (--password-file, $HV_BACKUP_PASSWORD_FILE, or asked for on the terminal) or by an age identity
(--identity FILE). Credentials of object storage come from $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY or a file; another hvd, hvd://HOST/NAME, knows a client by its certificate
(--tls-cert, --tls-key, --tls-ca; docs/hv-backup.md).

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 damage was found, 6 hvd or the storage cannot be reached, 7 a guest did not answer to a restore test,
130 interrupted. With -o json one JSON document is printed on standard output and nothing else; progress
and messages go to standard error.`,
		Example: `  hv-backup repo init --repo /mnt/backup/vms
  hv-backup run web1 --repo /mnt/backup/vms --tag daily
  hv-backup list --repo /mnt/backup/vms
  hv-backup restore 20261128t220000z-1f2e3d4c --to-file web1.raw --repo /mnt/backup/vms`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(console.FlagError)
	flags := root.PersistentFlags()
	flags.StringVar(&a.repo, "repo", "", "the repository: a directory, s3://BUCKET/PREFIX, s3+https://HOST/BUCKET/PREFIX, or hvd://HOST/NAME (default $HV_BACKUP_REPO)")
	flags.StringVar(&a.passwordFile, "password-file", "", "file with the passphrase in its first line (default $HV_BACKUP_PASSWORD_FILE)")
	flags.StringArrayVar(&a.identities, "identity", nil, "file with age identities; may be repeated")
	flags.StringVar(&a.endpoint, "endpoint", "", "where hvd listens, for volumes: unix:PATH (default $HV_ENDPOINT, else the system daemon's socket, else the user's)")
	flags.StringVar(&a.tls.Cert, "tls-cert", "", "PEM file of this client's certificate, for hvd:// (default $HV_BACKUP_TLS_CERT)")
	flags.StringVar(&a.tls.Key, "tls-key", "", "PEM file of its private key (default $HV_BACKUP_TLS_KEY)")
	flags.StringVar(&a.tls.CA, "tls-ca", "", "PEM file of the authorities of hosts' certificates (default $HV_BACKUP_TLS_CA)")
	flags.Var(&a.limit, "limit-rate", "bytes a second to and from the repository at most, as 20MiB; 16KiB or more (default no limit)")
	flags.StringVarP(&a.output, "output", "o", "table", "output form: table or json")
	flags.BoolVar(&a.progress, "progress", false, "tell the progress even when standard error is no terminal; with -o json as lines of JSON")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return console.Usagef("output form %q: use table or json", a.output)
		}
		if a.limit > 0 && a.limit < leastLimit {
			return console.Usagef("--limit-rate %v: want at least %v a second, with less each request would take minutes", a.limit, leastLimit)
		}
		return nil
	}
	version := newVersion(a)
	console.VersionFlag(console.Group(root), version)
	root.AddCommand(newRun(a), newList(a), newShow(a), newRestore(a), newAttach(a), newMount(a), newUnmount(a), newTestRestore(a), newBench(a), newCopy(a), newDiff(a), newForget(a), newPrune(a), newPolicy(a), newRecover(a), newRepairStore(a), newCDP(a), newRepo(a), version, newThawGuard(a))
	helptext.Fit(root)
	return root
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this command",
		Example: "  hv-backup version -o json",
		Args:    console.Exactly(),
		RunE: func(*cobra.Command, []string) error {
			return a.show(map[string]string{"version": version}, func() { a.say("hv-backup %s", version) })
		},
	}
}

// show prints one result: as JSON, or as text by calling table.
func (a *app) show(value any, table func()) error {
	if a.output != "json" {
		table()
		return nil
	}
	return console.JSON(a.out, value)
}

// say prints a line for people; with -o json the document says it all.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.out, console.Plain(fmt.Sprintf(format, args...)))
}

// note tells something on the error stream.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.err, console.Plain(fmt.Sprintf(format, args...)))
}

func (a *app) newMeter(what string, total uint64) *console.Meter {
	m := console.NewMeter(a.err, what, total, a.progress)
	m.Lines = a.output == "json" && a.progress
	return m
}
