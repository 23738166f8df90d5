package backup

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Progress is how far a run is.
type Progress struct {
	DoneBytes  uint64 // of the content
	TotalBytes uint64
	NewBytes   uint64 // of chunks that were not in the repository

	Locked, ToLock int // objects, in the end, of a backup that is locked
}

// Run backs up a source: it stores what the repository does not have and then the manifest, whose sizes and root it fills in. The index must be loaded. progress, which may be
// nil, is called by one goroutine at a time. With m.LockedUntil the backup, and all that it needs, is locked until then; backend.ErrCannotLock, before anything is stored, if the place cannot do that. After an error or a cancel no backup exists, and what was stored until then need not be stored again. repository.ErrMarked: a prune has marked
// meanwhile what the backup relies on; the index must be loaded and the backup run once more.
func Run(ctx context.Context, r *repository.Repository, src Source, m *repository.Manifest, progress func(Progress)) error {
	if src.Size() > MaxContent {
		return fmt.Errorf("content of %d B, at most %d B: %w", src.Size(), uint64(MaxContent), block.ErrInvalid)
	}
	if err := canLock(ctx, r, m); err != nil {
		return err
	}
	w, err := r.NewWriter(ctx)
	if err != nil {
		return err
	}
	run := &running{r: r, w: w, src: src, m: m, progress: progress, tree: tree{w: w, hasher: dedup.NewHasher(r.Keys().Domain)}}
	err = run.all(ctx)
	stored, err := finish(ctx, w, err)
	if err != nil {
		return err
	}
	m.SizeBytes, m.StoredBytes, m.Root = src.Size(), stored.StoredBytes, run.tree.root
	if m.Time.IsZero() {
		m.Time = time.Now().UTC()
	}
	if err := lock(ctx, r, w, m, false, nil, progress); err != nil {
		return err
	}
	return commitBased(ctx, r, w, m, nil, nil)
}

// running is one run.
type running struct {
	r        *repository.Repository
	w        *repository.Writer
	src      Source
	m        *repository.Manifest
	progress func(Progress)
	tree     tree
}

// region is a region on its way: read, then cut, then stored, in order.
type region struct {
	data    []byte // of a buffer that goes back to the reader; nil: all zero
	buffer  []byte
	extents []extent
	cut     chan struct{} // closed when the extents are there
}

// all reads, cuts and stores. Buffers bound what is on its way.
func (run *running) all(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	free := make(chan []byte, workers+2)
	for range cap(free) {
		free <- nil // made when it is needed
	}
	toCut, toStore := make(chan *region), make(chan *region, cap(free)+1024)
	g.Go(func() error {
		defer close(toCut)
		defer close(toStore)
		return run.read(ctx, free, toCut, toStore)
	})
	for range workers {
		g.Go(func() error { return run.cutAll(toCut) })
	}
	g.Go(func() error { return run.storeAll(ctx, toStore, free) })
	return g.Wait()
}

