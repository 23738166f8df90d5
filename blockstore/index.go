package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// indexDir is the folder of the index in the data directory.
const indexDir = "index"

// index is the way from hashes to chunks: hints, in a database of their own (docs/format/index.md). Nothing but savings depends on it. So it has no log: after a crash it is
// what it was a little earlier, and chunk rows above what it reached give the rest. What is wrong with it is answered by a new one.
//
// It is used only by the holder of Store.meta; metrics and info may be called by anyone.
type index struct {
	s *Store

	mu sync.Mutex // held while db is exchanged, and by those that do not hold Store.meta
	db *pebble.DB // nil when none can be made

	state  indexState
	shown  atomic.Pointer[IndexInfo]
	broken atomic.Bool   // a read or a write failed: a new one is due
	failed chan struct{} // closed when broken is set
}

// indexState is the row of the index that says what is in it.
type indexState struct {
	StoreID   block.UUID
	Through   uint64 // each chunk up to this id is known by its hash, or as a double, or was not there when it was looked for
	Unmatched uint64 // chunks above it that were stored without a look whether they are there already
	Doubles   uint64 // rows of doubles
	Joined    uint64 // doubles that have been joined since the index was made, and their bytes
	JoinedRaw uint64
}

const (
	indexVersion   = 1
	indexStateSize = 72
	keyIndexState  = 'I'
	keyDouble      = 'D' // in the index; the metadata has its own tables
)

var indexStateKey = []byte{keyIndexState}

func (st *indexState) encode() []byte {
	e := &enc{}
	e.u8(indexVersion)
	e.zero(7)
	e.bytes(st.StoreID[:])
	for _, v := range []uint64{st.Through, st.Unmatched, st.Doubles, st.Joined, st.JoinedRaw} {
		e.u64(v)
	}
	e.zero(8)
	return e.b
}

func decodeIndexState(b []byte) (st indexState, err error) {
	d := &dec{b: b}
	if v := d.u8(); v != indexVersion {
		return st, fmt.Errorf("index of version %d: %w", v, block.ErrVersion)
	}
	d.zero(7)
	copy(st.StoreID[:], d.take(16))
	for _, p := range []*uint64{&st.Through, &st.Unmatched, &st.Doubles, &st.Joined, &st.JoinedRaw} {
		*p = d.u64()
	}
	d.zero(8)
	return st, d.end("state of the index")
}

// missing is how many ids of chunks the index does not have, of those up to last.
func (st *indexState) missing(last uint64) uint64 { return last - min(last, st.Through) }

func hintKey(hash *[16]byte) []byte { return append([]byte{keyHint}, hash[:]...) }

// open opens the index, or makes an empty one in the place of one that is missing, damaged or not this store's. What went wrong
// is reported; the store works without one, too, but finds nothing that it has already.
func (x *index) open(fresh bool) {
	s := x.s
	if fresh {
		x.discard()
	}
	err := x.try()
	if err != nil {
		s.report("open the index, which is made anew", fmt.Errorf("%s: %w", s.path(indexDir), err))
		x.discard()
		if err = x.try(); err != nil {
			s.report("make an index: data is stored without one", err)
		}
	}
	s.hints = newHintFilter(x.db, s.plan.hints, s.liveChunkCount())
	x.show()
}

// try opens what is there, or begins an index where nothing is.
func (x *index) try() error {
	s := x.s
	opts := s.indexOptions()
	opts.EventListener = &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) { x.fail() }, BackgroundError: func(error) { x.fail() }}
	defer opts.Cache.Unref()
	x.failed = make(chan struct{})
	x.broken.Store(false)
	db, err := pebble.Open(s.path(indexDir), opts)
	if err != nil {
		return err
	}
	st, err := readIndexState(db)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		st, err = indexState{StoreID: s.super.StoreID}, nil
	case err == nil && (st.StoreID != s.super.StoreID || st.Through > s.c.NextChunk):
		err = &block.CorruptError{Source: s.path(indexDir), Want: "the index of this store's chunks", Got: fmt.Sprintf("that of store %v up to chunk %d of %d", st.StoreID, st.Through, s.c.NextChunk)}
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	x.mu.Lock()
	x.db, x.state = db, st
	x.mu.Unlock()
	return nil
}

