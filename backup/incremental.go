package backup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// RangeSource is content of which parts can be read, by several goroutines at once.
type RangeSource interface {
	// Size is how many bytes the content has.
	Size() uint64
	// ReadRange fills p with the bytes at off.
	ReadRange(ctx context.Context, p []byte, off uint64) error
}

// ErrParent means that a backup cannot begin from its parent: that is damaged, or was forgotten meanwhile. A run that reads everything needs no parent.
var ErrParent = errors.New("the parent backup cannot be used")

// RunIncremental backs up content of which it is known what may have changed since another backup of it. What did not change is taken over from that one: whole pages, and the chunks of pages in part, or slices of
// these; nothing of it is read but where slices crowd. In a repository without slices the rest of a chunk that changed in part is read, too, and what follows until a cut falls where one was before; there the backup
// has the same chunks and pages, and the same root, as one that reads everything. A backup stands on its own: the parent may be forgotten after it. The index must be loaded and the keys be an owner's. If src is a
// RangesSource it is asked for many ranges at once. Else as Run; besides, ErrParent.
func RunIncremental(ctx context.Context, r *repository.Repository, src RangeSource, parent *repository.Manifest, changes *Changes, m *repository.Manifest, progress func(Progress)) error {
	if src.Size() > MaxContent {
		return fmt.Errorf("content of %d B, at most %d B: %w", src.Size(), uint64(MaxContent), block.ErrInvalid)
	}
	if _, err := directories(parent); err != nil {
		return errors.Join(ErrParent, err)
	}
	if err := canLock(ctx, r, m); err != nil {
		return err
	}
	w, err := r.NewWriter(ctx)
	if err != nil {
		return err
	}
	run := &incremental{
		r: r, w: w, src: src, changes: changes, m: m, parent: parent, before: newTreeCache(r.NewReader(copyReaderBytes), parent),
		out: tree{w: w, hasher: dedup.NewHasher(r.Keys().Domain)}, progress: progress,
	}
	err = run.all(ctx)
	stored, err := finish(ctx, w, err)
	if err != nil {
		return err
	}
	m.SizeBytes, m.StoredBytes, m.Root, m.Parent = src.Size(), stored.StoredBytes, run.out.root, parent.Name
	if m.Time.IsZero() {
		m.Time = time.Now().UTC()
	}
	base := parent
	if !run.shares {
		base = nil
	}
	if err := lock(ctx, r, w, m, run.shares, parent, progress); errors.Is(err, repository.ErrLost) || errors.Is(err, block.ErrCorrupt) {
		return errors.Join(ErrParent, err)
	} else if err != nil {
		return err
	}
	return commitBased(ctx, r, w, m, base, ErrParent)
}

// finish closes a writer after what used it has ended with err, and returns what was the cause if either failed.
func finish(ctx context.Context, w *repository.Writer, err error) (repository.WriterStats, error) {
	stored, closeErr := w.Close()
	if err == nil || closeErr != nil && ctx.Err() == nil && !errors.Is(closeErr, context.Canceled) { // else why the writer ended is not the cause
		err = closeErr
	}
	return stored, err
}

// commitBased stores the manifest of a backup that shares pages with another one of the repository, which were not looked up: so that one must be there before the manifest is, and after. If it was forgotten meanwhile,
// the backup does not exist, and the error wraps gone. base may be nil. In the end it locks the manifest, if the backup shall be locked: until then it can be taken back.
func commitBased(ctx context.Context, r *repository.Repository, w *repository.Writer, m, base *repository.Manifest, gone error) error {
	based := func() error {
		if base == nil {
			return nil
		}
		_, err := r.Manifest(ctx, base.Name)
		if errors.Is(err, block.ErrNotFound) {
			return fmt.Errorf("backup %s, which this one shares content with, was forgotten meanwhile: %w", base.Name, gone)
		}
		return err
	}
	if err := based(); err != nil {
		return err
	}
	if err := w.Commit(ctx, m); err != nil {
		return err
	}
	if err := based(); err != nil {
		return errors.Join(err, r.Forget(context.WithoutCancel(ctx), m.Name))
	}
	return r.LockManifest(ctx, m)
}

