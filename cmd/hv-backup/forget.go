package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// forgetting is the command forget.
type forgetting struct {
	a      *app
	dryRun bool
	keep   backup.Retention
	source string
	tags   []string
	rest   bool // --keep-tag alone is meant
}

func newForget(a *app) *cobra.Command {
	f := &forgetting{a: a}
	c := &cobra.Command{
		Use:   "forget BACKUP… | forget --keep-… N",
		Short: "Remove backups, by name or all but those to keep",
		Long: `Remove backups from the repository: those named (one that cannot be read by its whole name), or, of each source, all but those that one of the --keep flags keeps. --keep-daily 7 keeps the youngest backup of each of the last
seven days that have one, the others likewise; days begin at midnight here. --keep-tag keeps what the others would not; alone it would forget all backups without the tag, so it needs
--all-others then. --source and --tag narrow down what is looked at: other backups stay. The space of what is forgotten
comes back with ` + "`hv-backup prune`" + `. A backup that the repository's host keeps for some time yet (hvd's repository.keep) stays: the --keep flags pass it over, and by its name it is refused..

What is locked (run --lock) cannot be forgotten before its lock ends: the --keep flags put it off, and names are refused.`,
		Example: `  hv-backup forget 20261128t220000z-1f2e3d4c --repo /mnt/backup/vms
  hv-backup forget --keep-last 3 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run --repo /mnt/backup/vms`,
		Args: console.Between(0, 1000, "BACKUP"),

		ValidArgsFunction: a.completeBackups(0, 1000),
		RunE:              func(c *cobra.Command, args []string) error { return f.run(c.Context(), args) },
	}
	flags := c.Flags()
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what would be removed")
	flags.IntVar(&f.keep.Last, "keep-last", 0, "keep the youngest `N`")
	flags.IntVar(&f.keep.Hourly, "keep-hourly", 0, "keep the youngest of each of `N` hours")
	flags.IntVar(&f.keep.Daily, "keep-daily", 0, "keep the youngest of each of `N` days")
	flags.IntVar(&f.keep.Weekly, "keep-weekly", 0, "keep the youngest of each of `N` weeks")
	flags.IntVar(&f.keep.Monthly, "keep-monthly", 0, "keep the youngest of each of `N` months")
	flags.IntVar(&f.keep.Yearly, "keep-yearly", 0, "keep the youngest of each of `N` years")
	flags.StringArrayVar(&f.keep.Tags, "keep-tag", nil, "keep backups with this tag; may be repeated")
	flags.BoolVar(&f.rest, "all-others", false, "with --keep-tag alone: yes, forget every backup without the tag")
	flags.StringVar(&f.source, "source", "", "look at backups of this source only")
	flags.StringArrayVar(&f.tags, "tag", nil, "look at backups with this tag only; may be repeated")
	return c
}

// judgedBackup is a backup as -o json prints it, with the reasons to keep it; of one that cannot be read only the name is known.
type judgedBackup struct {
	Name    string    `json:"name"`
	Source  string    `json:"source"`
	Time    time.Time `json:"time,omitzero"`
	Reasons []string  `json:"reasons,omitempty"`

	LockedUntil time.Time `json:"lockedUntil,omitzero"`
}

func (f *forgetting) run(ctx context.Context, args []string) error {
	if err := f.check(args); err != nil {
		return err
	}
	r, err := f.a.open(ctx)
	if err != nil {
		return err
	}
	unreadable := make(map[string]bool)
	all, err := r.Manifests(ctx, func(name string, err error) {
		unreadable[name] = true
		f.a.warn("backup "+name, err)
	})
	if err != nil {
		return err
	}
	forget, keep := []judgedBackup{}, []judgedBackup{}
	if len(args) > 0 {
		for _, arg := range args {
			if unreadable[arg] { // it is in the way of every prune
				forget = append(forget, judgedBackup{Name: arg})
				continue
			}
			m, err := choose(all, arg)
			if err != nil {
				return err
			}
			if m.LockedUntil.After(time.Now()) {
				return fmt.Errorf("%w; nothing is forgotten", &backend.LockedError{Key: "backup " + m.Name, Until: m.LockedUntil})
			}
			forget = append(forget, judgedBackup{Name: m.Name, Source: m.Source.Name, Time: m.Time})
		}
	} else {
		forget, keep = f.judge(all)
	}
	if f.dryRun {
		return f.show(forget, keep)
	}
	gone := []judgedBackup{}
	var refused error
	for _, b := range forget {
		err := r.Forget(ctx, b.Name)
		var locked *backend.LockedError
		switch {
		case err == nil, errors.Is(err, block.ErrNotFound):
			gone = append(gone, b)
		case errors.As(err, &locked): // the backup does not say so, the storage does: a bucket may lock all that is stored in it
			b.Reasons, b.LockedUntil = []string{lockedReason(locked.Until)}, locked.Until
			keep = append(keep, b)
			if len(args) > 0 {
				refused = errors.Join(refused, locked)
			}
		case errors.Is(err, block.ErrInUse) && len(args) == 0: // a rule will find it again when its time has come
			b.Reasons = []string{"where the repository is nobody can delete it yet"}
			keep = append(keep, b)
		default:
			return err
		}
	}
	return errors.Join(f.show(gone, keep), refused)
}

