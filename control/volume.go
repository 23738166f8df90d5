package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Volume is what a user sees of a volume.
type Volume struct {
	UUID          string
	Name          string
	SizeBytes     uint64
	Chunking      string // "cdc" or "fixed:SIZE"
	Mode          string // "writeback" or "durable"
	CreatedAt     time.Time
	SnapshotCount int
	Bitmaps       []string // names, those first that began first
	Limits        blockstore.VolumeLimits
	Quota         blockstore.VolumeQuota
	QuotaState    string // "ok", "near full", "nearly full" or "full"
	Unique        blockstore.UniqueUse
	// ReferencedBytes is how much data the volume refers to, at least.
	ReferencedBytes uint64
	// UndestagedBytes is how much of its data, and its snapshots', is in the log alone.
	UndestagedBytes uint64
	OriginVolume    string      // of a clone; empty for others and when it is gone
	OriginSnapshot  string      // of a clone; empty for others and when it is gone
	Attachment      *Attachment // nil when it is not attached
	Restoring       *Restoring  // nil when all of its content is there
}

// VolumeSpec is what a new volume shall be, as text that came from outside.
type VolumeSpec struct {
	Name      string
	SizeBytes uint64
	Chunking  string // empty: cdc
	Mode      string // empty: writeback
}

// CreateVolume makes a volume that reads as zeroes.
func (c *Control) CreateVolume(ctx context.Context, spec VolumeSpec) (Volume, error) {
	checked, err := spec.check()
	if err != nil {
		return Volume{}, fmt.Errorf("create volume: %w", err)
	}
	release, err := c.names.hold(ctx, "creation", spec.Name)
	if err != nil {
		return Volume{}, fmt.Errorf("create volume: %w", err)
	}
	defer release()
	info, err := c.engine.CreateVolume(ctx, checked)
	if err != nil {
		return Volume{}, err
	}
	return c.volume(info), nil
}

func (s VolumeSpec) check() (blockstore.VolumeSpec, error) {
	if err := checkSize(s.SizeBytes); err != nil {
		return blockstore.VolumeSpec{}, errors.Join(checkVolume(s.Name), err)
	}
	return s.checkButSize()
}

func (s VolumeSpec) checkButSize() (blockstore.VolumeSpec, error) {
	spec := blockstore.VolumeSpec{Name: s.Name, SizeBytes: s.SizeBytes}
	if err := checkVolume(s.Name); err != nil {
		return spec, err
	}
	var err error
	if spec.Chunking, err = ParseChunking(s.Chunking); err != nil {
		return spec, err
	}
	spec.Mode, err = parseMode(s.Mode)
	return spec, err
}

func parseMode(text string) (blockstore.WriteMode, error) {
	switch text {
	case "", blockstore.ModeWriteback.String():
		return blockstore.ModeWriteback, nil
	case blockstore.ModeDurable.String():
		return blockstore.ModeDurable, nil
	}
	return 0, fmt.Errorf("write mode %q: use writeback or durable: %w", text, block.ErrInvalid)
}

// Volumes lists the volumes ordered by name. One that is still being imported is not among them.
func (c *Control) Volumes() []Volume {
	infos := c.engine.Volumes()
	volumes := make([]Volume, 0, len(infos))
	for _, info := range infos {
		if !hidden(info.Name) {
			volumes = append(volumes, c.volume(info))
		}
	}
	return volumes
}

// Volume describes one volume.
func (c *Control) Volume(name string) (Volume, error) {
	info, err := c.visible(name)
	if err != nil {
		return Volume{}, err
	}
	return c.volume(info), nil
}

// visible returns the engine's view of a volume that users may name.
func (c *Control) visible(name string) (blockstore.VolumeInfo, error) {
	if err := checkVolume(name); err != nil {
		return blockstore.VolumeInfo{}, err
	}
	return c.engine.Volume(name)
}