// incremental is one run.
type incremental struct {
	r       *repository.Repository
	w       *repository.Writer
	src     RangeSource
	changes *Changes
	m       *repository.Manifest
	parent  *repository.Manifest
	before  *treeCache // of the parent
	out     tree
	shares  bool // pages or chunks with the parent
	// bytes that may be read besides what changed: of windows that are crowded, and of remnants
	spareWindows, spareRemnants atomic.Int64
	progress                    func(Progress)
}

// all updates regions, several at once, and stores them in order.
func (run *incremental) all(ctx context.Context) error {
	left, err := run.shrunk(ctx)
	if err != nil {
		return errors.Join(ErrParent, err)
	}
	run.m.NonZero = run.parent.NonZero - min(left, run.parent.NonZero)
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	toUpdate, toStore := make(chan *updatedRegion), make(chan *updatedRegion, 2*workers)
	free := make(chan []byte, workers+2)
	for range cap(free) {
		free <- nil // made when it is needed
	}
	g.Go(func() error {
		defer close(toUpdate)
		defer close(toStore)
		for n := range regions(run.src.Size()) {
			region := &updatedRegion{n: n, changed: run.changed(n), ready: make(chan struct{})}
			if region.changed != nil {
				select {
				case region.buffer = <-free: // in order, or who comes first could wait for who comes later
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			for _, to := range []chan<- *updatedRegion{toStore, toUpdate} {
				select {
				case to <- region:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error { return run.updateAll(ctx, toUpdate) })
	}
	g.Go(func() error { return run.storeAll(ctx, toStore, free) })
	return g.Wait()
}

// everywhere is a region of which all has changed.
var everywhere = func() *changedUnits {
	u := new(changedUnits)
	for i := range u {
		u[i] = ^uint64(0)
	}
	return u
}()

// changed returns what of region n has changed: all, where the content ended within and ends elsewhere now. If packs were lost no page is taken over unread: what it leads to may be in them, and is read again then.
func (run *incremental) changed(n uint64) *changedUnits {
	if n < run.before.total && regionLength(run.parent.SizeBytes, n) != regionLength(run.src.Size(), n) {
		return everywhere
	}
	changed := run.changes.in(n)
	if changed == nil && run.r.Index().Incomplete() {
		changed = new(changedUnits)
	}
	return changed
}

// shrunk returns how many bytes, other than zeroes, the parent has behind the end of the content.
func (run *incremental) shrunk(ctx context.Context) (nonZero uint64, err error) {
	for n := regions(run.src.Size()); n < run.before.total; n++ {
		g, err := run.before.page(ctx, n)
		if err != nil {
			return 0, err
		}
		nonZero += nonZeroOf(g.extents)
	}
	return nonZero, nil
}

func nonZeroOf(extents []extent) (sum uint64) {
	for i := range extents {
		if !extents[i].isZero() {
			sum += uint64(extents[i].length)
		}
	}
	return sum
}

// storeAll stores regions in order.
func (run *incremental) storeAll(ctx context.Context, toStore <-chan *updatedRegion, free chan<- []byte) error {
	at := Progress{TotalBytes: run.src.Size()}
	for region := range toStore {
		select {
		case <-region.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := run.store(region); err != nil {
			return err
		}
		if region.buffer != nil {
			free <- region.buffer // there is room: it came from there
		}
		at.DoneBytes, at.NewBytes = min(at.DoneBytes+RegionSize, at.TotalBytes), run.m.NewBytes
		if run.progress != nil {
			run.progress(at)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return run.out.finish()
}

// store stores what a region consists of.
func (run *incremental) store(region *updatedRegion) error {
	run.shares = run.shares || region.shares
	run.m.ReadBytes += region.readBytes
	if region.same {
		return run.out.page(region.page)
	}
	added, nonZero, err := run.out.store(region.extents)
	run.m.NewBytes += added
	run.m.NonZero += nonZero - region.before // that much was counted
	return err
}
