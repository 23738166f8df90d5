package control

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Snapshot is what a user sees of a snapshot.
type Snapshot struct {
	Volume    string
	Name      string
	SizeBytes uint64 // of the volume when it was taken
	CreatedAt time.Time
	// Sequence is the place in the order of all changes of the store at which it was taken. Snapshots that were taken together have the same.
	Sequence  uint64
	Protected bool // may not be deleted
	Automatic bool // a schedule made it, and nobody renamed it since
	Clones    int  // volumes that were made from it and are there
}

// CreateSnapshot freezes a volume as it is, attached or not: every write that was replied is in it.
func (c *Control) CreateSnapshot(ctx context.Context, volume, name string) (Snapshot, error) {
	var taken Snapshot
	err := c.onSnapshot(ctx, "create", volume, name, func() error {
		if err := cmp.Or(c.refuseRestoring("snapshot", volume), c.refuseReplica("snapshot", volume)); err != nil {
			return err
		}
		info, err := c.engine.CreateSnapshot(ctx, volume, name)
		taken = snapshotOf(volume, info)
		return err
	})
	return taken, err
}

// Snapshots lists the snapshots of a volume, oldest first.
func (c *Control) Snapshots(volume string) ([]Snapshot, error) {
	if err := checkVolume(volume); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	infos, err := c.engine.Snapshots(volume)
	if err != nil {
		return nil, err
	}
	snapshots := make([]Snapshot, 0, len(infos))
	for _, info := range infos {
		if !hidden(info.Name) {
			snapshots = append(snapshots, snapshotOf(volume, info))
		}
	}
	return snapshots, nil
}

// SnapshotFrees is the number of stored bytes that deleting the snapshot would free.
func (c *Control) SnapshotFrees(ctx context.Context, volume, name string) (freed uint64, err error) {
	err = c.onSnapshot(ctx, "measure", volume, name, func() error {
		freed, err = c.engine.SnapshotFrees(ctx, volume, name)
		return err
	})
	return freed, err
}

// snapshot describes one snapshot.
func (c *Control) snapshot(volume, name string) (Snapshot, error) {
	infos, err := c.engine.Snapshots(volume)
	if err != nil {
		return Snapshot{}, err
	}
	for _, info := range infos {
		if info.Name == name {
			return snapshotOf(volume, info), nil
		}
	}
	return Snapshot{}, fmt.Errorf("snapshot %q of volume %q: %w", name, volume, block.ErrNotFound)
}

// RenameSnapshot gives a snapshot that no client uses another name.
func (c *Control) RenameSnapshot(ctx context.Context, volume, name, newName string) (renamed Snapshot, err error) {
	if err := checkSnapshot(newName); err != nil {
		return Snapshot{}, fmt.Errorf("rename snapshot: %w", err)
	}
	err = c.onSnapshot(ctx, "rename", volume, name, func() error {
		if err := c.engine.RenameSnapshot(ctx, volume, name, newName); err != nil {
			return err
		}
		renamed, err = c.snapshot(volume, newName)
		return err
	})
	return renamed, err
}

// ProtectSnapshot makes a snapshot, and with it its volume, one that cannot be deleted, or takes that back. To repeat it is no error.
func (c *Control) ProtectSnapshot(ctx context.Context, volume, name string, protect bool) (changed Snapshot, err error) {
	verb := "protect"
	if !protect {
		verb = "unprotect"
	}
	err = c.onSnapshot(ctx, verb, volume, name, func() error {
		if err := c.engine.ProtectSnapshot(ctx, volume, name, protect); err != nil {
			return err
		}
		changed, err = c.snapshot(volume, name)
		return err
	})
	return changed, err
}

// DeleteSnapshot deletes a snapshot that is not protected. Clones of it stay whole.
func (c *Control) DeleteSnapshot(ctx context.Context, volume, name string) error {
	return c.onSnapshot(ctx, "delete", volume, name, func() error {
		return c.engine.DeleteSnapshot(ctx, volume, name)
	})
}

// Rollback makes a volume that is not attached what the snapshot is. What was written since is lost.
func (c *Control) Rollback(ctx context.Context, volume, name string) error {
	return c.onSnapshot(ctx, "roll back to", volume, name, func() error {
		if err := cmp.Or(c.refuseAttached("roll back", volume), c.refuseRestoring("roll back", volume), c.refuseReplica("roll back", volume)); err != nil {
			return err
		}
		return c.engine.Rollback(ctx, volume, name)
	})
}

// onSnapshot runs do while it holds the volume's name. What do returns says itself what failed.
func (c *Control) onSnapshot(ctx context.Context, verb, volume, name string, do func() error) error {
	if err := checkVolumeSnapshot(volume, name); err != nil {
		return fmt.Errorf("%s snapshot: %w", verb, err)
	}
	release, err := c.names.hold(ctx, "snapshot work", volume)
	if err != nil {
		return fmt.Errorf("%s snapshot %s@%s: %w", verb, volume, name, err)
	}
	defer release()
	return do()
}

func snapshotOf(volume string, info blockstore.SnapshotInfo) Snapshot {
	return Snapshot{
		Volume: volume, Name: info.Name, SizeBytes: info.SizeBytes, CreatedAt: info.CreatedAt,
		Sequence: uint64(info.Epoch), Protected: info.Protected, Automatic: info.Automatic, Clones: info.Clones,
	}
}
