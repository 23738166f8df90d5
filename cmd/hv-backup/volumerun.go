package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/guestagent"
)

// abandonedAfter is when a snapshot of a run that left no backup was surely abandoned.
const abandonedAfter = 24 * time.Hour

// keptPrefix is how the names of the snapshots begin that hvd keeps for a repository: one for each volume, of its last backup. What follows is the time that the name of the backup begins with.
func keptPrefix(r *repository.Repository) string {
	return "backup-" + strings.ReplaceAll(r.ID(), "-", "")[:8] + "-"
}

// frozenVolume is a volume that was frozen to be backed up.
type frozenVolume struct {
	a        *app
	api      *client.Client
	r        *repository.Repository
	snapshot client.Snapshot
	uuid     string
	rest     string         // how its content came to rest, as in manifests; "" means "crash"
	earlier  []keptSnapshot // the youngest first
	blind    bool           // backups cannot be read, by these keys or where they are, so no run can begin from a snapshot
}

// keptSnapshot is a snapshot that an earlier run left.
type keptSnapshot struct {
	client.Snapshot
	backup *repository.Manifest // nil: none that can be used
}

// freeze takes the snapshots of volumes, or of a group if group is not "", at one moment, which it returns. agents are the sockets of the agents of guests, by their volumes: these are brought to rest meanwhile, if they can be.
// An error with snapshots is about a guest that may still be frozen.
func (a *app) freeze(ctx context.Context, api *client.Client, r *repository.Repository, volumes []string, group string, agents map[string]string) (all []*frozenVolume, at time.Time, err error) {
	if len(agents) == 0 {
		return a.freezeNow(ctx, api, r, volumes, group)
	}
	var doErr error
	called := false
	err = guestagent.AtRest(ctx, slices.Compact(slices.Sorted(maps.Values(agents))), func() error {
		called = true
		all, at, doErr = a.freezeNow(ctx, api, r, volumes, group)
		return nil
	})
	if !called && ctx.Err() == nil {
		a.note("hv-backup: %s; back up as after a power loss", strings.ReplaceAll(err.Error(), "\n", "; "))
		return a.freezeNow(ctx, api, r, volumes, group)
	}
	for _, v := range all {
		if agents[v.snapshot.Volume] != "" {
			v.rest = "frozen"
		}
	}
	return all, at, errors.Join(doErr, err)
}

// freezeNow takes the snapshots.
func (a *app) freezeNow(ctx context.Context, api *client.Client, r *repository.Repository, volumes []string, group string) (all []*frozenVolume, at time.Time, err error) {
	for {
		at = time.Now().UTC().Truncate(time.Second)
		taken, err := takeSnapshots(ctx, api, keptPrefix(r)+repository.FormatTime(at), volumes, group)
		if said := (*client.Error)(nil); errors.As(err, &said) && said.Code == client.CodeExists && ctx.Err() == nil {
			time.Sleep(time.Until(at.Add(time.Second))) // a run of this very second: names tell seconds apart
			continue
		}
		if err != nil {
			return nil, at, err
		}
		for _, s := range taken {
			all = append(all, &frozenVolume{a: a, api: api, r: r, snapshot: s})
		}
		return all, at, nil
	}
}

func takeSnapshots(ctx context.Context, api *client.Client, name string, volumes []string, group string) ([]client.Snapshot, error) {
	if group != "" {
		reply, err := client.CreateGroupSnapshot(ctx, api, group, name)
		if err != nil {
			return nil, err
		}
		return reply.CreateGroupSnapshot, nil
	}
	wanted := make([]client.SnapshotNameInput, len(volumes))
	for i, volume := range volumes {
		wanted[i] = client.SnapshotNameInput{Volume: volume, Name: name}
	}
	reply, err := client.CreateSnapshots(ctx, api, wanted)
	if err != nil {
		return nil, err
	}
	return reply.CreateSnapshots, nil
}

