package blockstore

import (
	"fmt"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Options configure a store. The zero value of each field but Dir means its default.
type Options struct {
	// Dir is the data directory. It is created when missing.
	Dir string
	// FS is the file system; default the operating system's.
	FS vfs.FS
	// LogCapBytes bounds the log's files together; default 2 GiB, at least 64 MiB.
	LogCapBytes int64
	// LogFileBytes is the size of one log file; default 64 MiB, less when the cap is small.
	LogFileBytes int64
	// MemoryBytes bounds the engine's caches, overlays and buffers together; default 320 MiB, at least 32 MiB.
	MemoryBytes int64
	// Chunking is the default cut of new volumes; default content-defined, average 16 KiB. It is recorded at a store's creation.
	Chunking cdc.Params
	// SyncEvery bounds how long an acknowledged write may stay unsynced; default 1 s.
	SyncEvery time.Duration
	// DestageAfter is the age at which data in the log is destaged even when the log has room; default 30 s.
	DestageAfter time.Duration
	// Workers is how many goroutines hash and compress; default the number of CPUs.
	Workers int
	// ReserveBytes of the file system are kept for destage, deletes and reclaim; default max(1 GiB, 3 %), less on small file systems.
	ReserveBytes int64
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Events receives noteworthy events; fields may be nil.
	Events Events
	// ReduceOff stores chunks without lookup and compression, to measure what reduction costs.
	ReduceOff bool

	// atMoment is set by tests that stop the engine between two steps (moment.go).
	atMoment func(moment)
}

// Events are called, if set, from the engine's goroutines; they must not block.
type Events struct {
	// Corruption reports bytes that failed their check.
	Corruption func(err error)
	// SpaceState reports a change between ok, near-full and full.
	SpaceState func(state SpaceState, freeBytes int64)
	// BackgroundError reports that background work failed and will be tried again.
	BackgroundError func(task string, err error)
	// Recovered reports what an open replayed.
	Recovered func(RecoveryInfo)
}

// RecoveryInfo says what the open of a store replayed.
type RecoveryInfo struct {
	Clean    bool // the store had been closed
	Records  int64
	Bytes    int64 // payload bytes that are in overlays again
	Duration time.Duration
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.LogCapBytes == 0 {
		o.LogCapBytes = 2 << 30
	}
	if o.LogFileBytes == 0 {
		o.LogFileBytes = min(64<<20, o.LogCapBytes/8)
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 320 << 20
	}
	if o.Chunking == (cdc.Params{}) {
		o.Chunking = cdc.Default()
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = time.Second
	}
	if o.DestageAfter == 0 {
		o.DestageAfter = 30 * time.Second
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Validate reports the first option that is out of bounds.
func (o Options) Validate() error {
	switch {
	case o.Dir == "":
		return fmt.Errorf("data directory is not set: %w", block.ErrInvalid)
	case o.LogCapBytes != 0 && o.LogCapBytes < 64<<20:
		return fmt.Errorf("log cap of %d B is below 64 MiB: %w", o.LogCapBytes, block.ErrInvalid)
	case o.MemoryBytes != 0 && o.MemoryBytes < 32<<20:
		return fmt.Errorf("memory budget of %d B is below 32 MiB: %w", o.MemoryBytes, block.ErrInvalid)
	case o.Workers < 0 || o.Workers > 1024:
		return fmt.Errorf("%d workers: %w", o.Workers, block.ErrInvalid)
	}
	return nil
}

// memoryPlan divides the budget between the parts that hold memory. Shares were chosen so that each part still works at the least budget.
type memoryPlan struct {
	overlay int64 // slots of data in the log
	frames  int64 // decoded frames
	pages   int64 // region pages and nodes
	pebble  int64 // block cache
	memtbl  int64 // one of two memtables
	batch   int64 // raw bytes of one destage batch
}

func planMemory(total int64) memoryPlan {
	return memoryPlan{
		overlay: total * 30 / 100,
		frames:  total * 20 / 100,
		pages:   total * 12 / 100,
		pebble:  total * 12 / 100,
		memtbl:  max(1<<20, total*4/100),
		batch:   max(4<<20, total*8/100),
	}
}
