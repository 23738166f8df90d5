package blockstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// Open opens the store in opts.Dir, and makes one there when the directory is empty or missing. It returns ErrLocked when another process has it open, ErrVersion when
// its format is not this program's, and ErrCorrupt when what it needs to start is damaged. Nothing is read of what the store holds but the log, from the last watermark on.
func Open(ctx context.Context, opts Options) (_ *Store, err error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := newStore(opts.withDefaults())
	defer func() {
		if err != nil {
			err = fmt.Errorf("open store %s: %w", opts.Dir, err)
			s.abandon()
		}
	}()
	if err := s.fs.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = s.fs.Lock(s.path("lock")); err != nil {
		var file *os.PathError // the file could not be opened at all, as on a read-only file system
		if errors.As(err, &file) {
			return nil, err
		}
		return nil, fmt.Errorf("%w (%v)", block.ErrLocked, err)
	}
	if err := s.openSuper(); err != nil {
		return nil, err
	}
	if err := s.openTiers(); err != nil {
		return nil, err
	}
	rebuilt, err := s.openRows(ctx)
	if err != nil {
		return nil, err
	}
	s.chunks = newChunkReader(s, s.plan.rows, s.plan.frames)
	if err := s.dropOldHints(); err != nil {
		return nil, fmt.Errorf("drop hints of an earlier version: %w", err)
	}
	s.index.open(rebuilt != nil)
	if err := s.historian.open(); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	info, err := s.recover()
	if err != nil {
		return nil, err
	}
	if err := s.historian.begin(); err != nil {
		return nil, fmt.Errorf("go on with history: %w", err)
	}
	info.Rebuilt = rebuilt
	info.Unindexed = s.index.state.missing(s.c.NextChunk)
	if n := s.c.Lost; n > 0 {
		s.reportCorruption(fmt.Errorf("%d chunks were in no segment when the metadata was made anew: their blocks give EIO until they are written over; store check names them: %w", n, block.ErrCorrupt))
	}
	if len(s.opts.Disks) > 0 {
		s.copySuper(s.super) // to those disks, too, that were not in use before
	}
	if err := s.tidySegments(ctx); err != nil {
		return nil, err
	}
	if err := s.initialize(ctx); err != nil {
		return nil, err
	}
	s.start()
	if f := s.opts.Events.Recovered; f != nil {
		f(info)
	}
	return s, nil
}

func newStore(opts Options) *Store {
	s := &Store{
		opts: opts, plan: planMemory(opts.MemoryBytes, opts.LogCapBytes), fs: opts.FS,
		volumes: map[block.VolumeID]*Volume{}, names: map[string]*Volume{}, nodes: map[nodeID]*node{}, dirty: newDirtySet(),
		started: opts.Now(), cleaner: newMetaCleaner(),
	}
	s.countCorruption()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.budget = overlay.NewBudget(s.plan.overlay)
	s.segments.s, s.segments.rows = s, map[block.SegmentID]*segmentRow{}
	s.sums = map[rowKey]uint64{}
	s.space = newSpaceGate(s)
	s.worker = newWorker(s)
	s.freeTouched.Store(true) // an earlier run may have left some
	s.keeper = newKeeper(s)
	s.collector = newCollector(s)
	s.recuts.budget.s = s
	s.historian = newHistorian(s)
	s.thinner = newThinner(s)
	s.surveyor = newSurveyor(s)
	s.checkpoints = newCheckpointer(s)
	s.logs = newMetaLogs(s.fs, opts.Dir)
	s.packer.init(s, warmForm)
	s.mover.init(s, warmForm)
	s.cold.init(s, coldFormFor(s.plan.frames, s.opts.ColdEffort))
	s.cooler.s, s.cooler.pace.s = s, s
	s.index.s, s.indexer = s, newIndexer(s)
	return s
}

// countCorruption makes every report of damage count, whoever else hears of it.
func (s *Store) countCorruption() {
	told := s.opts.Events.Corruption
	s.opts.Events.Corruption = func(err error) {
		s.corruptions.Add(1)
		if told != nil {
			told(err)
		}
	}
}

// reportCorruption tells of damage.
func (s *Store) reportCorruption(err error) { s.opts.Events.Corruption(err) }

