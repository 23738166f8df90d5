package blockstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
)

// Folders of Pebble in the data directory. A rebuild works in metaRebuild, which counts for nothing until it is renamed; what it replaces is kept as metaDamaged, a dash and
// a number.
const (
	metaDir     = "meta"
	metaRebuild = "meta.rebuild"
	metaDamaged = "meta.damaged"
)

// RebuildInfo says how metadata was made anew.
type RebuildInfo struct {
	Reason   error  // why the metadata that was there could not be used
	Kept     string // where that is now; empty when there was none
	Rows     uint64 // rows of checkpoints that were read
	Chunks   uint64 // chunks that were found in segments
	Lost     LostInfo
	Duration time.Duration
}

// openRows opens the metadata and reads its rows. Metadata that is missing or damaged is made anew from the checkpoints; then it says how.
func (s *Store) openRows(ctx context.Context) (*RebuildInfo, error) {
	if err := s.fs.RemoveAll(s.path(metaRebuild)); err != nil { // of a rebuild that was cut short
		return nil, err
	}
	reason := s.tryRows()
	usable := reason == nil
	if usable {
		reason = s.suspected()
	}
	if reason == nil || !s.rebuildable(reason) {
		return nil, reason
	}
	s.closeRows()
	began := s.opts.Now()
	b := &rebuild{s: s, ctx: ctx, info: RebuildInfo{Reason: reason}}
	if err := b.run(); err != nil {
		if usable { // with reads that fail, but it is what there is
			s.report("make metadata anew", fmt.Errorf("%w: %w", reason, err))
			return nil, s.tryRows()
		}
		return nil, fmt.Errorf("%w; making it anew from its checkpoints failed: %w; nothing was changed: restore what is missing, or the metadata", reason, err)
	}
	if err := s.tryRows(); err != nil {
		return nil, fmt.Errorf("open the metadata that was made anew because of: %w: %w", reason, err)
	}
	if err := s.forgetSuspicion(); err != nil {
		return nil, err
	}
	b.info.Lost = b.lost
	if b.lost.Chunks > 0 {
		if err := s.lostRanges(ctx, &b.lostIDs, &b.info.Lost); err != nil {
			return nil, fmt.Errorf("find out where lost chunks are missing: %w", err)
		}
	}
	b.info.Duration = s.opts.Now().Sub(began)
	return &b.info, nil
}

func (s *Store) tryRows() error {
	if err := s.openMeta(); err != nil {
		return err
	}
	if err := s.loadRows(); err != nil {
		return err
	}
	s.makeCaches()
	return nil
}

// rebuildable reports whether an error says that the metadata is lost, and not that it is another store's, of another version, or that the operating system does not let it
// be read.
func (s *Store) rebuildable(err error) bool {
	var foreign *foreignError
	return s.super.Flags&flagInitialized != 0 && !errors.As(err, &foreign) && !errors.Is(err, block.ErrVersion) &&
		(errors.Is(err, block.ErrCorrupt) || errors.Is(err, os.ErrNotExist) || pebble.IsCorruptionError(err))
}

// foreignError says that metadata is that of another store. Somebody exchanged folders: what is right is for them to say.
type foreignError struct{ block.CorruptError }

// closeRows closes metadata that is not used, as it was.
func (s *Store) closeRows() {
	s.cleaner.trust(false)
	if s.db != nil {
		_ = s.db.Close()
		s.db = nil
	}
	s.cleaner = newMetaCleaner()
	s.forgetRows()
}

// rebuild is the making of metadata from checkpoints and segments.
type rebuild struct {
	s    *Store
	ctx  context.Context // of the one call of Open
	info RebuildInfo

	db    *pebble.DB
	batch *pebble.Batch
	segs  []foundSegment // all that there are, ascending by id
	c     counters       // as the newest checkpoint has them
	j     journalRow
	live  liveChunks

	lost    LostInfo // of it, the counts
	lostIDs checkpoint.LiveSet
}

