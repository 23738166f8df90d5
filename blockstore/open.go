package blockstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/google/uuid"
	"github.com/maypok86/otter/v2/stats"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
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
		return nil, fmt.Errorf("%w (%v); is another hvd running on it?", block.ErrLocked, err)
	}
	if err := s.openSuper(); err != nil {
		return nil, err
	}
	if err := s.openDomain(); err != nil {
		return nil, err
	}
	if err := s.openMeta(); err != nil {
		return nil, err
	}
	if err := s.openTiers(); err != nil {
		return nil, err
	}
	if s.chunks, err = newChunkReader(s, s.plan.frames); err != nil {
		return nil, err
	}
	info, err := s.recover()
	if err != nil {
		return nil, err
	}
	if err := s.tidySegments(ctx); err != nil {
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
		opts: opts, plan: planMemory(opts.MemoryBytes), fs: opts.FS,
		volumes: map[block.VolumeID]*Volume{}, names: map[string]*Volume{}, nodes: map[nodeID]*node{}, dirty: newDirtySet(),
		started: opts.Now(), frameStats: stats.NewCounter(), cleaner: newMetaCleaner(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.budget = overlay.NewBudget(s.plan.overlay)
	s.segments.s, s.segments.rows = s, map[block.SegmentID]*segmentRow{}
	s.space = newSpaceGate(s)
	s.worker = newWorker(s)
	s.packer.init(s)
	return s
}

// start begins background work.
func (s *Store) start() {
	s.destager = newDestager(s)
	s.packer.init(s)
	for _, run := range []func(context.Context){s.destager.run, s.worker.run} {
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
	if s.db != nil {
		_ = s.db.Close()
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
	if errors.Is(err, block.ErrNotFound) {
		super, err = s.createSuper()
	}
	if err != nil {
		return err
	}
	s.super = super
	s.clean = super.Flags&flagClean != 0
	super.Flags &^= flagClean
	super.BootEpoch++
	// Both copies: with the boot epoch of an earlier run alone, the log of this one could not be told from an older one.
	if err := writeSuper(s.fs, s.opts.Dir, super); err != nil {
		return err
	}
	return writeSuper(s.fs, s.opts.Dir, super)
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
	key, err := dedup.NewDomainKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := writeFileAtomic(s.fs, s.opts.Dir, s.path("domain.key"), key.Bytes()); err != nil {
		return nil, fmt.Errorf("write domain key: %w", err)
	}
	return &superblock{StoreID: block.UUID(uuid.New()), DomainID: key.ID(), Created: s.opts.Now().UnixNano(), Cut: s.opts.Chunking}, nil
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

// openDomain reads the key that chunk identities are keyed with.
func (s *Store) openDomain() error {
	b, err := readSmallFile(s.fs, s.path("domain.key"), dedup.DomainKeySize)
	if errors.Is(err, os.ErrNotExist) {
		return &block.CorruptError{Source: s.path("domain.key"), Want: "the key of domain " + s.super.DomainID.String(), Got: "no file"}
	}
	if err != nil {
		return fmt.Errorf("read domain key: %w", err)
	}
	if s.domain, err = dedup.DomainKeyFromBytes(b); err != nil {
		return fmt.Errorf("read domain key %s: %w", s.path("domain.key"), err)
	}
	if got := s.domain.ID(); got != s.super.DomainID {
		return &block.CorruptError{Source: s.path("domain.key"), Want: "the key of domain " + s.super.DomainID.String(), Got: "that of " + got.String()}
	}
	return nil
}

// openMeta opens Pebble. A store that had metadata once must have it still.
func (s *Store) openMeta() error {
	cache := pebble.NewCache(s.plan.pebble)
	defer cache.Unref()
	opts := &pebble.Options{
		FS: metaFS{s.fs, s.cleaner}, Cache: cache, MemTableSize: uint64(s.plan.memtbl), MemTableStopWritesThreshold: 3,
		L0CompactionThreshold: 4, MaxOpenFiles: 512, Logger: quietLogger{},
		FormatMajorVersion: pebble.FormatNewest,
		// Without a listener Pebble would end the process: damage of one table is an error of the reads that need it.
		EventListener: &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
			if f := s.opts.Events.Corruption; f != nil {
				f(fmt.Errorf("metadata: %w: %v", block.ErrCorrupt, i))
			}
		}},
		ErrorIfNotExists:           s.super.Flags&flagInitialized != 0,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].FilterType = pebble.TableFilter
	}
	db, err := pebble.Open(s.path("meta"), opts)
	if errors.Is(err, pebble.ErrDBDoesNotExist) {
		return &block.CorruptError{Source: s.path("meta"), Want: "the metadata of this store", Got: "none"}
	}
	if errors.Is(err, os.ErrNotExist) || pebble.IsCorruptionError(err) {
		return fmt.Errorf("open metadata %s: %w: %w", s.path("meta"), err, block.ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("open metadata: %w", err)
	}
	s.db = db
	s.pages = extentmap.NewCache(s.plan.pages)
	s.maps = extentmap.NewMap(db, s.pages)
	return nil
}

// openTiers opens the places where segments live.
func (s *Store) openTiers() error {
	backend, err := dir.Open(s.fs, s.path("segments"))
	if err != nil {
		return fmt.Errorf("open segments: %w", err)
	}
	s.tiers, err = tiers.NewSet(tiers.Options{
		Tiers: []tiers.Tier{{Name: defaultTier, Backend: backend}},
		CheckOpen: func(id block.SegmentID, generation uint32, r tiers.Reader) error {
			size, err := r.Size()
			if err == nil {
				_, err = segment.CheckHeader(r, size, s.super.StoreID, id, generation)
			}
			return err
		},
	})
	return err
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
