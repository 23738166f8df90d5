package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// copying is the command copy.
type copying struct {
	a            *app
	from, to     string
	passwordFile string // of the repository that is copied to
	identities   []string
	filter       filter
	dryRun       bool
	lock         units.Span

	unreadable int // backups of the repository to copy from
}

// filter tells backups apart as list does.
type filter struct {
	source string
	tags   []string
}

func (f *filter) passes(m *repository.Manifest) bool {
	return (f.source == "" || m.Source.Name == f.source) && !slices.ContainsFunc(f.tags, func(tag string) bool { return !slices.Contains(m.Tags, tag) })
}

func newCopy(a *app) *cobra.Command {
	k := &copying{a: a}
	c := &cobra.Command{
		Use:   "copy [BACKUP…] --from REPOSITORY --to REPOSITORY",
		Short: "Copy backups into another repository",
		Long: `Copy backups into another repository, which exists already: those named, or all, or those of --source and with --tag. Each of the two may be a directory, object storage, or at another hvd. What the
other repository has is not stored again, and a backup that was copied before is left out, so an interrupted copy goes on when it is run again, and a daily copy costs what is new.
Each copy exists when it is complete; it keeps time, source and tags, and gets a name of its own.

The two have different keys, and so different ids for the same data: what is copied is read, checked, hashed and sealed anew with the keys of the other one. What has not changed
since a backup of the same source that both have is not even read. If the two cut differently (repo init --chunk), content is cut anew. It needs an owner's keys of both.

With --lock nobody can delete the copies, nor what they need, for so long from now on, as for run; backups that were copied before stay as they are.

--password-file and --identity are for both, unless --to-password-file or --to-identity say otherwise. For object storage with other credentials than those of --from, set
HV_TO_AWS_ACCESS_KEY_ID and so on: if one of these is set, only they count for --to. With another certificate for the hvd of --to, set HV_TO_TLS_CERT, HV_TO_TLS_KEY and HV_TO_TLS_CA.`,
		Example: `  hv-backup copy --from /mnt/backup/vms --to s3+https://minio.example/backups/vms
  hv-backup copy --from /mnt/backup/vms --to s3://vault/vms --lock 30d
  hv-backup copy latest:web1 --from s3://bucket/vms --to /mnt/usb/vms --to-password-file ~/.usb-password
  hv-backup copy --source web1 --tag monthly --dry-run --from /mnt/backup/vms --to /mnt/archive/vms`,
		Args: console.Between(0, 1000, "BACKUP"),
		RunE: func(c *cobra.Command, args []string) error { return k.run(c.Context(), args) },
	}
	flags := c.Flags()
	flags.StringVar(&k.from, "from", "", "the repository to copy from (default --repo)")
	flags.StringVar(&k.to, "to", "", "the repository to copy to")
	flags.StringVar(&k.passwordFile, "to-password-file", "", "file with the passphrase of --to in its first line")
	flags.StringArrayVar(&k.identities, "to-identity", nil, "file with age identities for --to; may be repeated")
	flags.StringVar(&k.filter.source, "source", "", "copy backups of this source only")
	flags.StringArrayVar(&k.filter.tags, "tag", nil, "copy backups with this tag only; may be repeated")
	flags.Var(&k.lock, "lock", "how long nobody can delete the copies, such as 30d (default not locked)")
	flags.BoolVar(&k.dryRun, "dry-run", false, "only say what would be copied")
	return c
}

