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
}

// String is "cdc", or "fixed:64KiB" and the like.
func (c Chunking) String() string {
	switch {
	case c.FixedBytes == 0:
		return "cdc"
	case c.FixedBytes%(1<<20) == 0:
		return fmt.Sprintf("fixed:%dMiB", c.FixedBytes>>20)
	case c.FixedBytes%(1<<10) == 0:
		return fmt.Sprintf("fixed:%dKiB", c.FixedBytes>>10)
	}
	return fmt.Sprintf("fixed:%d", c.FixedBytes)
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
	Snapshots int // how many snapshots it has
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
	Epoch     block.Epoch
	CreatedAt time.Time
}

// SpaceState says how full the file system under the store is.
type SpaceState uint8

const (
	// SpaceOK means that less than 85 % is used.
	SpaceOK SpaceState = iota
	// SpaceNearFull means 85 % or more.
	SpaceNearFull
	// SpaceFull means that only the reserve is left: writes that need room are refused.
	SpaceFull
)

// String is "ok", "near full" or "full".
func (s SpaceState) String() string {
	switch s {
	case SpaceOK:
		return "ok"
	case SpaceNearFull:
		return "near full"
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
	MetadataBytes   uint64 // maps, chunk rows and hints on disk

	// Space of the file system, in bytes.

	Space        SpaceState
	FreeBytes    uint64 // free for the store, the reserve not included
	ReserveBytes uint64 // kept for destage, delete and reclaim

	// The log.

	LogCapBytes     uint64        // most that all files of the log may take
	LogUsedBytes    uint64        // files that cannot be recycled yet
	UndestagedBytes uint64        // payload that is in no segment yet
	DestageLag      time.Duration // age of the oldest such payload; 0 when there is none
	DestagePaused   bool

	// Traffic since the store was opened.

	GuestReadBytes    uint64
	GuestWrittenBytes uint64
	DiskWrittenBytes  uint64 // log, segments and metadata together
	Syncs             uint64

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
	Phase     string // "destage", "reclaim"
	DoneBytes uint64 // of this phase
	LeftBytes uint64 // of this phase, as far as known
}