// run makes the metadata anew beside what is there, and puts it into its place when it is complete. Before that nothing changes.
func (r *rebuild) run() error {
	s := r.s
	if err := r.listSegments(); err != nil {
		return err
	}
	way, err := r.choose()
	if err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	for _, step := range []func() error{func() error { return r.load(way) }, r.place, r.lose, r.verify, r.finish} {
		if err := step(); err != nil {
			return errors.Join(err, r.db.Close(), s.fs.RemoveAll(s.path(metaRebuild)))
		}
	}
	if err := r.db.Close(); err != nil {
		return err
	}
	return r.exchange()
}

// open makes an empty database. Its log would be written for nothing: all is flushed at the end, or begins again.
func (r *rebuild) open() (err error) {
	opts := r.s.metaOptions()
	defer opts.Cache.Unref()
	opts.FS = metaFS{FS: r.s.fs, cleaner: trustedCleaner()}
	opts.DisableWAL, opts.ErrorIfExists = true, true
	if r.db, err = pebble.Open(r.s.path(metaRebuild), opts); err != nil {
		return fmt.Errorf("make metadata: %w", err)
	}
	r.batch = r.db.NewBatch()
	return nil
}

// flushAt is how many bytes are gathered before they are put into the database.
const flushAt = 1 << 20

func (r *rebuild) set(key, value []byte) error {
	_ = r.batch.Set(key, value, nil)
	return r.flush(flushAt)
}

func (r *rebuild) delete(key []byte) error {
	_ = r.batch.Delete(key, nil)
	return r.flush(flushAt)
}

// flush puts what is gathered into the database if it is at least so long.
func (r *rebuild) flush(least int) error {
	if r.batch.Len() < least {
		return nil
	}
	err := errors.Join(r.batch.Commit(pebble.NoSync), r.batch.Close(), r.ctx.Err())
	r.batch = r.db.NewBatch()
	return err
}

// finish writes the counters and makes everything durable.
func (r *rebuild) finish() error {
	r.c.Segments = uint64(len(r.segs))
	r.c.RowSum, r.c.summed = 0, true
	for _, table := range []byte{keyVolume, keySnapshot} {
		if err := r.each(table, func(key, value []byte) error { r.c.RowSum += sumRow(key, value); return nil }); err != nil {
			return err
		}
	}
	for i := range r.segs {
		b, err := r.segs[i].row.encode()
		if err == nil {
			key := key64(keySegment, uint64(r.segs[i].row.ID))
			r.c.RowSum += sumRow(key, b)
			err = r.set(key, b)
		}
		if err != nil {
			return err
		}
	}
	_ = r.batch.Set(countersKey, r.c.encode(), nil)
	_ = r.batch.Set(journalKey, r.j.encode(), nil)
	if err := r.flush(0); err != nil {
		return err
	}
	return errors.Join(r.batch.Close(), r.db.Flush())
}

// exchange puts the new metadata in the place of the old. A crash in between leaves none, and the next start begins again.
func (r *rebuild) exchange() error {
	s := r.s
	if _, err := s.fs.Stat(s.path(metaDir)); err == nil {
		kept := s.freeName(metaDamaged)
		if err := s.fs.Rename(s.path(metaDir), s.path(kept)); err != nil {
			return fmt.Errorf("set damaged metadata aside: %w", err)
		}
		r.info.Kept = kept
	}
	if err := s.fs.Rename(s.path(metaRebuild), s.path(metaDir)); err != nil {
		return fmt.Errorf("put new metadata into its place: %w", err)
	}
	return errors.Join(syncDir(s.fs, s.opts.Dir), s.logs.forget())
}

// freeName returns the first name in the data directory that nothing has: name-1, name-2, …
func (s *Store) freeName(name string) string {
	for n := 1; ; n++ {
		next := fmt.Sprintf("%s-%d", name, n)
		if _, err := s.fs.Stat(s.path(next)); errors.Is(err, os.ErrNotExist) {
			return next
		}
	}
}