func readIndexState(db *pebble.DB) (indexState, error) {
	v, closer, err := db.Get(indexStateKey)
	if err != nil {
		return indexState{}, err
	}
	defer closer.Close()
	return decodeIndexState(v)
}

// fail gives the index up: it answers and takes nothing any more until there is a new one. A write that waited for a table that cannot be written would hold up everything.
func (x *index) fail() {
	if x.broken.CompareAndSwap(false, true) {
		close(x.failed)
	}
}

// discard closes the index, if it is open, and removes it.
func (x *index) discard() {
	x.mu.Lock()
	db := x.db
	x.db, x.state = nil, indexState{StoreID: x.s.super.StoreID}
	x.mu.Unlock()
	if db != nil {
		_ = db.Close()
	}
	if err := x.s.fs.RemoveAll(x.s.path(indexDir)); err != nil {
		x.s.report("remove the index", err)
	}
}

// reset begins an empty index in the place of this one. Store.meta is held.
func (x *index) reset() {
	x.open(true)
	x.s.recentHints = newHintCache(x.s.plan.recent)
}

// close makes everything durable that the index has.
func (x *index) close() error {
	x.mu.Lock()
	db := x.db
	x.db = nil
	x.mu.Unlock()
	if db == nil {
		return nil
	}
	done, err := db.AsyncFlush()
	if err == nil {
		select {
		case <-done:
		case <-x.failed: // the flush would be tried for ever
		}
	}
	return errors.Join(err, db.Close())
}

// whole reports whether every chunk there is can be found by its hash.
func (x *index) whole() bool { return x.db != nil && x.state.Through == x.s.c.NextChunk }

// hint returns the chunk that a hash is known under, or ErrNotFound. An index that cannot be read knows nothing.
func (x *index) hint(hash *[16]byte) (block.ChunkID, error) {
	id, err := x.get(hintKey(hash))
	return block.ChunkID(id), err
}

func (x *index) get(key []byte) (uint64, error) {
	if x.db == nil || x.broken.Load() {
		return 0, block.ErrNotFound
	}
	v, closer, err := x.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, block.ErrNotFound
	}
	if err != nil {
		x.fail()
		x.s.report("read the index, which is made anew", err)
		return 0, block.ErrNotFound
	}
	defer closer.Close()
	if len(v) != 8 {
		x.fail()
		return 0, block.ErrNotFound
	}
	return binary.LittleEndian.Uint64(v), nil
}

// apply brings what a committed batch of metadata did into the index.
func (x *index) apply(m *metaBatch) {
	if x.db == nil || x.broken.Load() {
		return
	}
	b := x.db.NewBatchWithSize(64 + 40*(len(m.hints)+len(m.dead)))
	defer b.Close()
	st := x.state
	exact := st.Doubles == 0 && st.Through == m.was
	var value [8]byte
	for hash, id := range m.hints {
		if m.unmatched[hash] {
			continue
		}
		binary.LittleEndian.PutUint64(value[:], uint64(id))
		_ = b.Set(hintKey(&hash), value[:], nil)
	}
	for i := range m.dead {
		d := &m.dead[i]
		if _, renewed := m.hints[d.hash]; renewed {
			continue
		}
		if !exact { // there may be two chunks with this hash
			if id, err := x.hint(&d.hash); err != nil || id != d.id {
				continue
			}
		}
		_ = b.Delete(hintKey(&d.hash), nil)
	}
	if n := uint64(len(m.unmatched)); n > 0 {
		st.Unmatched += n
	} else if st.Through == m.was {
		st.Through = m.c.NextChunk
	}
	if b.Empty() && st == x.state {
		return
	}
	x.write(b, st)
}

// write applies a batch that makes the index what st says.
func (x *index) write(b *pebble.Batch, st indexState) bool {
	_ = b.Set(indexStateKey, st.encode(), nil)
	if err := b.Commit(pebble.NoSync); err != nil {
		x.fail()
		x.s.report("write the index, which is made anew", err)
		return false
	}
	x.state = st
	x.show()
	return true
}

