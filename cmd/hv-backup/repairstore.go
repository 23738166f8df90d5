package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newRepairStore(a *app) *cobra.Command {
	w := &storeRepair{a: a}
	c := &cobra.Command{
		Use:   "repair-store",
		Short: "Mend what hvd has lost of its volumes from their backups",
		Long: `Mend what hvd cannot read of its volumes and snapshots, and neither parity nor copies reach, from backups of these volumes. hvd says which chunks are lost and where they lay; what the
backups have there is handed to it, and it takes only what has the hash of the lost chunk: a backup of another time, or one that somebody forged, changes nothing. Guests read what was
mended right after, snapshots and clones too.

Before, hvd mends what it can by itself, as ` + "`hv-storage-fabric store repair`" + ` does: from parity, copies, what was written again since, its log and histories. What is damaged and nobody has read yet,
` + "`hv-storage-fabric store scrub start --wait`" + ` finds. Exit code 5 means that something stays lost, or, with --dry-run, that something is. It needs an owner's keys.`,
		Example: `  hv-backup repair-store --dry-run --repo /mnt/backup/vms
  hv-storage-fabric store scrub start --wait; hv-backup repair-store --repo /mnt/backup/vms
  hv-backup repair-store -o json --repo s3://bucket/vms | jq '.left[].places[]'`,
		Args: console.Exactly(),
		RunE: func(c *cobra.Command, _ []string) error { return w.run(c.Context()) },
	}
	c.Flags().BoolVar(&w.dryRun, "dry-run", false, "only list what is lost")
	return c
}

// storeRepair is the command repair-store.
type storeRepair struct {
	a        *app
	dryRun   bool
	api      *client.Client
	versions *backup.ChunkVersions
	volumes  map[string]string                     // UUIDs by name
	times    map[string]map[string]client.Snapshot // of volumes, by name
	out      repairedStore
	left     map[uint64]client.LostChunk
}

// repairedStore is what -o json prints.
type repairedStore struct {
	Lost    int                `json:"lost"` // chunks
	Bytes   uint64             `json:"bytes"`
	Healed  int                `json:"healed"`
	Refused int                `json:"refused"` // versions of backups that were not what was lost
	Left    []client.LostChunk `json:"left"`
	DryRun  bool               `json:"dryRun"`
}

func (w *storeRepair) run(ctx context.Context) (err error) {
	r, err := w.a.openIndexed(ctx)
	if err != nil {
		return err
	}
	if w.api, err = w.a.hvd(); err != nil {
		return err
	}
	if !w.dryRun {
		if _, err := client.Repair(ctx, w.api); err != nil {
			return err
		}
	}
	lost, err := w.list(ctx)
	if err != nil {
		return err
	}
	w.out.DryRun, w.out.Lost, w.left = w.dryRun, len(lost), make(map[uint64]client.LostChunk)
	for _, c := range lost {
		w.out.Bytes += uint64(c.Length)
		w.left[c.ID] = c
	}
	if len(lost) > 0 && !w.dryRun {
		all, err := r.Manifests(ctx, w.a.warn)
		if err != nil {
			return err
		}
		w.versions = backup.NewChunkVersions(r, all)
		w.versions.Warn = w.a.warn
		if err := errors.Join(w.heal(ctx, lost), w.versions.Close()); err != nil {
			return err
		}
		if w.out.Healed > 0 { // what is left of damaged segments concerns nobody now
			if _, err := client.Repair(ctx, w.api); err != nil {
				return err
			}
		}
	}
	w.out.Left = []client.LostChunk{}
	for _, c := range w.left {
		w.out.Left = append(w.out.Left, c)
	}
	slices.SortFunc(w.out.Left, func(a, b client.LostChunk) int { return int(min(1, max(-1, int64(a.ID-b.ID)))) })
	if err := w.a.show(w.out, w.say); err != nil {
		return err
	}
	if len(w.left) > 0 {
		return fmt.Errorf("%s of volumes cannot be read; write what is listed again, or restore it from another repository: %w", console.Counted(len(w.left), "chunk"), errProblems)
	}
	return nil
}