// start begins background work.
func (s *Store) start() {
	s.destager = newDestager(s)
	s.packer.init(s, warmForm)
	s.mover.init(s, warmForm)
	s.cold.init(s, coldFormFor(s.plan.frames, s.opts.ColdEffort))
	s.cooler.s, s.cooler.pace.s = s, s
	s.report("read what is known of garbage collection", s.collector.load())
	s.keeper.openSeconds()
	for _, run := range []func(context.Context){s.destager.run, s.worker.run, s.checkpoints.run, s.keeper.run, s.cooler.run, s.indexer.run, s.collector.run, s.historian.run, s.thinner.run, s.surveyor.run} {
		s.running.Add(1)
		go func() {
			defer s.running.Done()
			run(s.ctx)
		}()
	}
}

// abandon closes what a failed Open had opened.
func (s *Store) abandon() {
	s.cancel()
	s.cleaner.trust(false)
	if s.log != nil {
		_ = s.log.Close()
	}
	_ = s.historian.close()
	_ = s.index.close()
	if s.db != nil {
		_ = s.db.Close()
	}
	if s.chunks != nil {
		_ = s.chunks.close()
	}
	if s.tiers != nil {
		_ = s.tiers.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

func (s *Store) path(name string) string { return s.fs.PathJoin(s.opts.Dir, name) }

// openSuper reads the superblock, or makes one for a directory that holds no store. It bumps the boot epoch and takes the clean mark away.
func (s *Store) openSuper() error {
	super, err := readSuper(s.fs, s.opts.Dir)
	if errors.Is(err, block.ErrNotFound) && len(s.opts.Disks) > 0 {
		found, e := s.restoreSuper()
		if e != nil {
			return e
		}
		if found != nil {
			super, err = found, nil
		}
	}
	if errors.Is(err, block.ErrNotFound) {
		super, err = s.createSuper()
	}
	if err != nil {
		return err
	}
	s.super = super
	if err := s.openKeys(); err != nil { // before anything is changed
		return err
	}
	s.clean = super.Flags&flagClean != 0
	super.Flags &^= flagClean
	super.BootEpoch++
	s.checkpoints.out.boot = super.BootEpoch
	// Both copies: with the boot epoch of an earlier run alone, the log of this one could not be told from an older one.
	if len(s.opts.Disks) > 0 {
		super.Incompat |= incompatDisks // before anything is there that a program for one disk does not know
	}
	for range 2 {
		if err := writeSuper(s.fs, s.opts.Dir, super); err != nil {
			return err
		}
		s.copySuper(super)
	}
	return nil
}

// createSuper makes the identity of a new store. A directory that holds parts of a store but no superblock is refused: making a new one would hide what is there.
func (s *Store) createSuper() (*superblock, error) {
	for _, part := range []string{"log", "meta", "segments"} {
		if _, err := s.fs.Stat(s.path(part)); err == nil {
			return nil, &block.CorruptError{Source: s.path("super.0"), Want: "a superblock beside " + part, Got: "none; restore super.0 or super.1, or use another directory"}
		}
	}
	if err := s.syncParents(); err != nil {
		return nil, err
	}
	return s.createKeys()
}

// syncParents makes the way to a new data directory durable, as far as this user may.
func (s *Store) syncParents() error {
	for dir := s.opts.Dir; ; {
		parent := s.fs.PathDir(dir)
		if parent == dir {
			return nil
		}
		if err := syncDir(s.fs, parent); err != nil && !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("sync %s: %w", parent, err)
		}
		dir = parent
	}
}

// initialize ends the making of a new store: from here on the absence of its metadata is damage, and a first checkpoint is there to repair it.
func (s *Store) initialize(ctx context.Context) error {
	if s.super.Flags&flagInitialized != 0 {
		return nil
	}
	if s.checkpoints.journaled.Load() == nil {
		if err := s.checkpoints.full(ctx); err != nil {
			return err
		}
	}
	return s.updateSuper(func(super *superblock) { super.Flags |= flagInitialized })
}

// openMeta opens Pebble. A store that had metadata once must have it still.
func (s *Store) openMeta() error {
	opts := s.metaOptions()
	defer opts.Cache.Unref()
	path := s.path(metaDir)
	if now, err := s.metaFormatNow(); err != nil {
		return err
	} else if now != 0 && now <= metaFormat {
		opts.FormatMajorVersion = now // it changes when somebody asks for it
	}
	if opts.ErrorIfNotExists = s.super.Flags&flagInitialized != 0; opts.ErrorIfNotExists {
		if _, err := s.fs.Stat(path); errors.Is(err, os.ErrNotExist) {
			return &block.CorruptError{Source: path, Want: "the metadata of this store", Got: "none"}
		}
	}
	if err := s.logs.load(); err != nil {
		return err
	}
	db, err := pebble.Open(path, opts)
	if err != nil {
		return metaError(path, err)
	}
	s.db = db
	return nil
}

// makeCaches makes what is kept of the rows in memory, as large as the store asks for that was opened.
func (s *Store) makeCaches() {
	s.plan = planMemory(s.opts.MemoryBytes, s.opts.LogCapBytes).forChunks(s.liveChunkCount())
	s.pages = extentmap.NewCache(s.plan.pages)
	s.maps = extentmap.NewMap(s.db, s.pages)
	s.recentHints, s.refRows = newHintCache(s.plan.recent), newRefFilter(s.db)
}

// liveChunkCount is how many chunks there are.
func (s *Store) liveChunkCount() (chunks uint64) {
	for _, r := range s.segments.all() {
		chunks += uint64(r.LiveChunks)
	}
	return chunks
}

// metaError says what an error of Pebble's open means: not everything that is wrong with its files is marked as corruption. What the operating system refuses is no damage, and
// neither is what a newer Pebble wrote.
func metaError(path string, err error) error {
	var file *os.PathError
	var errno syscall.Errno
	switch {
	case strings.Contains(err.Error(), "format major version"):
		return fmt.Errorf("open metadata %s: %w: %w", path, err, block.ErrVersion)
	case !errors.Is(err, os.ErrNotExist) && !pebble.IsCorruptionError(err) && (errors.As(err, &file) || errors.As(err, &errno) || errors.Is(err, block.ErrNoSpace)):
		return fmt.Errorf("open metadata: %w", err)
	}
	return fmt.Errorf("open metadata %s: %w: %w", path, err, block.ErrCorrupt)
}

// roomyTables is the size of a memtable, bytes, from which on there is memory for larger compactions.
const roomyTables = 1 << 20

// metaOptions are how Pebble is opened. The caller gives the cache back.
func (s *Store) metaOptions() *pebble.Options {
	opts := &pebble.Options{
		FS: metaFS{FS: s.fs, cleaner: s.cleaner, logs: s.logs}, Cache: pebble.NewCache(s.plan.pebble), MemTableSize: uint64(s.plan.memtbl), MemTableStopWritesThreshold: 3,
		MaxOpenFiles: 512, Logger: quietLogger{},
		FormatMajorVersion: s.opts.metaFormat,
		// Without a listener Pebble would end the process: damage of one table is an error of the reads that need it.
		EventListener:              &pebble.EventListener{DataCorruption: s.onDamage},
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	opts.L0CompactionThreshold = 4
	if s.plan.memtbl >= roomyTables {
		// Hints come in random order, so each compaction of level 0 rewrites all of the level below: fewer and larger ones cost less, and while the whole is small that
		// level is the last one, where what was deleted goes for good.
		opts.L0CompactionThreshold, opts.L0StopWritesThreshold, opts.LBaseMaxBytes = 8, 24, 512<<20
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].FilterType = pebble.TableFilter
		// Most of a row is hashes, and what is rewritten soon is not worth compressing.
		opts.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	opts.Levels[len(opts.Levels)-1].Compression = func() *sstable.CompressionProfile {
		if s.dense.Load() {
			return sstable.ZstdCompression
		}
		return sstable.SnappyCompression
	}
	return opts
}

// defaultTier is the name of the tier that a store begins with.
const defaultTier = "local"

// quietLogger drops Pebble's chatter; its errors reach the caller as errors.
type quietLogger struct{}

func (quietLogger) Infof(string, ...any)  {}
func (quietLogger) Errorf(string, ...any) {}

// Fatalf is called by Pebble when it cannot go on, such as after a failed write of its log. Durability can no longer be promised: the process ends, and the next start
// recovers.
func (quietLogger) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "metadata store failed, stopping: "+format+"\n", args...)
	os.Exit(1)
}
