package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup/files"
	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// recovering is the command recover.
type recovering struct {
	a       *app
	host    string
	at      string
	filesTo string
	only    []string
	dryRun  bool
	domains bool
	connect string
	all     []*repository.Manifest // that there are
	brought map[string]bool        // volumes that have come back now
}

func newRecover(a *app) *cobra.Command {
	k := &recovering{a: a}
	c := &cobra.Command{
		Use:   "recover [SOURCE...]",
		Short: "Bring back everything that a host had, from its repository",
		Long: `Bring back everything that a host had, from its repository alone: the youngest backup of each of its volumes as a volume of the same name, and with --files-to its files, each backup of them in a folder of its name. A volume,
or a folder with something in it, that is there already is left alone, so an interrupted recovery goes on when it is run again (a folder that was being filled must be removed first), and one that fails does not keep the others from coming back. With --domains machines that libvirt does not have come back too, on these volumes. Images are not restored: "restore --to-file" does that.

On an empty machine: install, bring the files back with --files-to, put hvd's configuration and the policies in place, start hvd, and run it again for the volumes.`,
		Example: `  hv-backup recover --dry-run --repo s3://backups/host1
  hv-backup recover --files-to /srv/recovered --repo s3://backups/host1
  hv-backup recover --domains --repo s3://backups/host1
  hv-backup recover web1 db1 --at 2026-11-28T12:00:00Z --repo s3://backups/host1`,
		Args: console.Between(0, 1000, "SOURCE"),

		ValidArgsFunction: a.completeSources(1000),
		RunE: func(c *cobra.Command, args []string) error {
			k.only = args
			return k.run(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&k.host, "host", "", "the host whose backups are meant, where the repository has several hosts'")
	f.StringVar(&k.at, "at", "", "what was there at a `TIME`, not the youngest: 2026-11-28T12:00:00Z, or \"2026-11-28 12:00:00\" by this host's clock")
	f.StringVar(&k.filesTo, "files-to", "", "folder to unpack backups of files into")
	f.BoolVar(&k.domains, "domains", false, "define machines in libvirt, on the volumes that are there or have come back")
	f.StringVar(&k.connect, "connect", "", connectHelp)
	f.BoolVar(&k.dryRun, "dry-run", false, "only say what would be restored")
	return c
}

// recovered is a source that was brought back, or not, with -o json.
type recovered struct {
	Source string    `json:"source"`
	Kind   string    `json:"kind"`
	Backup string    `json:"backup"`
	Time   time.Time `json:"time"`
	Size   uint64    `json:"sizeBytes"`
	State  string    `json:"state"` // "restored", "there" before, "left" out, "failed"; with --dry-run "to do"
	Why    string    `json:"why,omitempty"`
	m      *repository.Manifest
}

func (k *recovering) run(ctx context.Context) error {
	r, err := k.a.openIndexed(ctx)
	if err != nil {
		return err
	}
	all, err := r.Manifests(ctx, k.a.warn)
	if err != nil {
		return err
	}
	plan, err := k.plan(all)
	if err != nil {
		return err
	}
	k.all, k.brought = all, make(map[string]bool)
	var failed error
	for _, one := range plan {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := k.restore(ctx, r, one); err != nil {
			one.State, one.Why = "failed", strings.ReplaceAll(err.Error(), "\n", "; ")
			failed = errors.Join(failed, fmt.Errorf("%s: %w", one.Source, err))
		}
	}
	err = k.a.show(plan, func() {
		var rows [][]string
		for _, one := range plan {
			rows = append(rows, []string{one.Source, one.Kind, one.Backup, one.Time.Local().Format(time.DateTime), units.Size(one.Size).Human(), strings.TrimSuffix(one.State+": "+one.Why, ": ")})
		}
		console.Table(k.a.out, k.a.getenv, []string{"SOURCE", "KIND", "BACKUP", "TIME", "SIZE", "STATE"}, rows, "TIME", "SIZE", "KIND")
	})
	return errors.Join(err, failed)
}

// plan chooses a backup of each source, in order of their names, files first, machines last.
func (k *recovering) plan(all []*repository.Manifest) ([]*recovered, error) {
	until := time.Now().Add(24 * time.Hour) // of a host whose clock is ahead
	if k.at != "" {
		var ok bool
		if until, ok = clockTime(k.at, time.Local); !ok {
			return nil, console.Usagef("--at %q: want a time as 2026-11-28T12:00:00Z, or \"2026-11-28 12:00:00\" by this host's clock", k.at)
		}
	}
	chosen := make(map[repository.Source]*recovered)
	hosts := make(map[string]bool)
	for _, m := range all { // the oldest first
		if k.host != "" && m.Source.Host != k.host || m.Time.After(until) || len(k.only) > 0 && !slices.Contains(k.only, m.Source.Name) {
			continue
		}
		hosts[m.Source.Host] = true
		chosen[m.Source] = &recovered{Source: m.Source.Name, Kind: m.Source.Kind, Backup: m.Name, Time: m.Time, Size: m.SizeBytes, State: "to do", m: m}
	}
	if len(hosts) > 1 {
		names := make([]string, 0, len(hosts))
		for host := range hosts {
			names = append(names, host)
		}
		slices.Sort(names)
		return nil, console.Usagef("the repository has backups of several hosts: give --host %s", strings.Join(names, " or --host "))
	}
	plan := make([]*recovered, 0, len(chosen))
	for _, one := range chosen {
		plan = append(plan, one)
	}
	slices.SortFunc(plan, func(a, b *recovered) int {
		last := func(one *recovered) int { // a machine uses the volumes that are back
			if one.Kind == machine.Kind {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(last(a), last(b)), cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Source, b.Source))
	})
	if len(plan) == 0 && len(k.only) == 0 {
		return nil, fmt.Errorf("a backup of that host, or of that time: %w", block.ErrNotFound)
	}
	for _, name := range k.only {
		if !slices.ContainsFunc(plan, func(one *recovered) bool { return one.Source == name }) {
			return nil, fmt.Errorf("a backup of %s: %w", name, block.ErrNotFound)
		}
	}
	return plan, nil
}

// look says whether a volume is there already.
func (k *recovering) look(ctx context.Context, one *recovered) error {
	api, err := k.a.hvd()
	if err != nil {
		return err
	}
	_, err = client.GetVolume(ctx, api, one.Source)
	switch said := (*client.Error)(nil); {
	case err == nil:
		one.State, one.Why = "there", "a volume of that name is left alone"
	case errors.As(err, &said) && said.Code == client.CodeNotFound:
	default:
		one.Why = err.Error() // hvd does not run yet
	}
	return nil
}

// restoreMachine brings back a machine, on its volumes, which are there by now.
func (k *recovering) restoreMachine(ctx context.Context, r *repository.Repository, one *recovered) error {
	if !k.domains {
		one.State, one.Why = "left", "a machine: give --domains, or `restore "+one.Backup+" --to-domain`"
		return nil
	}
	restore := &machineRestore{a: k.a, r: r, connect: k.connect, dryRun: k.dryRun, adopt: true, brought: k.brought}
	err := restore.restoreMachine(ctx, one.m, k.all)
	switch {
	case errors.Is(err, block.ErrExists):
		one.State, one.Why = "there", strings.ReplaceAll(err.Error(), "\n", "; ")
		return nil
	case err == nil && !k.dryRun:
		one.State = "restored"
	}
	return err
}

// restore brings one source back.
func (k *recovering) restore(ctx context.Context, r *repository.Repository, one *recovered) error {
	switch one.Kind {
	case "volume":
		if k.dryRun {
			return k.look(ctx, one)
		}
		err := k.a.restoreToVolume(ctx, r, one.m, client.ImportOptions{Name: one.Source})
		if said := (*client.Error)(nil); errors.As(err, &said) && said.Code == client.CodeExists {
			one.State, one.Why = "there", "a volume of that name is left alone"
			return nil
		}
		if err == nil {
			one.State, k.brought[one.Source] = "restored", true
		}
		return err
	case machine.Kind:
		return k.restoreMachine(ctx, r, one)
	case files.Kind:
		if k.filesTo == "" {
			one.State, one.Why = "left", "give --files-to for files"
			return nil
		}
		if !filepath.IsLocal(one.Source) {
			return fmt.Errorf("%q cannot be the name of a folder: restore it with --to-dir", one.Source)
		}
		to := filepath.Join(k.filesTo, one.Source)
		if entries, _ := os.ReadDir(to); len(entries) > 0 {
			one.State, one.Why = "there", to+" is not empty, and left alone"
			return nil
		}
		if k.dryRun {
			return nil
		}
		one.State = "restored"
		return k.a.restoreToDir(ctx, r, one.m, to)
	}
	one.State, one.Why = "left", "an image: `restore --to-file`"
	return nil
}