// look finds out what earlier runs left.
func (v *frozenVolume) look(ctx context.Context) error {
	volume, err := client.GetVolume(ctx, v.api, v.snapshot.Volume)
	if err != nil {
		return err
	}
	v.uuid = volume.Volume.Uuid
	reply, err := client.ListSnapshots(ctx, v.api, v.snapshot.Volume)
	if err != nil {
		return err
	}
	if !v.r.Keys().CanRead() {
		v.blind = true
		v.a.note("hv-backup: these keys can only write, so %s is read whole; with an owner's, only what has changed is", v.snapshot.Volume)
	}
	for _, s := range slices.Backward(reply.Snapshots) {
		named, ours := strings.CutPrefix(s.Name, keptPrefix(v.r))
		if !ours || s.Sequence >= v.snapshot.Sequence {
			continue
		}
		kept := keptSnapshot{Snapshot: s}
		if !v.blind {
			if kept.backup, err = v.r.FindFrozen(ctx, named, v.uuid, s.Sequence); errors.Is(err, fs.ErrPermission) {
				v.blind = true
				v.a.note("hv-backup: backups cannot be read where they are, so %s is read whole: %v", v.snapshot.Volume, err)
			}
			if err != nil {
				kept.backup = nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.earlier = append(v.earlier, kept)
	}
	return nil
}

// backUp makes the backup, from the youngest one that hvd knows the difference to unless full says not to. Its snapshot stays for the next run, and those of earlier runs go; after an error it is the one that goes.
func (v *frozenVolume) backUp(ctx context.Context, m *repository.Manifest, full bool) (err error) {
	defer func() { err = errors.Join(err, v.tidy(context.WithoutCancel(ctx), err == nil)) }()
	if err := v.look(ctx); err != nil {
		return err
	}
	m.Source.Kind, m.Source.Name, m.Consistency = "volume", v.snapshot.Volume, cmp.Or(v.rest, "crash")
	m.Frozen = &repository.Frozen{Volume: v.uuid, Sequence: v.snapshot.Sequence}
	for _, kept := range v.earlier {
		if full || kept.backup == nil {
			continue
		}
		changes, err := v.changes(ctx, kept.Snapshot)
		if err == nil {
			err = v.increment(ctx, m, kept.backup, changes)
		}
		return v.orAll(ctx, m, err)
	}
	if !full && !v.blind {
		parent, changes, err := v.relative(ctx)
		if err != nil {
			return err
		}
		if parent != nil {
			v.a.note("hv-backup: %s has content in common with %s: what differs from %s is read", v.snapshot.Volume, parent.Source.Name, parent.Name)
			return v.orAll(ctx, m, v.increment(ctx, m, parent, changes))
		}
		if len(v.earlier) > 0 {
			v.a.note("hv-backup: %s is read whole: the backups of the snapshots that hvd kept are gone", v.snapshot.Volume)
		}
	}
	return v.all(ctx, m)
}

// orAll backs up everything if it could not be done with a parent, and returns what else came of that.
func (v *frozenVolume) orAll(ctx context.Context, m *repository.Manifest, err error) error {
	if err == nil || !errors.Is(err, backup.ErrParent) || ctx.Err() != nil {
		return err
	}
	v.a.note("hv-backup: %v; read %s whole", strings.ReplaceAll(err.Error(), "\n", "; "), v.snapshot.Volume)
	return v.all(ctx, m)
}

// maxRelatives bounds the volumes that are tried for content in common.
const maxRelatives = 256

// relative returns the backup of another volume that this one has a state in common with, as a clone has with what it was made from and with its other clones, and what differs from it; nil if there is none.
func (v *frozenVolume) relative(ctx context.Context) (*repository.Manifest, *backup.Changes, error) {
	reply, err := client.ListVolumes(ctx, v.api)
	if err != nil {
		return nil, nil, err
	}
	origins := make(map[string]string, len(reply.Volumes))
	for i := range reply.Volumes {
		origins[reply.Volumes[i].Name] = reply.Volumes[i].OriginVolume
	}
	others := slices.DeleteFunc(reply.Volumes, func(o client.Volume) bool { return o.Name == v.snapshot.Volume || o.SnapshotCount == 0 })
	origin := origins[v.snapshot.Volume]
	slices.SortStableFunc(others, func(a, b client.Volume) int { return cmp.Compare(distance(&a, origin), distance(&b, origin)) })
	for _, other := range others[:min(len(others), maxRelatives)] {
		parent, changes, err := v.fromRelative(ctx, &other)
		if parent != nil || ctx.Err() != nil {
			return parent, changes, ctx.Err()
		}
		if said := (*client.Error)(nil); err != nil && !(errors.As(err, &said) && (said.Code == client.CodeInvalid || said.Code == client.CodeNotFound)) {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// distance orders volumes by how much a clone of origin may have in common with them: origin itself, other clones of it, all others, as an origin may be gone.
func distance(o *client.Volume, origin string) int {
	switch {
	case origin != "" && o.Name == origin:
		return 0
	case origin != "" && o.OriginVolume == origin:
		return 1
	}
	return 2
}

// fromRelative is relative for one volume. A client.Error with CodeInvalid says that the two have nothing in common.
func (v *frozenVolume) fromRelative(ctx context.Context, other *client.Volume) (*repository.Manifest, *backup.Changes, error) {
	reply, err := client.ListSnapshots(ctx, v.api, other.Name)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range slices.Backward(reply.Snapshots) {
		named, ours := strings.CutPrefix(s.Name, keptPrefix(v.r))
		if !ours {
			continue
		}
		changes, err := v.changes(ctx, s) // which says quickly if there is nothing in common
		if err != nil {
			return nil, nil, err
		}
		if parent, err := v.r.FindFrozen(ctx, named, other.Uuid, s.Sequence); err == nil {
			return parent, changes, nil
		}
	}
	return nil, nil, nil
}

// changes returns what differs from another snapshot. Its errors match backup.ErrParent.
func (v *frozenVolume) changes(ctx context.Context, since client.Snapshot) (*backup.Changes, error) {
	state := func(s client.Snapshot) string { return s.Volume + "@" + s.Name }
	changes := backup.NewChanges()
	_, err := v.api.Changes(ctx, state(since), state(v.snapshot), func(c client.Change) error {
		changes.Add(c.Offset, c.Length)
		return nil
	})
	if err != nil {
		return nil, errors.Join(backup.ErrParent, err)
	}
	return changes, nil
}

// increment backs up what has changed since an earlier backup. After backup.ErrParent m is as it was.
func (v *frozenVolume) increment(ctx context.Context, m *repository.Manifest, parent *repository.Manifest, changes *backup.Changes) error {
	was := *m
	meter := v.a.newMeter("backing up "+v.snapshot.Volume, v.snapshot.SizeBytes)
	defer meter.End()
	err := backup.RunIncremental(ctx, v.r, snapshotRange{v.api, v.snapshot}, parent, changes, m, tellTo(meter))
	if errors.Is(err, backup.ErrParent) {
		*m = was
	}
	return err
}

// all backs up everything.
func (v *frozenVolume) all(ctx context.Context, m *repository.Manifest) (err error) {
	stream, body, err := v.api.Export(ctx, v.snapshot.Volume, v.snapshot.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	meter := v.a.newMeter("backing up "+v.snapshot.Volume, v.snapshot.SizeBytes)
	defer meter.End()
	return backup.Run(ctx, v.r, &volumeStream{stream: stream}, m, tellTo(meter))
}

// deleteSnapshot deletes a snapshot of this program. hvd notices a little after a reader has gone that it has, so one that is in use is tried again for some seconds.
func deleteSnapshot(ctx context.Context, api *client.Client, volume, name string) error {
	for deadline := time.Now().Add(releaseTime); ; {
		_, err := client.DeleteSnapshot(ctx, api, volume, name)
		if said := (*client.Error)(nil); !errors.As(err, &said) || said.Code != client.CodeInUse || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// releaseTime is how long hvd may take to notice that a reader of a snapshot has gone.
const releaseTime = 3 * time.Second

// tidy deletes the snapshots that no later run can use, its own if that could not begin from it. Not being able to is worth a word, not a failure of a backup that exists.
func (v *frozenVolume) tidy(ctx context.Context, done bool) error {
	remove := func(s client.Snapshot) {
		err := deleteSnapshot(ctx, v.api, s.Volume, s.Name)
		if said := (*client.Error)(nil); err != nil && !(errors.As(err, &said) && said.Code == client.CodeNotFound) {
			v.a.note("hv-backup: snapshot %s@%s is of no more use, and could not be deleted: %v; a backup a day later does, or `hv-storage-fabric snapshot delete %s@%s`", s.Volume, s.Name, err, s.Volume, s.Name)
		}
	}
	if !done {
		remove(v.snapshot)
		return nil
	}
	for _, kept := range v.earlier {
		if kept.backup != nil || v.snapshot.CreatedAt.Sub(kept.CreatedAt) > abandonedAfter { // else a run may be at it
			remove(kept.Snapshot)
		}
	}
	if v.blind {
		remove(v.snapshot)
	}
	return nil
}

// snapshotRange is a snapshot as a backup.RangeSource.
type snapshotRange struct {
	api      *client.Client
	snapshot client.Snapshot
}

// Size implements backup.RangeSource.
func (s snapshotRange) Size() uint64 { return s.snapshot.SizeBytes }

// ReadRange implements backup.RangeSource.
func (s snapshotRange) ReadRange(ctx context.Context, p []byte, off uint64) error {
	return s.api.ReadRange(ctx, s.snapshot.Volume, s.snapshot.Name, p, off)
}

// ReadRanges implements backup.RangesSource.
func (s snapshotRange) ReadRanges(ctx context.Context, p []byte, ranges []block.Range) error {
	return s.api.ReadRanges(ctx, s.snapshot.Volume, s.snapshot.Name, p, ranges)
}
