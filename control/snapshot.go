package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Snapshot is what a user sees of a snapshot.
type Snapshot struct {
	Volume    string
	Name      string
	SizeBytes uint64 // of the volume when it was taken
	CreatedAt time.Time
}

// CreateSnapshot freezes a volume as it is, attached or not: every write that was replied is in it.
func (c *Control) CreateSnapshot(ctx context.Context, volume, name string) (Snapshot, error) {
	var taken Snapshot
	err := c.onSnapshot(ctx, "create", volume, name, func() error {
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

// DeleteSnapshot deletes a snapshot. Clones of it stay whole.
func (c *Control) DeleteSnapshot(ctx context.Context, volume, name string) error {
	return c.onSnapshot(ctx, "delete", volume, name, func() error {
		return c.engine.DeleteSnapshot(ctx, volume, name)
	})
}

// Rollback makes a volume that is not attached what the snapshot is. What was written since is lost.
func (c *Control) Rollback(ctx context.Context, volume, name string) error {
	return c.onSnapshot(ctx, "roll back to", volume, name, func() error {
		if err := c.refuseAttached("roll back", volume); err != nil {
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
	return Snapshot{Volume: volume, Name: info.Name, SizeBytes: info.SizeBytes, CreatedAt: info.CreatedAt}
}
