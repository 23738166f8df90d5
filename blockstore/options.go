package blockstore

import (
	"fmt"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Options configure a store. The zero value of each field but Dir means its default.
type Options struct {
	// Dir is the data directory. It is created when missing.
	Dir string
	// Disks are the directories of further disks, for redundancy (disks.go). Default none.
	Disks []string
	// LogCopies is how many disks hold the log, the data directory included, 1 to 3; default one more than Stripe has parity, or as many as there are.
	LogCopies int
	// Stripe is how sealed segments are cut over the disks. Another shape is brought about in the background; none makes them whole in the data directory.
	Stripe erasure.Shape
	// RestoreDataDir makes a data directory that is lost anew from the disks. Else one that is empty is refused while disks hold a store.
	RestoreDataDir bool
	// Keys open a store that is encrypted at rest, and have a new one encrypted (keys.go).
	Keys Keys
	// FS is the file system; default the operating system's.
	FS vfs.FS
	// LogCapBytes bounds the log's files together; default 2 GiB, at least 64 MiB.
	LogCapBytes int64
	// StreamBytes is what streams of large writes may take in the log beside LogCapBytes, at most a sixteenth of the file system; default none (streams.go).
	StreamBytes int64
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
	// Parity is the shape of the sidecars that sealed segments and sealed files of history get; default none. Another shape is brought about in the background.
	Parity erasure.Shape
	// KeepBytesPerSecond is the budget of parity, scrub and repair: bytes read and written; default 96 MiB, a quarter of it while guests are served.
	KeepBytesPerSecond int64
	// GCBytesPerSecond and GCRequestsPerSecond are the budget of garbage collection: bytes read and written, and requests for them, of devices; default 128 MiB and 2,000, a
	// quarter of them while guests are served. A settle takes all of it then, and what it can get while nobody is served. On a full disk it does not count.
	GCBytesPerSecond    int64
	GCRequestsPerSecond int64
	// ColdAfter is how long a segment must have been left alone before what lives in it goes cold in the background, within the budget of KeepBytesPerSecond; default 24 h, below 0
	// never. The clock starts anew with each open.
	ColdAfter time.Duration
	// SimilarOff packs cold chunks in the order of their places alone, and not beside chunks that are like them.
	SimilarOff bool
	// ColdEffort is how hard what goes cold is compressed; default segment.Low. segment.High also makes frames of 4 MiB, if MemoryBytes has room for some of them.
	ColdEffort segment.Effort
	// Marks say from when on the file system and quotas count as near full; zero is 85 and 95 percent.
	Marks FullMarks
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Events receives noteworthy events; fields may be nil.
	Events Events
	// ReduceOff stores chunks without lookup and compression, to measure what reduction costs.
	ReduceOff bool

	// Sizes of checkpoints, in bytes, that tests make small. 0 is the default.
	fullAfterBytes       int64 // of deltas, until a full checkpoint is due
	metadataSegmentBytes int64 // of a segment of checkpoints
	checkpointPartBytes  int   // of a part

	auditBytes int64 // bound of an audit's bitmap; tests make it small, for many passes

	streamWrite int // of streams.go; tests make them small
	streamFrom  int64
	quietAfter  time.Duration // of hotset.go; tests make it short
	secondEvery time.Duration // of second.go; tests make it short
	coolLeast   int64         // of cooler.go; tests make it small

	// HoldHistory lets no history expire until Store.HoldHistory(false), so that moments that were open in an earlier run can be opened again.
	HoldHistory bool

	historyRootBytes int64 // of historyroots.go; tests make it small
	historyRootLayer int64 // of historystretch.go; tests make it small

	metaFormat pebble.FormatMajorVersion // of new metadata; tests make a store of an older program

	smallParts bool // tests keep even small pages of maps in parts, to meet many

	explainShift uint // of explain.go: at least so rare a sample; tests make a small store a large one

	// atMoment is set by tests that stop the engine between two steps (moment.go).
	atMoment func(moment)
}

// Events are called, if set, from the engine's goroutines; they must not block.
type Events struct {
	// Corruption reports bytes that failed their check.
	Corruption func(err error)
	// Damage reports a segment, or a file of history, that was found damaged, mended or not; Corruption reports one that could not be mended, too.
	Damage func(Damage)
	// Disk reports a directory of a disk that fell out or is in sync again. err says why, where something failed.
	Disk func(dir, state string, err error)
	// SpaceState reports a change between ok, near-full and full.
	SpaceState func(state SpaceState, freeBytes int64)
	// QuotaState reports a change of how full a bound of a volume's quota is. limitBytes is 0 when it was taken away.
	QuotaState func(volume string, kind QuotaKind, state FillState, usedBytes, limitBytes uint64)
	// HistoryGap reports that the history of a volume could not go on and begins anew, and why: what lies before cannot be had any more.
	HistoryGap func(volume string, cause error)
	// HistoryDropped reports that history within a volume's window went because of its budget, and what it takes now.
	HistoryDropped func(volume string, bytes int64)
	// BackgroundError reports that background work failed and will be tried again.
	BackgroundError func(task string, err error)
	// Recovered reports what an open replayed.
	Recovered func(RecoveryInfo)
}

// RecoveryInfo says what the open of a store replayed.
type RecoveryInfo struct {
	Created  bool // the store is new
	Clean    bool // the store had been closed
	Records  int64
	Bytes    int64 // payload bytes that are in overlays again
	Duration time.Duration
	// Rebuilt says that the metadata was lost and made anew before; nil if it was not.
	Rebuilt *RebuildInfo
	// Unindexed is how many ids of chunks the index does not have: all when it was lost, some after a crash. They are put in again in the background; until then some of what
	// is written is stored a second time.
	Unindexed uint64
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
	if o.metaFormat == 0 {
		o.metaFormat = metaFormat
	}
	if o.streamWrite == 0 {
		o.streamWrite = streamWrite
	}
	if o.streamFrom == 0 {
		o.streamFrom = streamFrom
	}
	if o.quietAfter == 0 {
		o.quietAfter = quietAfter
	}
	if o.Workers == 0 {
		o.Workers = min(runtime.NumCPU(), runtime.GOMAXPROCS(0))
	}
	if o.ColdAfter == 0 {
		o.ColdAfter = 24 * time.Hour
	}
	if o.secondEvery == 0 {
		o.secondEvery = secondEvery
	}
	if o.coolLeast == 0 {
		o.coolLeast = coolLeast
	}
	if o.KeepBytesPerSecond == 0 {
		o.KeepBytesPerSecond = 96 << 20
	}
	if o.GCBytesPerSecond == 0 {
		o.GCBytesPerSecond = 128 << 20
	}
	if o.GCRequestsPerSecond == 0 {
		o.GCRequestsPerSecond = 2000
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
	case o.StreamBytes < 0:
		return fmt.Errorf("room of %d B for streams: %w", o.StreamBytes, block.ErrInvalid)
	case o.MemoryBytes != 0 && o.MemoryBytes < 32<<20:
		return fmt.Errorf("memory budget of %d B is below 32 MiB: %w", o.MemoryBytes, block.ErrInvalid)
	case o.Workers < 0 || o.Workers > 1024:
		return fmt.Errorf("%d workers: %w", o.Workers, block.ErrInvalid)
	case o.KeepBytesPerSecond < 0 || o.KeepBytesPerSecond != 0 && o.KeepBytesPerSecond < 64<<10:
		return fmt.Errorf("a budget of %d B/s for parity and scrub is below 64 KiB/s: %w", o.KeepBytesPerSecond, block.ErrInvalid)
	case o.GCBytesPerSecond < 0 || o.GCBytesPerSecond != 0 && o.GCBytesPerSecond < 64<<10:
		return fmt.Errorf("a budget of %d B/s for garbage collection is below 64 KiB/s: %w", o.GCBytesPerSecond, block.ErrInvalid)
	case o.GCRequestsPerSecond < 0:
		return fmt.Errorf("a budget of %d requests a second for garbage collection: %w", o.GCRequestsPerSecond, block.ErrInvalid)
	}
	if err := o.validateDisks(); err != nil {
		return err
	}
	if err := o.Marks.Validate(); err != nil {
		return err
	}
	return o.Parity.Validate()
}

// memoryPlan divides the budget between the parts that hold memory. Shares were chosen so that each part still works at the least budget.
type memoryPlan struct {
	regions int   // buffers of one region each that destage borrows while it works
	hints   int64 // filter of known hashes
	overlay int64 // slots of data in the log
	frames  int64 // decoded frames
	pages   int64 // region pages and nodes
	rows    int64 // chunk rows
	recent  int64 // hints found lately
	pebble  int64 // block cache of the metadata
	memtbl  int64 // one of three memtables of the metadata
	batch   int64 // the rows of one metadata batch of destage

	index    int64 // block cache of the index
	indextbl int64 // one of three memtables of the index
}

// group is how many raw bytes go into one metadata batch of destage: a chunk has 4 KiB at least and takes less than 1 KiB of rows.
func (p memoryPlan) group() int64 { return 4 * p.batch }

const (
	// twoRegionsFrom is the budget at which destage has a second buffer, so that it reads and hashes a region while it packs another one.
	twoRegionsFrom = 96 << 20
	// leastHints is what the hashes of 64 GiB of unique data need. Without a filter each new chunk costs a look at tables that a small block cache does not hold.
	leastHints = 10 << 20
	// manyParts is what the parts that give way to the filter need to work well, whatever is stored.
	manyParts = 64 << 20
	// slotMemory is what a block in the log takes in an overlay, where few blocks lie together: a slot, and its share of leaf and region.
	slotMemory = 64
)

// planMemory takes off first what cannot be smaller: the buffers of destage, which have the size of a region, and the filter, which follows from what is stored; and what need
// not be larger, the slots of all that the log can hold. The shares of the rest leave some percent for what is not counted.
func planMemory(total, logCap int64) memoryPlan {
	regions := 1
	if total >= twoRegionsFrom {
		regions = 2
	}
	rest := total - int64(regions)*block.RegionSize
	hints := max(rest*8/100, min(rest/3, leastHints))
	rest -= hints
	overlay := min(rest*32/100, logCap/block.Size*slotMemory)
	rest -= overlay
	return memoryPlan{
		regions: regions,
		hints:   hints,
		overlay: overlay,
		frames:  rest * 20 / 100,
		pages:   rest * 12 / 100,
		rows:    rest * 9 / 100,
		recent:  rest * 4 / 100,
		pebble:  rest * 12 / 100,
		memtbl:  max(256<<10, rest*2/100),
		batch:   max(1<<20, rest*9/100),

		index:    rest * 6 / 100, // the filters of the tables above the last level, or each look for a hash reads some of them
		indextbl: max(256<<10, rest*4/100),
	}
}

// OutsideHeap is the memory that a store with these options takes beside Go's heap: whoever sets a limit on the heap takes it off. The decoded frames lie there.
func OutsideHeap(o Options) int64 {
	o = o.withDefaults()
	return planMemory(o.MemoryBytes, o.LogCapBytes).frames
}

// forChunks is the plan for a store that has so many chunks: beyond what the plan gives it, the filter of hints takes up to half of what other parts have, and
// three quarters of what they have above manyParts, until there are ten bits for each hash. Without a filter each
// new chunk of a large store costs a look at tables that a small cache does not hold.
func (p memoryPlan) forChunks(chunks uint64) memoryPlan {
	need := int64(hintRoom(chunks))*10/8 - p.hints
	if need <= 0 {
		return p
	}
	if p.regions > 1 {
		p.regions--
		p.hints += min(need, block.RegionSize)
		if need -= block.RegionSize; need <= 0 {
			return p
		}
	}
	parts := []*int64{&p.overlay, &p.frames, &p.pages, &p.rows, &p.recent, &p.batch}
	pool := int64(0)
	for _, part := range parts {
		pool += *part
	}
	const slack = 1 << 20 // what rounding and the least batch take
	give := min(need+slack, pool/2+max(0, pool-manyParts)/4)
	for _, part := range parts {
		*part -= int64(float64(*part) * float64(give) / float64(pool))
	}
	p.batch = max(1<<20, p.batch)
	p.hints += max(0, give-slack)
	return p
}
