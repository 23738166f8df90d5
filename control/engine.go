package control

import (
	"context"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Engine is the store as control needs it. All methods may be called at once from any number of goroutines.
//
// Errors wrap the sentinels of package block: ErrNotFound for a volume or snapshot that is not there, ErrExists for a taken name,
// ErrInUse where something still depends on what is to go, ErrProtected, ErrNoSpace, ErrInvalid, ErrClosed; their text says what failed on which volume.
// What a method changed, limits and quotas aside, survives the death of the process when it returns nil, and a power loss after the next Flush of any device; when it
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
	// SetVolumeLimits puts limits in force at once. They end with the process.
	SetVolumeLimits(name string, limits blockstore.VolumeLimits) error
	// SetVolumeQuota puts a quota in force at once. It ends with the process. ErrNoSpace when so much cannot be kept, unless restoring.
	SetVolumeQuota(name string, quota blockstore.VolumeQuota, restoring bool) error
	// DeleteVolume deletes a volume and its snapshots. ErrInUse while a device of it is open, ErrProtected where a snapshot is. Clones stay whole.
	DeleteVolume(ctx context.Context, name string) error

	// CreateSnapshot freezes the volume as it is: every write that was replied is in it.
	CreateSnapshot(ctx context.Context, volume, name string) (blockstore.SnapshotInfo, error)
	// CreateSnapshots freezes several volumes at one moment, all or none. Automatic marks those that a schedule makes.
	CreateSnapshots(ctx context.Context, names []blockstore.StateName, automatic bool) ([]blockstore.SnapshotInfo, error)
	// Snapshots lists the snapshots of a volume, oldest first.
	Snapshots(volume string) ([]blockstore.SnapshotInfo, error)
	// RenameSnapshot gives a snapshot another name that no other of the volume has. ErrInUse while a device of it is open.
	RenameSnapshot(ctx context.Context, volume, name, newName string) error
	// ProtectSnapshot makes a snapshot, and its volume, one that cannot be deleted, or takes that back.
	ProtectSnapshot(ctx context.Context, volume, name string, protect bool) error
	// DeleteSnapshot deletes a snapshot. ErrInUse while a device of it is open, ErrProtected where it is. Clones stay whole.
	DeleteSnapshot(ctx context.Context, volume, name string) error
	// SnapshotFrees is the number of stored bytes that deleting the snapshot now would free.
	SnapshotFrees(ctx context.Context, volume, name string) (uint64, error)
	// Rollback makes the volume what the snapshot is. Snapshots stay. ErrInUse while a device of the volume is open.
	Rollback(ctx context.Context, volume, name string) error
	// Clone makes a volume from a snapshot, or from the volume as it is when snapshot is empty.
	Clone(ctx context.Context, volume, snapshot, newName string) (blockstore.VolumeInfo, error)

	// AddBitmap begins to remember what changes in a volume, under a name that no snapshot of it has. ErrInvalid when it has as many as it can.
	AddBitmap(ctx context.Context, volume, name string) (blockstore.BitmapInfo, error)
	// ClearBitmap lets a bitmap begin again from now.
	ClearBitmap(ctx context.Context, volume, name string) (blockstore.BitmapInfo, error)
	// RemoveBitmap forgets a bitmap, whoever uses it.
	RemoveBitmap(ctx context.Context, volume, name string) error
	// Bitmaps lists the bitmaps of a volume, those first that began first.
	Bitmaps(volume string) ([]blockstore.BitmapInfo, error)

	// OpenDevice opens a volume, or read-only one of its snapshots when snapshot is not empty. A volume can be open several times.
	OpenDevice(volume, snapshot string) (Device, error)

	// Diff tells the ranges in which the state to may differ from the state from, in order, until emit returns false.
	Diff(ctx context.Context, from, to blockstore.StateName, emit func(blockstore.Change) bool) error

	// Stats reads counters; it costs no scan.
	Stats() blockstore.Stats
	// Settle destages and reclaims until nothing is left to do, or ctx ends. progress is called from time to time and must not block.
	Settle(ctx context.Context, progress func(blockstore.SettleProgress)) error
	// CollectGarbage gives back what is dead in segments and returns when it is gone, or ctx ends. ErrInUse while garbage collection is paused.
	CollectGarbage(ctx context.Context, progress func(blockstore.SettleProgress)) error
	// Audit marks what can be reached and compares that with what is stored; ErrCorrupt if that is not as it should be. progress is told bytes of rows.
	Audit(ctx context.Context, progress func(done, total uint64)) (blockstore.AuditReport, error)
	// PauseGC and ResumeGC stop and let go on that space is given back, across restarts.
	PauseGC() (blockstore.GCStatus, error)
	ResumeGC() (blockstore.GCStatus, error)
	// GC returns how garbage collection is doing.
	GC() blockstore.GCStatus
	// SettleCold is Settle, and rewrites all that is stored into cold segments in between.
	SettleCold(ctx context.Context, progress func(blockstore.SettleProgress)) error
	// StartScrub begins to verify everything that is sealed, and to mend it unless findOnly. ErrInUse while a scrub is under way.
	StartScrub(findOnly bool) (blockstore.ScrubStatus, error)
	// PauseScrub, ResumeScrub and CancelScrub change the scrub that is under way; ErrInvalid if none is.
	PauseScrub() (blockstore.ScrubStatus, error)
	ResumeScrub() (blockstore.ScrubStatus, error)
	CancelScrub() (blockstore.ScrubStatus, error)
	// Scrub returns how far the scrub is that runs or ran last.
	Scrub() blockstore.ScrubStatus
	// RebuildIndex throws the index away and begins a new one, which is completed in the background.
	RebuildIndex() error
	// Index says how far the index is. It does not wait.
	Index() blockstore.IndexInfo
	// Repair tries again to mend what is known to be damaged and returns when that is done; Damages says what came of it.
	Repair(ctx context.Context) error
	// Damages lists the segments that were found damaged since the start.
	Damages() []blockstore.Damage
	// LostChunks lists chunks that cannot be read, by their ids from after on, and whether there are more. It reads all maps if there are any.
	LostChunks(ctx context.Context, after block.ChunkID) ([]blockstore.LostChunk, bool, error)
	// Heal takes bytes of lost chunks, of which only those with the chunk's hash count, and returns the ids of the chunks that are whole now, durably.
	Heal(ctx context.Context, all []blockstore.ChunkBytes) ([]block.ChunkID, error)
	// Redundancy tells how the disks are.
	ProbeDisks()
	Redundancy() blockstore.Redundancy
	// ReplaceDisk takes a directory in the place of a disk, and makes what that held anew in the background.
	ReplaceDisk(old, path string) error
	// Explain surveys where the savings of a volume come from, or of all but those that skip names. It ends with ctx. progress must not block.
	Explain(ctx context.Context, volume string, skip func(name string) bool, progress func(blockstore.ExplainProgress)) (*blockstore.Explanation, error)
	// SetHistory says how much of a volume's past can be had again, durably; the zero value gives all of it up. ErrInUse while a moment of it is open.
	SetHistory(ctx context.Context, volume string, policy blockstore.HistoryPolicy) error
	// HoldHistory lets no history expire while it is held, as it is when the engine was opened: moments that are attached are closed at the end, and opened again by the next start.
	HoldHistory(hold bool)
	// History describes the history of a volume; ErrNotFound if it has none.
	History(volume string) (blockstore.HistoryInfo, error)
	// HistoryPoints lists moments that have a name, a page at a time.
	HistoryPoints(ctx context.Context, volume string, q blockstore.PointQuery) ([]blockstore.Point, error)
	// HistoryLoss tells what SetHistory would give up; ErrNotFound if the volume has no history, ErrInUse where SetHistory is.
	HistoryLoss(ctx context.Context, volume string, policy blockstore.HistoryPolicy) (blockstore.HistoryLoss, error)
	// MarkHistory names the present moment of a volume, durably.
	MarkHistory(ctx context.Context, volume, label string) (blockstore.Point, error)
	// HistoryActivity tells what was written to a volume in its history, in stretches of a length.
	HistoryActivity(ctx context.Context, volume string, stretch time.Duration) ([]blockstore.Activity, error)
	// OpenPoint opens a moment of a volume, to read it, and tells which it is.
	OpenPoint(ctx context.Context, volume string, m blockstore.Moment) (Device, OpenedMoment, error)
	// RestorePoint makes a volume that begins as an open moment.
	RestorePoint(ctx context.Context, moment Device, name string) error
	// Encryption says who can open the store; nil if it is not encrypted.
	Encryption() *blockstore.Encryption
	// Alarms is where the engine tells how full things are.
	Alarms() *Alarms
	// Close makes everything durable and lets go of the data directory. All devices are closed before.
	Close() error
}

// Device is an open volume or snapshot.
type Device interface {
	nbd.Device
	nbd.AheadFlusher
	nbd.Paced
	// Depths tells which state the bytes come from: 0 none, 1 the device's own, 2 the snapshot it stands on, and so on.
	Depths(ctx context.Context, r block.Range, emit func(n uint64, depth uint32) bool) error
	// ChangeBases returns the names of the snapshots and bitmaps that Changes can count from.
	ChangeBases() []string
	// Changes tells what may differ from an older snapshot, or has changed since a bitmap began.
	Changes(ctx context.Context, base string, r block.Range, emit func(n uint64, changed bool) bool) error
	// Close ends the use of the device. No call may be running.
	Close() error
}

// OpenedMoment says which moment of a volume was opened.
type OpenedMoment struct {
	Seq     uint64
	At      time.Time
	Thinned bool // it is the newest point that thinning left at or before what was asked for
}