// IndexInfo says what the index of chunks by their hash is able to find.
type IndexInfo struct {
	Indexed   uint64 // ids of chunks up to which all are in it
	Chunks    uint64 // last id that was given
	Unmatched uint64 // chunks that were stored without a look whether they are there already, and are still to be looked for
	Doubles   uint64 // chunks that are there twice, and are still to be joined
	Joined    uint64 // chunks that were joined with an equal one, since the index was made
	JoinedRaw uint64 // bytes of these, raw

	DiskBytes    uint64 // of its tables
	FilterBytes  uint64 // of its filter in memory
	WrittenBytes uint64 // to its tables, since the open
}

// Whole reports whether nothing is left to do.
func (i IndexInfo) Whole() bool { return i.Indexed >= i.Chunks && i.Doubles == 0 }

// show publishes what metrics and info tell. Store.meta is held, or nobody else knows of the store yet.
func (x *index) show() {
	st := &x.state
	x.shown.Store(&IndexInfo{
		Indexed: st.Through, Chunks: x.s.c.NextChunk, Unmatched: st.Unmatched, Doubles: st.Doubles, Joined: st.Joined, JoinedRaw: st.JoinedRaw,
		FilterBytes: uint64(x.s.hints.used),
	})
}

// info says how far the index is. It does not wait for Store.meta.
func (x *index) info() IndexInfo {
	i := *x.shown.Load()
	i.Chunks = max(i.Chunks, x.s.counted.Load().NextChunk)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.db != nil {
		m := x.db.Metrics()
		i.DiskBytes = m.DiskSpaceUsage()
		for l := range m.Levels {
			i.WrittenBytes += m.Levels[l].TableBytesFlushed + m.Levels[l].TableBytesCompacted
		}
	}
	return i
}

// Index says how far the index is. It reads nothing from any device.
func (s *Store) Index() IndexInfo { return s.index.info() }

const (
	// indexTable is the size of a table of the last level of the index: with 16 MiB, a petabyte of unique data has some hundred thousand.
	indexTable = 16 << 20
	// indexUpperTable is that of a table above, a tenth of all. A filter is read and cached as a whole: that of 2 MiB takes 100 KB, where one of 16 MiB took as long to read as dozens of pages.
	indexUpperTable = 2 << 20
)

// indexOptions are how the index is opened. The caller gives the cache back.
func (s *Store) indexOptions() *pebble.Options {
	opts := &pebble.Options{
		FS: metaFS{FS: s.fs, cleaner: trustedCleaner()}, Cache: pebble.NewCache(s.plan.index), MemTableSize: uint64(s.plan.indextbl), MemTableStopWritesThreshold: 3,
		MaxOpenFiles: 256, Logger: quietLogger{}, DisableWAL: true,
		FormatMajorVersion:         pebble.FormatNewest,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
		// Hashes come in random order, so each compaction of level 0 rewrites all of the level below: it pays to gather more, as hardly a lookup looks into a table of level 0.
		L0CompactionThreshold: 16, L0StopWritesThreshold: 64, LBaseMaxBytes: 128 << 20,
	}
	for i := range opts.Levels {
		// Who asks the last level has asked the filter in memory: what is asked for is there. A filter of its tables would only fill the cache.
		if i < len(opts.Levels)-1 {
			opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
			opts.Levels[i].FilterType = pebble.TableFilter
		}
		opts.TargetFileSizes[i] = indexUpperTable
		opts.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression } // of hashes nothing is saved
	}
	opts.TargetFileSizes[len(opts.Levels)-1] = indexTable
	return opts
}

// dropOldHints removes the hints that earlier versions kept in the metadata.
func (s *Store) dropOldHints() error {
	lower, upper := []byte{keyHint}, []byte{keyHint + 1}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	there := it.First()
	if err := it.Close(); err != nil || !there {
		return err
	}
	return s.db.DeleteRange(lower, upper, pebble.Sync)
}
