package blockstore

import (
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Chunking says how a volume's data is cut into chunks. The zero value cuts by content with the store's parameters.
type Chunking struct {
	// FixedBytes is the length of every chunk, in bytes; 0 cuts by content.
	FixedBytes uint32
	// AverageBytes is the average length of chunks that are cut by content, in bytes, a power of two; 0: that of the store. What is cut with another average shares no data. The
	// index takes memory and disk for each chunk: a quarter of the average is four times as much for the same data.
	AverageBytes uint32
}

// String is "cdc", or "fixed:64KiB", "cdc:8KiB" and the like.
func (c Chunking) String() string {
	kind, n := "fixed", c.FixedBytes
	if n == 0 {
		kind, n = "cdc", c.AverageBytes
	}
	switch {
	case n == 0:
		return kind
	case n%(1<<20) == 0:
		return fmt.Sprintf("%s:%dMiB", kind, n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%s:%dKiB", kind, n>>10)
	}
	return fmt.Sprintf("%s:%d", kind, n)
}

// WriteMode says what a reply to a write promises.
type WriteMode uint8

const (
	// ModeWriteback replies when the write survives the death of the process; power loss from FLUSH and FUA on.
	ModeWriteback WriteMode = iota
	// ModeDurable syncs every write before its reply.
	ModeDurable
)

// String is "writeback" or "durable".
func (m WriteMode) String() string {
	switch m {
	case ModeWriteback:
		return "writeback"
	case ModeDurable:
		return "durable"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// VolumeSpec is what a new volume shall be.
type VolumeSpec struct {
	// Name is unique among the volumes of the store: 1 to 128 bytes of [A-Za-z0-9._-]. A leading dot is allowed here; control keeps such
	// names for itself.
	Name string
	// SizeBytes is a multiple of block.SectorSize, at least that and at most block.MaxVolumeSize.
	SizeBytes uint64
	Chunking  Chunking
	Mode      WriteMode
}

// VolumeInfo describes a volume at one moment.
type VolumeInfo struct {
	ID        block.VolumeID
	UUID      block.UUID
	Name      string
	SizeBytes uint64
	Chunking  Chunking
	Mode      WriteMode
	CreatedAt time.Time
	Snapshots int      // how many snapshots it has
	Bitmaps   []string // names of its bitmaps, those first that began first
	Limits    VolumeLimits
	Quota     VolumeQuota
	Fill      FillState // of the quota, that of its bounds that is fuller
	// Unique is what its bound on unique data was measured by last; zero without one, and before the first survey.
	Unique UniqueUse
	// ReferencedBytes is how much data the volume refers to, at least: what is overwritten in the log counts twice until it is destaged, and what was trimmed until that is worked off.
	ReferencedBytes uint64
	// UndestagedBytes is how much data of the volume and its snapshots is in the log alone.
	UndestagedBytes uint64
	// Origin is the snapshot a clone was made from; nil for other volumes.
	Origin *Origin
}

// Origin names the snapshot that a clone was made from. The names are today's; they are empty once volume or snapshot are gone.
type Origin struct {
	Volume   string
	Snapshot string
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Name      string
	SizeBytes uint64 // of the volume when it was taken
	// Epoch is the sequence number of the log at which it was taken: of several volumes the same where they were taken together.
	Epoch     block.Epoch
	CreatedAt time.Time
	Protected bool // may not be deleted
	Automatic bool // a schedule made it, and nobody renamed it since
	Clones    int  // volumes that were made from it and are there
}

// SpaceState says how full the file system under the store is.
type SpaceState uint8

const (
	// SpaceOK means that less than the first mark is used: Options.Marks, 85 % by default.
	SpaceOK SpaceState = iota
	// SpaceNearFull means that or more.
	SpaceNearFull
	// SpaceCritical means the second mark or more, 95 % by default.
	SpaceCritical
	// SpaceFull means that only the reserve is left: writes that need room are refused.
	SpaceFull
)

// String is "ok", "near full", "nearly full" or "full".
func (s SpaceState) String() string {
	switch s {
	case SpaceOK:
		return "ok"
	case SpaceNearFull:
		return "near full"
	case SpaceCritical:
		return "nearly full"
	case SpaceFull:
		return "full"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Stats are counters and sizes of a store. Reading them costs no scan; they need not agree with each other to the last byte.
type Stats struct {
	Volumes   int
	Snapshots int

	// Sizes of data, in bytes.

	LogicalBytes    uint64 // sizes of all volumes together
	NonZeroBytes    uint64 // what the volumes and snapshots refer to: every extent counted with each reference
	UniqueBytes     uint64 // chunks that something refers to, each counted once, before compression
	SharedBytes     uint64 // part of UniqueBytes that has more than one reference
	StoredBytes     uint64 // bytes of segments that hold UniqueBytes, after compression, with headers
	HeldUnusedBytes uint64 // bytes of segments that nothing refers to and that are not reclaimed yet
	MetadataBytes   uint64 // maps, chunk rows and hints on disk, and their checkpoints

	// Parity of sealed segments, in bytes: what its sidecars take, and how much of the segments has one and has none. None of it is in the sizes above.

	ParityBytes    uint64
	GuardedBytes   uint64
	UnguardedBytes uint64

	// The cold class, in bytes before compression: what of UniqueBytes lies in it, and what the pass in the background still has to move; what went there since the open, how
	// much of that was packed behind something that it is like, what that saved by an estimate, and the time of the workers that it took to find that out.

	ColdBytes        uint64
	CoolingBytes     uint64
	CooledBytes      uint64
	SimilarBytes     uint64
	SimilarSaved     uint64 // bytes after compression
	SimilarWorkerFor time.Duration

	// Damage of segments, sealed files of history, and sidecars since the open, in columns of 4 KiB.

	DamageFound        uint64
	DamageMended       uint64
	DamageLost         uint64
	InlineRepairs      uint64 // reads that parity or a second copy answered
	HistoryBytes       uint64 // of the files that history is in; what its roots hold is in the segments
	HistoryParityBytes uint64 // of sidecars of these files
	HistoryDropped     uint64 // how often history within a window went, for its budget or because it could not go on, since the store was opened
	SecondCopyBytes    uint64 // of the file with frames that very many references lead to

	// Space of the file system, in bytes.

	Space        SpaceState
	FreeBytes    uint64 // free for the store, the reserve not included
	ReserveBytes uint64 // kept for destage, delete and reclaim

	// The log.

	LogCapBytes     uint64        // most that all files of the log may take, but for streams that have room of their own
	StreamUsedBytes uint64        // what these take
	StreamRoomBytes uint64        // and may take
	LogUsedBytes    uint64        // files that cannot be recycled yet
	UndestagedBytes uint64        // payload that is in no segment yet
	DestageLag      time.Duration // age of the oldest such payload; 0 when there is none
	DestagePaused   bool

	// Traffic since the store was opened.

	GuestReadBytes    uint64
	GuestWrittenBytes uint64
	DiskWrittenBytes  uint64 // log, segments and metadata together
	Syncs             uint64
	Corruptions       uint64 // times that data failed its check

	Caches []CacheStats
	Memory []MemoryPart
}

// CacheStats counts one cache since the store was opened.
type CacheStats struct {
	Name   string
	Hits   uint64
	Misses uint64
}

// MemoryPart is one consumer of memory and its bound.
type MemoryPart struct {
	Name        string
	UsedBytes   uint64
	BudgetBytes uint64 // 0: not bounded by itself
}

// SettleProgress says how far a settle is.
type SettleProgress struct {
	Phase     string // "destage", "index", "reclaim", "checkpoint"
	DoneBytes uint64 // of this phase
	LeftBytes uint64 // of this phase, as far as known
}
