package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// defaultGrace is longer than it must be, so that clocks and habits may differ.
const defaultGrace = 24 * time.Hour

func newPrune(a *app) *cobra.Command {
	o := repository.PruneOptions{Grace: defaultGrace, Warn: a.warn}
	repack := units.Size(4 << 30)
	c := &cobra.Command{
		Use:   "prune",
		Short: "Give back the space of what no backup needs",
		Long: `Give back the space of what no backup needs, beside backups that run. A prune marks what nobody needs; from then on no backup relies on it. A later prune, at least the grace after
that, deletes what is still not needed; what has another copy goes only after that was read. So run it daily, for instance after forget. What is alive in packs that are mostly dead is copied, and these are marked too.

A prune that finds backups damaged deletes nothing and names them. They can be forgotten; or --despite-damage goes on: what is left of them stays, what is lost stays lost, and what only
a lost page led to is given up. It also removes a damaged run of the index, whose packs are asked themselves.

What is locked (run --lock) stays until its lock ends, also when no backup needs it any more, and is counted. In a bucket that keeps versions all versions of what is deleted go.

With --alone it marks and deletes at once: only when nobody else uses the repository, no backup on any host, no restore and no other prune. A backup under way would be damaged.

Whatever stops a prune, backups stay whole, and the next one goes on. It needs an owner's keys.`,
		Example: `  hv-backup prune --dry-run --repo /mnt/backup/vms
  hv-backup forget --keep-daily 7 --keep-monthly 12 --repo /mnt/backup/vms && hv-backup prune --repo /mnt/backup/vms`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if !o.Alone && o.Grace < repository.MinGrace {
				return console.Usagef("a grace of %v is too short: backups count on %v; --alone needs none", o.Grace, repository.MinGrace)
			}
			o.RepackBytes = uint64(repack)
			r, err := a.open(c.Context())
			if err != nil {
				return err
			}
			got, err := a.prune(c.Context(), r, o)
			if err != nil {
				return err
			}
			return a.show(got, func() { a.sayPruned(got) })
		},
	}
	flags := c.Flags()
	flags.BoolVar(&o.DryRun, "dry-run", false, "only say what would be done")
	flags.DurationVar(&o.Grace, "grace", defaultGrace, "how long what is marked, or new, is left alone; at least 12h")
	flags.BoolVar(&o.Alone, "alone", false, "nobody else uses the repository: mark and delete at once")
	flags.BoolVar(&o.Damaged, "despite-damage", false, "go on although backups are damaged: what is lost stays lost")
	flags.Var(&repack, "repack", "how much data to copy at most out of packs that are mostly dead")
	return c
}

// prune runs a prune, with --alone another one that deletes what the first has marked.
func (a *app) prune(ctx context.Context, r *repository.Repository, o repository.PruneOptions) (repository.Pruned, error) {
	once := func() (repository.Pruned, error) {
		meter := a.newMeter(backup.PhaseLook, 0)
		defer func() { meter.End() }()
		return backup.Prune(ctx, r, o, func(phase string, done, total uint64) {
			if phase != meter.What { // rates are of a phase
				meter.End()
				meter = a.newMeter(phase, total)
			}
			meter.Total = total
			meter.At(done)
		})
	}
	first, err := once()
	if err != nil || !o.Alone || o.DryRun || first.MarkedPacks+first.RepackedPacks == 0 {
		return first, err
	}
	second, err := once()
	first.DeletedPacks += second.DeletedPacks
	first.DeletedBytes += second.DeletedBytes
	first.LockedPacks, first.LockedBytes, first.UnlockedAt = second.LockedPacks, second.LockedBytes, second.UnlockedAt
	first.LockedObjects += second.LockedObjects
	first.WaitingPacks, first.WaitingBytes, first.DeletableAt = second.WaitingPacks, second.WaitingBytes, second.DeletableAt
	return first, err
}

func (a *app) sayPruned(p repository.Pruned) {
	would := ""
	if p.DryRun {
		would = "would have "
	}
	a.say("%s, %s; backups need %s before compression", console.Counted(p.Packs, "pack"), units.Size(p.PackBytes).Human(), units.Size(p.LiveBytes).Human())
	a.say("%sdeleted %s (%s) that were marked", would, console.Counted(p.DeletedPacks, "pack"), units.Size(p.DeletedBytes).Human())
	a.say("%smarked %s (%s), of which %d were mostly dead: %s of data copied", would, console.Counted(p.MarkedPacks, "pack"), units.Size(p.MarkedBytes).Human(), p.RepackedPacks, units.Size(p.RepackedBytes).Human())
	if p.YoungPacks > 0 {
		a.say("left alone %s that no backup needs: they are young and may belong to one under way (`hv-backup prune --alone`, while nobody else uses the repository, deletes them, too)", console.Counted(p.YoungPacks, "pack"))
	}
	if p.LockedPacks > 0 {
		a.say("left alone %s (%s) that no backup needs, or only a part of: they are locked, the first until %s", console.Counted(p.LockedPacks, "pack"), units.Size(p.LockedBytes).Human(), p.UnlockedAt.Local().Format(time.DateTime))
	}
	if p.LockedObjects > 0 {
		a.say("could not delete %s: the storage says that they are locked; a later prune does", console.Counted(p.LockedObjects, "object"))
	}
	if !p.DeletableAt.IsZero() {
		a.say("the first of what is marked may be deleted after %s: run prune again then", p.DeletableAt.Local().Format(time.DateTime))
	}
}