func (f *forgetting) check(args []string) error {
	for _, n := range []int{f.keep.Last, f.keep.Hourly, f.keep.Daily, f.keep.Weekly, f.keep.Monthly, f.keep.Yearly} {
		if n < 0 {
			return console.Usagef("keep %d? give numbers from 0", n)
		}
	}
	narrowed := f.source != "" || len(f.tags) > 0
	switch {
	case len(args) > 0 && (narrowed || !f.keep.Zero()):
		return console.Usagef("give names, or what to keep, not both")
	case len(args) == 0 && f.keep.Zero():
		return console.Usagef("forget what? give names, or say what to keep, as in --keep-daily 7")
	case len(args) == 0 && f.keep.OnlyTags() && !f.rest:
		return console.Usagef("--keep-tag alone would forget every backup without the tag, the newest too: add another --keep flag, such as --keep-last 1, or --all-others if that is meant")
	}
	return nil
}

// judge tells the backups that are looked at apart.
func (f *forgetting) judge(there []*repository.Manifest) (forget, keep []judgedBackup) {
	all := slices.DeleteFunc(slices.Clone(there), func(m *repository.Manifest) bool {
		return f.source != "" && m.Source.Name != f.source || slices.ContainsFunc(f.tags, func(tag string) bool { return !slices.Contains(m.Tags, tag) })
	})
	forget, keep = []judgedBackup{}, []judgedBackup{}
	judged := f.keep.Apply(all, time.Now(), time.Local)
	for i, k := range judged {
		if len(k.Reasons) == 0 && k.LockedUntil.After(time.Now()) {
			judged[i].Reasons = []string{lockedReason(k.LockedUntil)}
		}
	}
	keepWithMachines(judged, there)
	for _, k := range judged {
		b := judgedBackup{k.Name, k.Source.Name, k.Time, k.Reasons, k.LockedUntil}
		if len(k.Reasons) > 0 {
			keep = append(keep, b)
		} else {
			forget = append(forget, b)
		}
	}
	return forget, keep
}

// keepWithMachines keeps the volumes of machines whose backups stay: of the same host and moment. Without them a machine could not be restored.
func keepWithMachines(judged []backup.Kept, there []*repository.Manifest) {
	type moment struct {
		host string
		at   int64
	}
	of := func(m *repository.Manifest) moment { return moment{m.Source.Host, m.Time.UnixNano()} }
	stays := make(map[moment]bool)
	forgotten := make(map[string]bool)
	for _, k := range judged {
		forgotten[k.Name] = len(k.Reasons) == 0
	}
	for _, m := range there {
		if m.Source.Kind == machine.Kind && !forgotten[m.Name] {
			stays[of(m)] = true
		}
	}
	for i, k := range judged {
		if k.Source.Kind == "volume" && len(k.Reasons) == 0 && stays[of(k.Manifest)] {
			judged[i].Reasons = []string{"the backup of its machine is kept"}
		}
	}
}

func (f *forgetting) show(forget, keep []judgedBackup) error {
	return f.a.show(map[string]any{"forgotten": forget, "kept": keep, "dryRun": f.dryRun}, func() {
		for _, b := range keep {
			f.a.say("keep %s of %s: %s", b.Name, b.Source, strings.Join(b.Reasons, ", "))
		}
		for _, b := range forget {
			what := b.Source
			if b.Time.IsZero() {
				what = "an unknown source"
			}
			f.a.say("%s %s of %s", map[bool]string{true: "would forget", false: "forgot"}[f.dryRun], b.Name, what)
		}
	})
}