// list returns all lost chunks.
func (w *storeRepair) list(ctx context.Context) (all []client.LostChunk, err error) {
	for after, more := uint64(0), true; more; {
		var some []client.LostChunk
		if some, more, err = w.api.LostChunks(ctx, after); err != nil {
			return nil, err
		}
		if len(some) == 0 {
			break
		}
		all, after = append(all, some...), some[len(some)-1].ID
	}
	return all, nil
}

// heal hands hvd what backups have at the places of lost chunks, one version after the other until it takes one.
func (w *storeRepair) heal(ctx context.Context, lost []client.LostChunk) error {
	meter := w.a.newMeter("mending", w.out.Bytes)
	defer meter.End()
	w.volumes, w.times = make(map[string]string), make(map[string]map[string]client.Snapshot)
	looked := uint64(0)
	for _, c := range lost {
		for _, p := range c.Places {
			place, err := w.place(ctx, p)
			if err != nil {
				return err
			}
			err = w.versions.Each(ctx, place, c.Length, func(raw []byte) (bool, error) {
				healed, err := w.api.HealChunks(ctx, []client.ChunkBytes{{ID: c.ID, Raw: raw}})
				if err != nil {
					return false, err
				}
				if len(healed) == 0 {
					w.out.Refused++
					return false, nil
				}
				w.out.Healed++
				delete(w.left, c.ID)
				return true, nil
			})
			if err != nil {
				return err
			}
			if _, still := w.left[c.ID]; !still {
				break
			}
		}
		looked += uint64(c.Length)
		meter.At(looked)
	}
	return nil
}

// place says more of a place than its names.
func (w *storeRepair) place(ctx context.Context, p client.ChunkPlace) (place backup.ChunkPlace, err error) {
	place = backup.ChunkPlace{Volume: p.Volume, Offset: p.Offset}
	uuid, known := w.volumes[p.Volume]
	if !known {
		if uuid, err = w.look(ctx, p.Volume); err != nil {
			return place, err
		}
	}
	place.UUID = uuid
	if s, ok := w.times[p.Volume][p.Snapshot]; ok {
		place.Time = s.CreatedAt
	}
	return place, nil
}

// look asks hvd about a volume. That it went meanwhile is no error.
func (w *storeRepair) look(ctx context.Context, name string) (uuid string, err error) {
	w.volumes[name], w.times[name] = "", make(map[string]client.Snapshot)
	gone := func(err error) bool {
		said := (*client.Error)(nil)
		return errors.As(err, &said) && said.Code == client.CodeNotFound
	}
	volume, err := client.GetVolume(ctx, w.api, name)
	if err != nil {
		if gone(err) {
			err = nil
		}
		return "", err
	}
	reply, err := client.ListSnapshots(ctx, w.api, name)
	if err != nil && !gone(err) {
		return "", err
	}
	if err == nil {
		for _, s := range reply.Snapshots {
			w.times[name][s.Name] = s
		}
	}
	w.volumes[name] = volume.Volume.Uuid
	return volume.Volume.Uuid, nil
}

func (w *storeRepair) say() {
	if w.out.Lost == 0 {
		w.a.say("hvd knows of nothing that is lost")
		return
	}
	w.a.say("%s (%s) of volumes lost, %d of them mended from backups", console.Counted(w.out.Lost, "chunk"), units.Size(w.out.Bytes).Human(), w.out.Healed)
	for i, c := range w.out.Left {
		if i == maxSaidRanges {
			w.a.say("  and %d others: -o json lists them", len(w.out.Left)-i)
			break
		}
		var places []string
		for _, p := range c.Places {
			name := p.Volume
			if p.Snapshot != "" {
				name += "@" + p.Snapshot
			}
			places = append(places, fmt.Sprintf("%s at %d", name, p.Offset))
		}
		w.a.say("  %d B: %s", c.Length, strings.Join(places, ", "))
	}
}