func (k *copying) run(ctx context.Context, names []string) error {
	if k.to == "" {
		return console.Usagef("where to? give --to")
	}
	if len(names) > 0 && (k.filter.source != "" || len(k.filter.tags) > 0) {
		return console.Usagef("give names, or --source and --tag, not both")
	}
	until, err := lockEnd(k.lock)
	if err != nil {
		return err
	}
	from, to := *k.a, k.target()
	if k.from != "" {
		from.repo = k.from
	}
	source, err := from.openIndexed(ctx)
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	target, err := to.openIndexed(ctx)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	if k.lock > 0 {
		if err := target.CanLock(ctx); err != nil {
			return fmt.Errorf("--to: %w", err)
		}
	}
	if !k.dryRun {
		if _, err := target.Adopt(ctx, k.a.warn); err != nil {
			return fmt.Errorf("--to: %w", err)
		}
	}
	wanted, err := k.choose(ctx, source, names)
	if err != nil {
		return err
	}
	began := time.Now()
	meter := k.a.newMeter("copying", 0)
	got, err := backup.Copy(ctx, source, target, backup.Copying{Backups: wanted, DryRun: k.dryRun, Locked: until, Progress: func(p backup.Progress) {
		meter.Total, meter.Also = p.TotalBytes, units.Size(p.NewBytes).Human()+" new"
		if p.ToLock > 0 {
			meter.Also = fmt.Sprintf("%d of %d objects locked", p.Locked, p.ToLock)
		}
		meter.At(p.DoneBytes)
	}})
	meter.End()
	if got == nil && err != nil {
		return err
	}
	if got == nil {
		got = []backup.Copied{} // for JSON
	}
	out := map[string]any{"backups": got, "dryRun": k.dryRun, "seconds": time.Since(began).Seconds()}
	if showErr := k.a.show(out, func() { k.say(got) }); showErr != nil && err == nil {
		err = showErr
	}
	if err == nil && k.unreadable > 0 && len(names) == 0 { // they may be among those to copy
		err = fmt.Errorf("%s in --from cannot be read, and nobody knows of what: %w", console.Counted(k.unreadable, "backup"), errProblems)
	}
	return err
}

// target is this command with the repository that is copied to, and what opens it.
func (k *copying) target() *app { return k.a.other(k.to, "HV_TO_", k.passwordFile, k.identities) }

// other is this command with another repository, and what opens that, where it is not the same. prefix begins the names of the variables for its object storage, which if there are any replace the others, and of those for the files
// of TLS, each of which replaces one.
func (a *app) other(repo, prefix, passwordFile string, identities []string) *app {
	to := *a
	to.repo = repo
	if passwordFile != "" || len(identities) > 0 {
		to.passwordFile, to.identities = passwordFile, identities
	}
	to.tls = mutualtls.Files{Cert: cmp.Or(a.getenv(prefix+"TLS_CERT"), a.tls.Cert), Key: cmp.Or(a.getenv(prefix+"TLS_KEY"), a.tls.Key), CA: cmp.Or(a.getenv(prefix+"TLS_CA"), a.tls.CA)}
	for _, name := range []string{"ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "SHARED_CREDENTIALS_FILE", "REGION", "DEFAULT_REGION"} {
		if a.getenv(prefix+"AWS_"+name) == "" {
			continue
		}
		to.getenv = func(name string) string {
			if strings.HasPrefix(name, "AWS_") {
				name = prefix + name
			}
			return a.getenv(name)
		}
	}
	return &to
}

// choose returns the backups to copy.
func (k *copying) choose(ctx context.Context, source *repository.Repository, names []string) ([]*repository.Manifest, error) {
	all, err := source.Manifests(ctx, func(name string, err error) {
		k.unreadable++
		k.a.warn("backup "+name, err)
	})
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(m *repository.Manifest) bool { return !k.filter.passes(m) }), nil
	}
	var wanted []*repository.Manifest
	for _, name := range names {
		m, err := choose(all, name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(wanted, m) {
			wanted = append(wanted, m)
		}
	}
	return wanted, nil
}

func (k *copying) say(all []backup.Copied) {
	copied, present := 0, 0
	for _, c := range all {
		switch {
		case c.Present:
			present++
			continue
		case k.dryRun:
			k.a.say("would copy %s of %s: %s of data", c.From, c.Source, units.Size(c.NonZero).Human())
		case c.To != "":
			k.a.say("copied %s of %s as %s: %s of data, %s new, %s stored", c.From, c.Source, c.To, units.Size(c.NonZero).Human(), units.Size(c.NewBytes).Human(), units.Size(c.StoredBytes).Human())
		default:
			continue // it failed, which the error says, or was not begun
		}
		copied++
	}
	k.a.say("%s, %d there already", console.Counted(copied, "backup"), present)
}