func (run *running) read(ctx context.Context, free chan []byte, toCut, toStore chan<- *region) error {
	size := run.src.Size()
	for n := range regions(size) {
		var buffer []byte
		select {
		case buffer = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buffer == nil {
			buffer = make([]byte, RegionSize)
		}
		g := &region{data: buffer[:regionLength(size, n)], buffer: buffer, cut: make(chan struct{})}
		zero, err := run.src.Region(ctx, g.data, n*RegionSize)
		if err != nil {
			return fmt.Errorf("read at %d: %w", n*RegionSize, err)
		}
		if zero {
			g.data, g.buffer = nil, nil
			close(g.cut)
			free <- buffer // there is room: it came from there
		}
		for _, to := range []chan<- *region{toStore, toCut} {
			if zero && to == toCut {
				break
			}
			select {
			case to <- g:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// cutAll cuts regions into chunks and hashes these.
func (run *running) cutAll(toCut <-chan *region) error {
	cutter, err := cdc.NewCutter(run.r.Config().Cut)
	if err != nil {
		return err
	}
	hasher := dedup.NewHasher(run.r.Keys().Domain)
	var lengths []uint32
	for g := range toCut {
		g.extents, lengths = cutRegion(cutter, hasher, g.data, lengths)
		close(g.cut)
	}
	return nil
}

// cutRegion returns what a region consists of. lengths is scratch, which is returned for the next one.
func cutRegion(cutter *cdc.Cutter, hasher *dedup.Hasher, data []byte, lengths []uint32) ([]extent, []uint32) {
	var extents []extent
	lengths = cutter.Cut(lengths[:0], data, 0)
	for _, n := range lengths {
		p := data[:n]
		data = data[n:]
		last := len(extents) - 1
		switch zero := dedup.IsZero(p); {
		case zero && last >= 0 && extents[last].isZero():
			extents[last].length += n
		case zero:
			extents = append(extents, zeroes(n))
		default:
			extents = append(extents, wholeChunk(hasher.Sum(p), n))
		}
	}
	return extents, lengths
}

// storeAll stores regions in order.
func (run *running) storeAll(ctx context.Context, toStore <-chan *region, free chan<- []byte) error {
	at := Progress{TotalBytes: run.src.Size()}
	for g := range toStore {
		select {
		case <-g.cut:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := run.store(g); err != nil {
			return err
		}
		if g.buffer != nil {
			free <- g.buffer
		}
		at.DoneBytes, at.NewBytes = min(at.DoneBytes+RegionSize, at.TotalBytes), run.m.NewBytes
		if run.progress != nil {
			run.progress(at)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return run.tree.finish()
}

func (run *running) store(g *region) error {
	zero := true
	off := uint32(0)
	for _, e := range g.extents {
		if e.id != (block.Hash{}) {
			zero = false
			run.m.NonZero += uint64(e.length)
			isNew, err := run.w.Add(e.id, g.data[off:off+e.length])
			if err != nil {
				return err
			}
			if isNew {
				run.m.NewBytes += uint64(e.length)
			}
		}
		off += e.length
	}
	if zero {
		return run.tree.page(block.Hash{})
	}
	return run.tree.region(g.extents)
}

// tree collects pages into directories, and these into the root.
type tree struct {
	w      *repository.Writer
	hasher *dedup.Hasher
	pages  []block.Hash
	root   []block.Hash
}

// add stores a page or directory and returns its id.
func (t *tree) add(b []byte) (block.Hash, error) {
	id := t.hasher.Sum(b)
	_, err := t.w.Add(id, b)
	return id, err
}

// region stores the page of a region that is not all zero.
func (t *tree) region(extents []extent) error {
	id, err := t.add(encodePage(extents))
	if err != nil {
		return err
	}
	return t.page(id)
}

// store stores what a region consists of, and tells how many bytes of its chunks were new and how many are not zero.
func (t *tree) store(parts []copyExtent) (added, nonZero uint64, err error) {
	extents := make([]extent, len(parts))
	for i, e := range parts {
		extents[i] = e.extent
		if e.data == nil {
			continue
		}
		isNew, err := t.w.Add(e.id, e.data)
		if err != nil {
			return added, 0, err
		}
		if isNew {
			added += uint64(e.length)
		}
	}
	if nonZero = nonZeroOf(extents); nonZero == 0 {
		return added, 0, t.page(block.Hash{})
	}
	return added, nonZero, t.region(extents)
}

func (t *tree) page(id block.Hash) error {
	if t.pages = append(t.pages, id); len(t.pages) == pagesPerDirectory {
		return t.finish()
	}
	return nil
}

// finish closes the directory that is begun, if one is.
func (t *tree) finish() error {
	if len(t.pages) == 0 {
		return nil
	}
	id := block.Hash{}
	for _, page := range t.pages {
		if page != (block.Hash{}) {
			var err error
			if id, err = t.add(encodeDirectory(t.pages)); err != nil {
				return err
			}
			break
		}
	}
	t.root, t.pages = append(t.root, id), t.pages[:0]
	return nil
}
