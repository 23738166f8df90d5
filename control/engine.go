package control

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Engine is the store as control needs it. All methods may be called at once from any number of goroutines.
//
// Errors wrap the sentinels of package block: ErrNotFound for a volume or snapshot that is not there, ErrExists for a taken name,
// ErrInUse where something still depends on what is to go, ErrNoSpace, ErrInvalid, ErrClosed; their text says what failed on which volume.
// What a method changed survives the death of the process when it returns nil, and a power loss after the next Flush of any device; when it
// returns an error nothing has changed.
type Engine interface {
	// CreateVolume makes a volume that reads as zeroes.
	CreateVolume(ctx context.Context, spec blockstore.VolumeSpec) (blockstore.VolumeInfo, error)
	// Volumes lists all volumes ordered by name.
	Volumes() []blockstore.VolumeInfo
	Volume(name string) (blockstore.VolumeInfo, error)
	// RenameVolume gives a volume another name that no volume has.
	RenameVolume(ctx context.Context, name, newName string) error
	// ResizeVolume sets the size of a volume, also of an open one. What lies beyond a smaller size is discarded.
	ResizeVolume(ctx context.Context, name string, sizeBytes uint64) error
	// DeleteVolume deletes a volume and its snapshots. ErrInUse while a device of it is open. Clones stay whole.
	DeleteVolume(ctx context.Context, name string) error

	// CreateSnapshot freezes the volume as it is: every write that was replied is in it.
	CreateSnapshot(ctx context.Context, volume, name string) (blockstore.SnapshotInfo, error)
	// Snapshots lists the snapshots of a volume, oldest first.
	Snapshots(volume string) ([]blockstore.SnapshotInfo, error)
	// DeleteSnapshot deletes a snapshot. ErrInUse while a device of it is open. Clones stay whole.
	DeleteSnapshot(ctx context.Context, volume, name string) error
	// SnapshotFrees is the number of stored bytes that deleting the snapshot now would free.
	SnapshotFrees(ctx context.Context, volume, name string) (uint64, error)
	// Rollback makes the volume what the snapshot is. Snapshots stay. ErrInUse while a device of the volume is open.
	Rollback(ctx context.Context, volume, name string) error
	// Clone makes a volume from a snapshot, or from the volume as it is when snapshot is empty.
	Clone(ctx context.Context, volume, snapshot, newName string) (blockstore.VolumeInfo, error)

	// OpenDevice opens a volume, or read-only one of its snapshots when snapshot is not empty. A volume can be open several times.
	OpenDevice(volume, snapshot string) (Device, error)

	// Stats reads counters; it costs no scan.
	Stats() blockstore.Stats
	// Settle destages and reclaims until nothing is left to do, or ctx ends. progress is called from time to time and must not block.
	Settle(ctx context.Context, progress func(blockstore.SettleProgress)) error
	// Close makes everything durable and lets go of the data directory. All devices are closed before.
	Close() error
}

// Device is an open volume or snapshot.
type Device interface {
	nbd.Device
	// Close ends the use of the device. No call may be running.
	Close() error
}