// RenameVolume gives a volume that is not attached another name.
func (c *Control) RenameVolume(ctx context.Context, name, newName string) (Volume, error) {
	if err := checkVolume(newName); err != nil {
		return Volume{}, fmt.Errorf("rename volume: %w", err)
	}
	err := c.change(ctx, "rename", name, []string{newName}, func() error {
		if err := cmp.Or(c.refuseAttached("rename", name), c.refuseRestoring("rename", name), c.refuseReplicated("rename", name)); err != nil {
			return err
		}
		err := c.engine.RenameVolume(ctx, name, newName)
		if err == nil {
			c.Alarms().rename(name, newName)
		}
		return err
	})
	if err != nil {
		return Volume{}, err
	}
	return c.Volume(newName)
}

// DeleteVolume deletes a volume that is not attached, and its snapshots, none of which is protected. One that is being restored is restored no more.
func (c *Control) DeleteVolume(ctx context.Context, name string) error {
	return c.change(ctx, "delete", name, nil, func() error {
		if err := c.refuseAttached("delete", name); err != nil {
			return err
		}
		dropped, err := c.dropReplica(name)
		if err != nil {
			return err
		}
		restore, err := c.stopRestore(ctx, name)
		if err == nil {
			err = c.engine.DeleteVolume(ctx, name)
		}
		if err := dropped(err == nil); err != nil {
			c.log.Warn("the replication of a volume that is gone could not be forgotten; the next start will", "volume", name, "error", err)
		}
		if err != nil {
			return err
		}
		c.Alarms().rename(name, "")
		if restore != nil {
			err = c.dropRestore(ctx, restore)
		}
		return err
	})
}

// CloneVolume makes a volume from a snapshot, or from the volume as it is when snapshot is empty.
func (c *Control) CloneVolume(ctx context.Context, name, snapshot, newName string) (Volume, error) {
	if err := checkVolume(newName); err != nil {
		return Volume{}, fmt.Errorf("clone volume: %w", err)
	}
	if snapshot != "" {
		if err := checkSnapshot(snapshot); err != nil {
			return Volume{}, fmt.Errorf("clone volume: %w", err)
		}
	}
	var clone Volume
	err := c.change(ctx, "clone", name, []string{newName}, func() error {
		if err := c.refuseRestoring("clone", name); err != nil {
			return err
		}
		if snapshot == "" {
			point, err := c.stateToRead(name)
			if err != nil {
				return err
			}
			snapshot = point
		}
		info, err := c.engine.Clone(ctx, name, snapshot, newName)
		clone = c.volume(info)
		return err
	})
	return clone, err
}

// change runs do while it holds the volume's name and others. What do returns says itself what failed.
func (c *Control) change(ctx context.Context, verb, name string, others []string, do func() error) error {
	release, err := func() (func(), error) {
		if err := checkVolume(name); err != nil {
			return nil, err
		}
		return c.names.hold(ctx, verb, append([]string{name}, others...)...)
	}()
	if err != nil {
		return fmt.Errorf("%s volume: %w", verb, err)
	}
	defer release()
	return do()
}

// hidden tells names that control keeps for itself.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// volume adds to the engine's view what control knows.
func (c *Control) volume(info blockstore.VolumeInfo) Volume {
	v := Volume{
		UUID:          info.UUID.String(),
		Name:          info.Name,
		SizeBytes:     info.SizeBytes,
		Chunking:      info.Chunking.String(),
		Mode:          info.Mode.String(),
		CreatedAt:     info.CreatedAt,
		SnapshotCount: info.Snapshots,
		Bitmaps:       info.Bitmaps,
		Limits:        info.Limits, UndestagedBytes: info.UndestagedBytes,
		Quota: info.Quota, QuotaState: info.Fill.String(), Unique: info.Unique, ReferencedBytes: info.ReferencedBytes,
		Attachment: c.attachmentOf(info.Name), Restoring: c.restoringOf(info.Name),
	}
	if r, found := c.replicationRecordOf(info.Name); found { // whose points are no snapshots of the user's
		v.SnapshotCount = max(0, v.SnapshotCount-r.points())
	}
	if info.Origin != nil {
		v.OriginVolume, v.OriginSnapshot = info.Origin.Volume, info.Origin.Snapshot
	}
	return v
}
